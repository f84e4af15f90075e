"""MXFP4 weights as the kernels read them, made from a checkpoint's blocks and scales, and back.

A checkpoint's row holds its values in pairs, two to a byte. Here 64 values k of a row n make 16
words of 16 bits: word q of chunk c holds, for i = 0 to 3, the value ``64 c + 16 i + q``. So a tile
of words has the shape of a tile of 16-bit numbers: it is loaded from shared memory in the very
registers in which the tensor cores want their first operand (ldmatrix), every word of a register
gives one value to each of four bfloat16 products, and a product spans 16 neighbouring values.

The same registers are, byte by byte, a tile of 8-bit numbers: the low byte of a word gives the
values 0 and 2 of it, the high byte 1 and 3, so that every byte gives one value to each of two
products of 8-bit floats, which span a block of 32 values, of one scale, each.

Inside a word the bits of a value stand where few instructions bring them to where a float has
them. In an e5m2 byte the bits of an e2m1, exponent and mantissa e e m, stand in 3 to 1, as a
number 2**14 times too small; in a float16, 2**14 times too small as well, the same in its upper
byte. So no value needs a table, and subnormal ones no case of their own.

    value   sign   e e m          an e5m2 byte by                a float16 by
    0       7      5, 4, 3        a shift right by 2             that, and its byte moved up
    1       15     13, 12, 11     the same                       that
    2       6      2, 1, 0        a shift left by 1              a shift left by 9
    3       14     10, 9, 8       the same                       a shift left by 1

Four scales of a row, two chunks', make one word: an exponent in 8 bits each, of the scale times
2**30. That is from 128 to 158, so its last 5 bits are the exponent of a float16, of the scale times
2**14. Those of a chunk's two blocks stand where the two float16 of a word have it: one mask makes
both numbers, for the odd chunk after a rotation by 24 bits. Other rotations bring each of the four
to where a float32 has its exponent.

A chunk of all rows lies together, so that a program, which goes through the chunks of some
neighbouring rows, reads a stretch of memory at a time, and programs side by side a longer one.

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
"""Of e8m0, 2.0: a greater one, times 2**14, would overflow a float16."""
LEAST_SCALE: Final = 98
"""Of e8m0, 2**-29: times 2**14 a float16 has it as 0."""
_FACTOR_BIAS: Final = 30
_FACTOR_ROTATION: Final = 10
_ELEMENTS: Final = 1024


class Mxfp4Weight(NamedTuple):
    """e experts' matrices [N, K], K a multiple of 64.

    words int16 [e, K / 64, N, 16] as this module's docstring says; factors int32 [e, K / 128, N],
    of 128 values the four e8m0 scales plus 30, of blocks 0, 2, 1 and 3 from the lowest byte on,
    then rotated left by 10 bits; K / 128 is rounded up, and what is not there is 0.
    """

    words: Tensor
    factors: Tensor

    @property
    def experts(self) -> int:
        return self.words.shape[0]

    @property
    def rows(self) -> int:
        """N."""
        return self.words.shape[2]

    @property
    def columns(self) -> int:
        """K."""
        return self.words.shape[1] * CHUNK


def pack_mxfp4(blocks: Tensor, scales: Tensor, *, paired: bool) -> Mxfp4Weight:
    """A checkpoint's blocks [e, N, K / 32, 16] and scales [e, N, K / 32], uint8, in our layout.

    ``paired``: rows 2 j and 2 j + 1 are gate and up and are put into eights; N must be a multiple
    of 16 then. Takes no memory beyond the result, which is as large as the input. Raises ValueError
    where K is no multiple of 64 or a scale is above 2.0, which no trained weight needs. A scale
    below 2**-29 becomes that: it changes no weight by more than 1.2e-8.
    """
    _check(blocks, scales, paired)
    experts, rows, scale_blocks, _ = blocks.shape
    shape = (experts, scale_blocks // 2, rows, 16)
    words = torch.empty(shape, dtype=torch.int16, device=blocks.device)
    grid = (triton.cdiv(words.numel(), _ELEMENTS),)
    _pack[grid](
        blocks.contiguous(), words, words.numel(), rows, scale_blocks // 2, paired, _ELEMENTS
    )
    biased = _ordered(scales, paired).clamp(min=LEAST_SCALE) + _FACTOR_BIAS
    factors = _chunk_by_chunk(F.pad(biased, (0, -scale_blocks % 4)))
    factors = _rotated_left(factors.contiguous().view(torch.int32), _FACTOR_ROTATION)
    return Mxfp4Weight(words, factors.transpose(1, 2).contiguous())


def unpack_mxfp4(weight: Mxfp4Weight, *, paired: bool) -> tuple[Tensor, Tensor]:
    """The checkpoint's blocks and scales that ``pack_mxfp4`` was given, scales from 2**-29 on."""
    experts, rows, columns = weight.experts, weight.rows, weight.columns
    shape = (experts, rows, columns // 32, 16)
    blocks = torch.empty(shape, dtype=torch.uint8, device=weight.words.device)
    grid = (triton.cdiv(blocks.numel(), _ELEMENTS),)
    _unpack[grid](weight.words, blocks, blocks.numel(), rows, columns // 2, paired, _ELEMENTS)
    factors = weight.factors.transpose(1, 2).contiguous()
    biased = _chunk_by_chunk(_rotated_left(factors, 32 - _FACTOR_ROTATION).view(torch.uint8))
    scales = biased[..., : columns // 32] - _FACTOR_BIAS
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


def _chunk_by_chunk(scales: Tensor) -> Tensor:
    """Of each four scales the middle two exchanged, so that a chunk's stand 16 bits apart."""
    pairs: Tensor = scales.unflatten(-1, (-1, 2, 2))
    return pairs.transpose(-1, -2).flatten(-3)


def _rotated_left(words: Tensor, bits: int) -> Tensor:
    """int32, by ``bits`` of its 32."""
    return (words << bits) | (words >> (32 - bits)) & ((1 << bits) - 1)


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
def _places(i):  # type: ignore[no-untyped-def]
    """Where a word has value i: the bit of its sign, and the lowest of its other three."""
    return 7 + i % 2 * 8 - i // 2, 3 + i % 2 * 8 - i // 2 * 3


@triton.jit
def _pack(blocks_ptr, words_ptr, words, rows, chunks, PAIRED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    q, own, chunk = at % 16, at // 16 % rows, at // 16 // rows
    expert, chunk = chunk // chunks, chunk % chunks
    source = blocks_ptr + (expert * rows + checkpoint_row(own, PAIRED)) * chunks * 32
    word = tl.zeros((BLOCK,), tl.int32)
    for i in tl.static_range(4):
        pair = tl.load(source + chunk * 32 + i * 8 + q // 2, mask=at < words, other=0).to(tl.int32)
        code = (pair >> ((q % 2) * 4).to(tl.int32)) & 15
        sign, rest = _places(i)
        word |= ((code >> 3) << sign) | ((code & 7) << rest)
    tl.store(words_ptr + at, word.to(tl.int16), mask=at < words)


@triton.jit
def _unpack(  # type: ignore[no-untyped-def]
    words_ptr, blocks_ptr, size, rows, row_bytes, PAIRED: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, place = at // row_bytes, at % row_bytes
    expert, own = row // rows, row % rows
    # Byte b of a row holds the values 2 b and 2 b + 1.
    chunk, i, q = place // 32, (place // 8) % 4, (place % 8) * 2
    chunk += expert * (row_bytes // 32)
    source = words_ptr + (chunk * rows + packed_row(own, PAIRED)) * 16 + q
    low = tl.load(source, mask=at < size, other=0).to(tl.int32)
    high = tl.load(source + 1, mask=at < size, other=0).to(tl.int32)
    sign, rest = _places(i.to(tl.int32))
    low = ((low >> sign) & 1) << 3 | ((low >> rest) & 7)
    high = ((high >> sign) & 1) << 3 | ((high >> rest) & 7)
    tl.store(blocks_ptr + at, (low | high << 4).to(tl.uint8), mask=at < size)
