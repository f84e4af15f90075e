"""What prefill and decode attention share: where a key lies, how a tile of the cache is read, and
which arguments both take.

Keys are counted from a sequence's first table column: key 0 has position ``first_blocks[s] *
block_tokens``. Logits are kept in powers of two (times log2 e), because the hardware has exp2.
"""

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.launch import INTERPRETED, wide

LOG2_E = tl.constexpr(math.log2(math.e))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """The sizes of one call, checked."""

    rows: int
    sequences: int
    query_heads: int
    kv_heads: int
    head_dim: int
    block_tokens: int
    columns: int
    scaled: bool
    """Whether the cache is FP8 with scales."""

    @property
    def group(self) -> int:
        """Query heads of one key-value head."""
        return self.query_heads // self.kv_heads


def checked_shape(
    queries: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    row_starts: Tensor,
    positions: Tensor,
    block_table: Tensor,
    first_blocks: Tensor,
    sinks: Tensor,
    scale: float,
    window: int | None,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
) -> AttentionShape:
    """The sizes of arguments as of ``reference.paged_attention``; ValueError names a wrong one."""
    rows, query_heads, head_dim = _sizes("queries", queries, 3)
    _, block_tokens, kv_heads, cache_dim = _sizes("key_cache", key_cache, 4)
    sequences, columns = _sizes("block_table", block_table, 2)
    if head_dim not in (16, 32, 64, 128) or queries.stride()[1:] != (head_dim, 1):
        raise ValueError(f"queries: heads of {head_dim}, strides {queries.stride()}")
    if cache_dim != head_dim or query_heads % kv_heads or not key_cache.is_contiguous():
        raise ValueError(f"key_cache: {tuple(key_cache.shape)} for queries {tuple(queries.shape)}")
    if block_tokens not in (16, 32, 64, 128):
        raise ValueError(f"key_cache: blocks of {block_tokens} tokens, not 16, 32, 64 or 128")
    if not (_alike(value_cache, key_cache) and value_cache.is_contiguous()):
        raise ValueError(f"value_cache: {tuple(value_cache.shape)}, {value_cache.dtype}")
    for name, tensor, length in (
        ("row_starts", row_starts, sequences + 1),
        ("positions", positions, rows),
        ("first_blocks", first_blocks, sequences),
        ("sinks", sinks, query_heads),
    ):
        if tensor.shape != (length,) or not tensor.is_contiguous():
            raise ValueError(f"{name}: {tuple(tensor.shape)}, not ({length},)")
    if block_table.stride(1) != 1 and columns > 1:
        raise ValueError(f"block_table: strides {block_table.stride()}")
    if scale <= 0:
        raise ValueError(f"scale: {scale}, not positive")
    if window is not None and window < 1:
        raise ValueError(f"window: {window}")
    scaled = key_cache.dtype == torch.float8_e4m3fn
    _check_scales("key_scales", key_scales, key_cache, scaled)
    _check_scales("value_scales", value_scales, key_cache, scaled)
    return AttentionShape(
        rows=rows,
        sequences=sequences,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_tokens=block_tokens,
        columns=columns,
        scaled=scaled,
    )


def _sizes(name: str, tensor: Tensor, dimensions: int) -> tuple[int, ...]:
    if tensor.dim() != dimensions:
        raise ValueError(f"{name}: {tuple(tensor.shape)}, not of {dimensions} dimensions")
    return tuple(tensor.shape)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _check_scales(name: str, scales: Tensor | None, cache: Tensor, wanted: bool) -> None:
    if scales is None:
        if wanted:
            raise ValueError(f"{name}: missing for a cache of {cache.dtype}")
        return
    if not wanted:
        raise ValueError(f"{name}: given for a cache of {cache.dtype}")
    if scales.shape != cache.shape[:3] or scales.dtype != torch.float32:
        raise ValueError(f"{name}: {tuple(scales.shape)}, {scales.dtype}")
    if not scales.is_contiguous():
        raise ValueError(f"{name}: not contiguous")


@triton.jit
def cache_slots(  # type: ignore[no-untyped-def]
    table_ptr, keys, last_key, BLOCK_TOKENS: tl.constexpr, MASKED: tl.constexpr
):
    """block * BLOCK_TOKENS + offset, int64, of ``keys``; somewhere in block 0 behind last_key."""
    if MASKED:
        blocks = tl.load(table_ptr + keys // BLOCK_TOKENS, mask=keys <= last_key, other=0)
    else:
        blocks = tl.load(table_ptr + keys // BLOCK_TOKENS)
    return blocks.to(tl.int64) * BLOCK_TOKENS + keys % BLOCK_TOKENS


@triton.jit
def as_dot_operand(x):  # type: ignore[no-untyped-def]
    """A tile of the cache as a product takes it: e4m3 as float16, which holds all of its values."""
    if INTERPRETED or x.dtype == tl.bfloat16:
        return wide(x)
    else:  # noqa: RET505  (the compiler drops a branch, not what follows one)
        # A plain conversion would be moved behind the rearrangement of the tile for the product,
        # which takes single bytes apart then. Nothing is moved past what is not called pure.
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b16 low, high;
            mov.b32 {low, high}, $2;
            cvt.rn.f16x2.e4m3x2 $0, low;
            cvt.rn.f16x2.e4m3x2 $1, high;
            }
            """,
            "=r,=r,r",
            [x],
            dtype=tl.float16,
            is_pure=False,
            pack=4,
        )


@triton.jit
def value_weights(weights, scales):  # type: ignore[no-untyped-def]
    """Softmax weights [M, keys] times the values' scales [keys], for a product in float16.

    Times 64 too: of a token's values, whose greatest magnitude is 448 times their scale, float16
    then has full precision where that magnitude is between 1e-3 and 4e5. ``VALUE_UNIT`` undoes it.
    """
    return weights * (scales * 64.0)


VALUE_UNIT = tl.constexpr(1 / 64)
