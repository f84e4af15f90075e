"""The fused ops in plain torch: the ops of ``reference`` put together, under the names and
signatures of the kernels that fuse them.

Rules as there: any device, any floating dtype, and float64 where the inputs are.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from moeray.kernels import reference as ops


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMSNorm of x + residual, and that sum: both [R, H] in x's dtype."""
    summed = x + residual
    return ops.rms_norm(summed, weight, eps), summed


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x weight^T + bias + residual, in ``out_dtype``, by default x's; [R, out]."""
    out = F.linear(*(ops.at_least_float32(tensor) for tensor in (x, weight)))
    for added in (bias, residual):
        if added is not None:
            out = out + ops.at_least_float32(added)
    return out if out.dtype == torch.float64 else out.to(out_dtype or x.dtype)


def norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``linear`` of the RMSNorm of x."""
    return linear(ops.rms_norm(x, norm_weight, eps), weight, bias, out_dtype=out_dtype)


def qkv_rope_write(
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    *,
    query_heads: int,
    bias: Tensor | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    """Rotates queries and keys of qkv [R, (Hq + 2 Hkv) D], stores keys and values, returns the
    queries [R, Hq, D].
    """
    heads, dim = key_cache.shape[2:]
    biased = qkv if bias is None else ops.at_least_float32(qkv) + bias
    queries, keys, values = biased.view(len(qkv), -1, dim).split([query_heads, heads, heads], 1)
    queries, keys = (ops.apply_rope(part, cosine, sine) for part in (queries, keys))
    ops.write_kv(
        keys,
        values,
        key_cache,
        value_cache,
        slots,
        key_scales=key_scales,
        value_scales=value_scales,
    )
    return queries.to(qkv.dtype)


def qkv_projection(
    x: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor,
    cosine: Tensor,
    sine: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    *,
    query_heads: int,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    """``norm_linear``, then ``qkv_rope_write``; returns the queries [R, Hq, D]."""
    return qkv_rope_write(
        norm_linear(x, norm_weight, eps, weight, bias),
        cosine,
        sine,
        key_cache,
        value_cache,
        slots,
        query_heads=query_heads,
        key_scales=key_scales,
        value_scales=value_scales,
    )
