"""Puts measured figures into the model card: ``python -m tests.tiny.card EVAL.json``.

EVAL.json is what ``moeray eval tiny --json`` wrote. Only the part between the card's two marks
changes.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moeray.worker.trained_weights import packaged_card, packaged_weights

BEGIN = "<!-- measured: python -m tests.tiny.card EVAL.json -->\n"
END = "<!-- end -->\n"
EFFORTS = ("low", "medium", "high")
SHOWN_FAILURES = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("eval", type=Path)
    report = json.loads(parser.parse_args().eval.read_text(encoding="utf-8"))
    # Through the link that an editable install makes, to the file itself.
    card = packaged_card().resolve()
    before, rest = card.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    measured = "\n".join(_measured(report))
    card.write_text(f"{before}{BEGIN}{measured}\n{END}{after}", encoding="utf-8")
    print(f"wrote {card}")


def weights_digest() -> str:
    """What names the packaged weights."""
    return hashlib.sha256(packaged_weights().read_bytes()).hexdigest()


def _measured(report: dict[str, Any]) -> Iterator[str]:
    settings, problems = report["settings"], report["problems"]
    yield f"Weights with sha256 `{weights_digest()}`, through the public API, greedy, on a CPU in"
    yield (
        f"float32: `moeray eval tiny --problems {problems} --seed {settings['seed']}`,"
        " held-out problems."
    )
    yield from (
        "",
        "| asked | figure | measured | problems or answers | met |",
        "|---|---|---|---|---|",
    )
    for line in report["criteria"]:
        met = {True: "yes", False: "**no**", None: "-"}[line["met"]]
        cells = (line["asked"], line["name"], line["measured"], line["samples"], met)
        yield "| " + " | ".join(map(str, cells)) + " |"
    yield from ("", "Accuracy in percent, and mean tokens of analysis:", "")
    yield "| task | problems | low | medium | high | thought at medium | at high |"
    yield "|---|---|---|---|---|---|---|"
    for name, task in report["tasks"].items():
        yield _row(name, task)
    yield _row("**all**", report["efforts"])
    budgets = report["budgets"]
    yield ""
    yield (
        f"Asked again with a thinking budget below what it thought before: {budgets['kept']} of"
        f" {budgets['total']} kept it, {budgets['correct']} were still right."
    )
    yield from ("", "The first wrong answers at high effort:", "")
    wrong = [failure for failure in report["failures"] if failure["effort"] == "high"]
    yield from ("| task | asked | expected | got |", "|---|---|---|---|")
    for failure in wrong[:SHOWN_FAILURES]:
        texts = (failure[part] for part in ("task", "question", "expected", "got"))
        yield "| " + " | ".join(_cell(text) for text in texts) + " |"


def _row(name: str, efforts: dict[str, Any]) -> str:
    shares = [f"{100 * efforts[effort]['accuracy']:.1f}" for effort in EFFORTS]
    thought = [f"{efforts[effort]['analysis_tokens']:.0f}" for effort in ("medium", "high")]
    return f"| {name} | {efforts['low']['problems']} | {' | '.join(shares + thought)} |"


def _cell(text: str) -> str:
    """Of a table, from the end: the question stands last in a conversation."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= 160 else "..." + flat[-157:]


if __name__ == "__main__":
    main()
