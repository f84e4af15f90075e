"""How kernels are launched: on a GPU, or under Triton's interpreter where there is none.

The interpreter runs the same kernels on a CPU, slowly, with NumPy. What it cannot do is chosen away
by ``INTERPRETED``: bfloat16 arithmetic (it is silently wrong there, so loads are widened to float32
first), inline PTX, and programmatic dependent launch.
"""

from typing import Any, Final

import triton
from triton import language as tl

INTERPRETED: Final = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Decided once, when the kernels are imported: TRITON_INTERPRET=1 in the environment."""


def dependent_launch() -> dict[str, Any]:
    """Launch options under which a kernel may start while the kernel before it still runs.

    The kernel must call ``wait_for_predecessor`` before it reads or overwrites anything that the
    predecessor touches (programmatic dependent launch, CUDA C++ programming guide, section
    "Programmatic Dependent Launch and Synchronization"). Nothing where there is no such thing.
    """
    return {} if INTERPRETED.value else {"launch_pdl": True}


@triton.jit
def let_successor_start() -> None:
    """Lets the next kernel's blocks start as soon as they find room; they still wait for our end.

    Called first in a kernel: what it costs the most is a few idle warps of the successor. Where the
    successor reads before its own wait what our predecessor wrote, called after ours.
    """
    if not INTERPRETED:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_predecessor() -> None:
    """Returns when the kernel before has ended and all that it wrote can be read."""
    if not INTERPRETED:
        tl.extra.cuda.gdc_wait()


@triton.jit
def wide(x):  # type: ignore[no-untyped-def]
    """``x`` as the interpreter can calculate with it: float32 there, itself on a GPU."""
    return x.to(tl.float32) if INTERPRETED else x
