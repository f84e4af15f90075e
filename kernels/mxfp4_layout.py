"""MXFP4 weights as the kernels read them, made from a checkpoint's blocks and scales, and back.

A checkpoint's row holds its values in pairs, two to a byte. Here 64 values k of a row n make 16
words of 16 bits: word ``16 c + q`` holds, for i = 0 to 3, the value ``64 c + 16 i + q``. So a tile
of words has the shape of a tile of 16-bit numbers: it is loaded from shared memory in the very
registers in which the tensor cores want their first operand (ldmatrix), every word of a register
gives one value to each of four products, and a product spans 16 neighbouring values of a row.

Inside a word the bits of a value stand where few instructions bring them into the places that a
bfloat16 has for them, as a number 2**126 times too small: the sign in bit 15, exponent and mantissa
(e e m of e2m1) in bits 8 to 6. One exact product with a factor, which is the block's scale times
2**126, makes it right; of a factor the exponent's bits in a bfloat16 are stored.

    value   sign   e e m         comes into place by
    0       15     8, 7, 6       nothing
    1       12     5, 4, 3       a shift left by 3
    2       9      2, 1, 0       a shift left by 6
    3       14     11, 10, 13    shifts left by 1, right by 3 and right by 7

Gate and up rows, which a checkpoint holds in turn, stand in eights: 8 gates, then their 8 ups. The
tensor cores give one thread rows 8 apart, so SwiGLU finds both in its own registers.
"""

from typing import Final, NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn import functional as F
from triton import language as tl

CHUNK: Final = 64
"""Values of a row that share 16 words."""
GREATEST_SCALE: Final = 128
"""Of e8m0, 2.0: beyond it the one product of scale and 2**126 would overflow a bfloat16."""
_FACTOR_BIAS: Final = 126
_ELEMENTS: Final = 1024


class Mxfp4Weight(NamedTuple):
    """e experts' matrices [N, K], K a multiple of 64.

    words int16 [e, N, K / 4] as this module's docstring says; factors int32 [e, K / 128, N], of
    128 values the four e8m0 scales plus 126, the first in the lowest byte; K / 128 is rounded up,
    and the bytes of what is not there are 0.
    """

    words: Tensor
    factors: Tensor

    @property
    def experts(self) -> int:
        return self.words.shape[0]

    @property
    def rows(self) -> int:
        """N."""
        return self.words.shape[1]

    @property
    def columns(self) -> int:
        """K."""
        return self.words.shape[2] * 4


def pack_mxfp4(blocks: Tensor, scales: Tensor, *, paired: bool) -> Mxfp4Weight:
    """A checkpoint's blocks [e, N, K / 32, 16] and scales [e, N, K / 32], uint8, in our layout.

    ``paired``: rows 2 j and 2 j + 1 are gate and up and are put into eights; N must be a multiple
    of 16 then. Takes no memory beyond the result, which is as large as the input. Raises ValueError
    where K is no multiple of 64 or a scale is above 2.0, which no trained weight needs.
    """
    _check(blocks, scales, paired)
    experts, rows, scale_blocks, _ = blocks.shape
    words = torch.empty((experts, rows, scale_blocks * 8), dtype=torch.int16, device=blocks.device)
    grid = (triton.cdiv(words.numel(), _ELEMENTS),)
    _pack[grid](
        blocks.contiguous(), words, words.numel(), rows, scale_blocks * 8, paired, _ELEMENTS
    )
    factors = F.pad(_ordered(scales, paired) + _FACTOR_BIAS, (0, -scale_blocks % 4))
    factors = factors.contiguous().view(torch.int32).transpose(1, 2).contiguous()
    return Mxfp4Weight(words, factors)


def unpack_mxfp4(weight: Mxfp4Weight, *, paired: bool) -> tuple[Tensor, Tensor]:
    """The checkpoint's blocks and scales that ``pack_mxfp4`` was given."""
    words = weight.words
    experts, rows, columns = words.shape
    shape = (experts, rows, columns // 8, 16)
    blocks = torch.empty(shape, dtype=torch.uint8, device=words.device)
    grid = (triton.cdiv(blocks.numel(), _ELEMENTS),)
    _unpack[grid](words, blocks, blocks.numel(), rows, columns * 2, paired, _ELEMENTS)
    factors = weight.factors.transpose(1, 2).contiguous().view(torch.uint8)
    scales = factors[..., : columns // 8] - _FACTOR_BIAS
    return blocks, _reordered(scales, paired).contiguous()


def pair_rows(bias: Tensor) -> Tensor:
    """A gate-up bias [e, N], gates and ups in turn, in the eights of ``pack_mxfp4``."""
    return _ordered(bias, paired=True).contiguous()


def _ordered(rows: Tensor, paired: bool) -> Tensor:
    """[e, N, ...] with pairs in eights."""
    if not paired:
        return rows
    eights: Tensor = rows.unflatten(1, (-1, 8, 2))
    return eights.transpose(2, 3).flatten(1, 3)


def _reordered(rows: Tensor, paired: bool) -> Tensor:
    if not paired:
        return rows
    eights: Tensor = rows.unflatten(1, (-1, 2, 8))
    return eights.transpose(2, 3).flatten(1, 3)


def _check(blocks: Tensor, scales: Tensor, paired: bool) -> None:
    if blocks.dtype != torch.uint8 or blocks.dim() != 4 or blocks.shape[3] != 16:
        raise ValueError(f"blocks: uint8 [e, N, K / 32, 16] expected, not {tuple(blocks.shape)}")
    if scales.dtype != torch.uint8 or scales.shape != blocks.shape[:3]:
        raise ValueError(f"scales: uint8 {tuple(blocks.shape[:3])} expected")
    if blocks.shape[2] % 2:
        raise ValueError(f"blocks: rows of a multiple of {CHUNK} values expected")
    if paired and blocks.shape[1] % 16:
        raise ValueError("blocks: a multiple of 8 pairs of rows expected")
    if scales.numel() and int(scales.max()) > GREATEST_SCALE:
        raise ValueError("scales: one is above 2.0")


@triton.jit
def checkpoint_row(row, PAIRED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where a checkpoint holds our row."""
    if PAIRED:
        return (row // 16) * 16 + (row % 8) * 2 + (row // 8) % 2
    return row


@triton.jit
def packed_row(row, PAIRED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where we hold a checkpoint's row."""
    if PAIRED:
        return (row // 16) * 16 + (row // 2) % 8 + (row % 2) * 8
    return row


@triton.jit
def _spread(value, i: tl.constexpr):  # type: ignore[no-untyped-def]
    """The e2m1 code of value i in its places in a word."""
    sign, magnitude = value >> 3, value & 7
    if i == 0:
        return (sign << 15) | (magnitude << 6)
    if i == 1:
        return (sign << 12) | (magnitude << 3)
    if i == 2:
        return (sign << 9) | magnitude
    return (sign << 14) | ((magnitude >> 1) << 10) | ((magnitude & 1) << 13)


@triton.jit
def _gathered(word, i):  # type: ignore[no-untyped-def]
    """The e2m1 code of value i of a word; i a tensor."""
    first = ((word >> 15) & 1) << 3 | ((word >> 6) & 7)
    second = ((word >> 12) & 1) << 3 | ((word >> 3) & 7)
    third = ((word >> 9) & 1) << 3 | (word & 7)
    fourth = ((word >> 14) & 1) << 3 | ((word >> 10) & 3) << 1 | ((word >> 13) & 1)
    return tl.where(i == 0, first, tl.where(i == 1, second, tl.where(i == 2, third, fourth)))


@triton.jit
def _pack(blocks_ptr, words_ptr, words, rows, row_words, PAIRED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, place = at // row_words, at % row_words
    expert, own = row // rows, row % rows
    chunk, q = place // 16, place % 16
    source = blocks_ptr + (expert * rows + checkpoint_row(own, PAIRED)) * row_words * 2
    word = tl.zeros((BLOCK,), tl.int32)
    for i in tl.static_range(4):
        pair = tl.load(source + chunk * 32 + i * 8 + q // 2, mask=at < words, other=0).to(tl.int32)
        word |= _spread((pair >> ((q % 2) * 4).to(tl.int32)) & 15, i)
    tl.store(words_ptr + at, word.to(tl.int16), mask=at < words)


@triton.jit
def _unpack(  # type: ignore[no-untyped-def]
    words_ptr, blocks_ptr, size, rows, row_bytes, PAIRED: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, place = at // row_bytes, at % row_bytes
    expert, own = row // rows, row % rows
    source = words_ptr + (expert * rows + packed_row(own, PAIRED)) * (row_bytes // 2)
    # Byte b of a row holds the values 2 b and 2 b + 1.
    chunk, i, q = place // 32, (place // 8) % 4, (place % 8) * 2
    low = tl.load(source + chunk * 16 + q, mask=at < size, other=0).to(tl.int32)
    high = tl.load(source + chunk * 16 + q + 1, mask=at < size, other=0).to(tl.int32)
    tl.store(
        blocks_ptr + at, (_gathered(low, i) | _gathered(high, i) << 4).to(tl.uint8), mask=at < size
    )
