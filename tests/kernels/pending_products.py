"""Whether machine code overwrites the registers of products that have not ended.

A Hopper product (wgmma) whose first operand is in registers reads them while the program goes on,
until it has waited for the product. ptxas before 13.3 does not always know that (the release notes
of CUDA 13.3; triton-lang/triton issue 9433), and then results are wrong, or right by luck. So the
machine code itself is looked at, loop by loop.
"""

import re
from collections.abc import Iterator

_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);")
_BRANCH = re.compile(r"BRA.*`\((\.L_x_\d+)\)")
_PREDICATE = re.compile(r"^@!?U?P\w+ ")
_PRODUCT = re.compile(r"[HQ]GMMA\S* R\d+, R(\d+), gdesc")
_WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x([0-9a-f]+)")
_TARGET = re.compile(r"^(\S+) R(\d+)\b")
_NO_TARGET = re.compile(r"^(ST|RED|LDGSTS|HGMMA|QGMMA)")


def overwriting(code: str) -> list[str]:
    """The instructions of nvdisasm's ``code`` that write a register which a product still reads."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    loops: list[slice] = []
    for line in code.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append(found[1].strip())
            branch = _BRANCH.search(found[1])
            if branch and branch[1] in labels:
                loops.append(slice(labels[branch[1]], len(instructions)))
    return [
        instruction
        for loop in loops
        if any("GMMA" in instruction for instruction in instructions[loop])
        for instruction in _overwriting(instructions[loop], instructions[loop.stop :])
    ]


def _overwriting(loop: list[str], rest: list[str]) -> Iterator[str]:
    """Twice around, because products may still run when the next turn begins, and on into the rest
    of the program until all have ended."""
    groups: list[set[int]] = []
    open_group: set[int] = set()
    for place, predicated in enumerate(loop + loop + rest):
        instruction = _PREDICATE.sub("", predicated)
        if "GMMA" in instruction:
            if product := _PRODUCT.match(instruction):
                open_group |= set(range(int(product[1]), int(product[1]) + 4))
            if "gsb0" in instruction:
                groups.append(open_group)
                open_group = set()
        elif wait := _WAIT.match(instruction):
            groups = groups[max(0, len(groups) - int(wait[1], 16)) :]
        elif place >= len(loop) and _written(instruction) & open_group.union(*groups):
            yield predicated
        if place >= 2 * len(loop) and not groups and not open_group:
            return


def _written(instruction: str) -> set[int]:
    """The registers that an instruction writes."""
    target = _TARGET.match(instruction)
    if target is None or _NO_TARGET.match(instruction):
        return set()
    name = target[1]
    if ".128" in name or name.endswith(".M88.4"):
        count = 4
    elif ".64" in name or ".WIDE" in name or name.endswith(".M88.2"):
        count = 2
    else:
        count = 1
    return set(range(int(target[2]), int(target[2]) + count))
