"""Which thread of a program has which part of a loaded tile, in Triton.

Triton deals a tensor to a warp's threads, then to warps, then to each thread's registers, along its
dimensions in the order of how many neighbours in memory they have. Those without any come first to
last before Triton 3.7, and last to first since. A tile [A, B, C, V] here is dealt A first, then B,
then C, each thread loading V or a part of V at once, in any version.
"""

import triton
from triton import language as tl

LAST_FIRST = tl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7))


@triton.jit
def along(numbers, dimension: tl.constexpr):  # type: ignore[no-untyped-def]
    """Numbers along a dimension, 0 to 2, of a tile that is to be loaded: made of them and of
    ``neighbours`` are its places in memory."""
    # After a reshape Triton knows of no neighbours, should there be any.
    D: tl.constexpr = 2 - dimension if LAST_FIRST else dimension
    SIZE: tl.constexpr = numbers.shape[0]
    return tl.reshape(
        numbers, (SIZE if D == 0 else 1, SIZE if D == 1 else 1, SIZE if D == 2 else 1, 1)
    )


@triton.jit
def neighbours(V: tl.constexpr):  # type: ignore[no-untyped-def]
    """0 to V - 1 along the last dimension."""
    return tl.arange(0, V)[None, None, None, :]


@triton.jit
def in_order(tile):  # type: ignore[no-untyped-def]
    """A loaded tile as [A, B, C, V]."""
    return tl.permute(tile, (2, 1, 0, 3)) if LAST_FIRST else tile
