"""Every op of the model in plain torch: what the fast kernels are held against.

Rules: tensors in, tensors out, no state. Runs on any device and in any floating dtype; sums that
decide something (norms, softmax, routing, the experts' combination) are float32, or float64 where
the inputs are: then it is the truth that kernels are measured by. Each function here keeps its
signature when a Triton op of the same name joins it.

Letters in shapes: R rows, S sequences, H hidden, D head dimension, Hq query heads, Hkv key-value
heads, E experts, I expert width, k experts per row.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

MXFP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of e2m1 by their low three bits; bit 3 is the sign (OCP MX specification 1.0)."""
MXFP4_BLOCK = 32
"""Values that share one e8m0 scale."""
_E8M0_BIAS = 127
_E4M3_MOST = 448.0
_EXPERTS_AT_ONCE = 8
"""Whose weights are dequantised together: fewer, larger steps, in bounded memory."""


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm (Zhang and Sennrich, 2019) of x [R, H], scaled by weight [H].

    Computed in float32; returns [R, H] in x's dtype.
    """
    wide = at_least_float32(x)
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (scaled * at_least_float32(weight)).to(x.dtype)


def yarn_inverse_frequencies(
    *,
    head_dim: int,
    theta: float,
    factor: float,
    original_context: int,
    beta_fast: float,
    beta_slow: float,
    truncate: bool,
) -> Tensor:
    """Inverse frequencies [D / 2], float32, of YaRN (Peng et al., 2023, section 3.2).

    Dimensions that turn more than beta_fast times within the original context keep RoPE's
    frequency, those below beta_slow turns are slowed by ``factor``, with a linear ramp between.
    ``truncate`` rounds the ramp's ends outward to whole dimensions (gpt-oss does not).
    """

    def dimension_of(turns: float) -> float:
        return head_dim * math.log(original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(beta_fast), dimension_of(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    periods = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return ramp / (factor * periods) + (1 - ramp) / periods


def yarn_attention_scaling(factor: float) -> float:
    """What YaRN multiplies cosine and sine by: 0.1 ln(factor) + 1 (section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0


def rope_tables(
    positions: Tensor, inverse_frequencies: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Cosine and sine [R, D / 2], float32, for positions [R] (any integer dtype)."""
    angles = positions.to(torch.float32)[:, None] * inverse_frequencies
    return angles.cos() * scaling, angles.sin() * scaling


def apply_rope(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotates x [R, heads, D] by the tables [R, D / 2]; the halves of D pair up (GPT-NeoX order).

    Computed in float32; returns x's shape and dtype.
    """
    first, second = at_least_float32(x).chunk(2, dim=-1)
    cosine, sine = cosine[:, None], sine[:, None]
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return turned.to(x.dtype)


def write_kv(
    keys: Tensor,
    values: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    *,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> None:
    """Stores keys and values [R, Hkv, D] in the caches [blocks, block_tokens, Hkv, D], in place.

    slots [R] int64 is block * block_tokens + offset. Rows that share a slot (padding, in the
    scratch block 0) leave any one of theirs. With key_scales and value_scales [blocks,
    block_tokens, Hkv], which are written too, a token's head is stored as e4m3 values times its
    scale: its greatest magnitude / 448 (e4m3's greatest), or 1 where that is 0.
    """
    for rows, pages, scales in (keys, key_cache, key_scales), (values, value_cache, value_scales):
        stored = rows
        if scales is not None:
            wide = at_least_float32(rows)
            scale = wide.abs().amax(-1) / _E4M3_MOST
            scale = scale.where(scale > 0, 1)
            scales.flatten(0, 1).index_copy_(0, slots, scale.to(scales.dtype))
            stored = (wide / scale[..., None]).to(torch.float8_e4m3fn)
        stored = stored.to(pages.dtype)
        if pages.dtype == torch.float8_e4m3fn:  # whose elements torch cannot index everywhere
            pages, stored = pages.view(torch.uint8), stored.view(torch.uint8)
        pages.flatten(0, 1).index_copy_(0, slots, stored)


def paged_attention(
    queries: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    row_starts: Tensor,
    positions: Tensor,
    block_table: Tensor,
    first_blocks: Tensor,
    sinks: Tensor,
    *,
    scale: float,
    window: int | None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    """Causal attention over a paged cache with one learned sink logit per head.

    queries [R, Hq, D]; caches [blocks, block_tokens, Hkv, D]; query head h reads key-value head
    h // (Hq / Hkv). row_starts [S + 1]: sequence s owns rows row_starts[s] to row_starts[s + 1];
    rows from row_starts[S] on are padding and give zeros. positions [R]; block_table [S, C], whose
    column c holds positions (first_blocks[s] + c) * block_tokens on; first_blocks [S]. Integer
    tensors are of any integer dtype. sinks [Hq] join the softmax's denominator only (gpt-oss;
    Xiao et al., 2023). A row at position p sees positions j <= p and, with a window, j > p -
    window. Scores and sums are float32; returns [R, Hq, D] in queries' dtype. key_scales and
    value_scales [blocks, block_tokens, Hkv] multiply what the caches hold, as in ``write_kv``.
    """
    out = torch.zeros_like(queries)
    block_tokens = key_cache.shape[1]
    for rows_each, columns, chosen in _alike(row_starts, positions, first_blocks, block_tokens):
        offsets = torch.arange(rows_each, device=queries.device)
        rows = row_starts[chosen, None] + offsets
        table = block_table[chosen, :columns]
        out[rows] = _attend(
            queries[rows],
            _gather_blocks(key_cache, key_scales, table),
            _gather_blocks(value_cache, value_scales, table),
            positions[rows],
            first_blocks[chosen] * block_tokens,
            sinks,
            scale=scale,
            window=window,
        ).to(out.dtype)
    return out


def _alike(
    row_starts: Tensor, positions: Tensor, first_blocks: Tensor, block_tokens: int
) -> Iterator[tuple[int, int, Tensor]]:
    """Sequences that can be computed at once: (rows of each, table columns to read, sequences).

    They have equally many rows, and their contexts fill more than half of the columns, so that one
    long context does not make every other one as long.
    """
    alike: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    starts, first = row_starts.tolist(), first_blocks.tolist()
    place = positions.tolist()
    for s, (start, end) in enumerate(pairwise(starts)):
        if end > start:
            used = place[end - 1] // block_tokens - first[s] + 1
            alike[end - start, 1 << (used - 1).bit_length()].append(s)
    for (rows_each, columns), chosen in alike.items():
        yield rows_each, columns, torch.tensor(chosen, device=row_starts.device)


def _gather_blocks(cache: Tensor, scales: Tensor | None, table: Tensor) -> Tensor:
    """[G, C] block ids to [G, C * block_tokens, Hkv, D], times their scales if there are any."""
    if scales is None:
        return cache[table.long()].flatten(1, 2)
    blocks = cache.view(torch.uint8)[table.long()].view(cache.dtype)
    return at_least_float32(blocks.flatten(1, 2)) * scales[table.long()].flatten(1, 2)[..., None]


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    first_positions: Tensor,
    sinks: Tensor,
    *,
    scale: float,
    window: int | None,
) -> Tensor:
    """queries [G, n, Hq, D], keys and values [G, T, Hkv, D], positions [G, n] -> [G, n, Hq, D]."""
    sequences, rows, query_heads, head_dim = queries.shape
    heads = keys.shape[2]
    # Query heads of one key-value head side by side: [G, Hkv, group * n, D].
    wide = at_least_float32(queries)
    grouped = wide.view(sequences, rows, heads, -1, head_dim).permute(0, 2, 3, 1, 4)
    scores = grouped.flatten(2, 3) @ keys.to(wide.dtype).permute(0, 2, 3, 1) * scale
    scores = scores.view(sequences, query_heads, rows, -1)
    seen = first_positions[:, None] + torch.arange(keys.shape[1], device=keys.device)
    hidden = seen[:, None, :] > positions[:, :, None]
    if window is not None:
        hidden |= seen[:, None, :] <= positions[:, :, None] - window
    scores = scores.masked_fill(hidden[:, None], -math.inf)
    sink = sinks.to(wide.dtype)[None, :, None, None].expand(sequences, -1, rows, 1)
    weights = torch.cat((scores, sink), dim=-1).softmax(-1)[..., :-1]
    # A weight of 0 does not silence NaN, which a block's last owner may have left there.
    unseen = hidden.all(1)[:, :, None, None]
    read = values.to(wide.dtype).masked_fill(unseen, 0).transpose(1, 2)
    mixed = weights.reshape(sequences, heads, -1, keys.shape[1]) @ read
    return mixed.view(sequences, query_heads, rows, head_dim).transpose(1, 2)


def route(x: Tensor, weight: Tensor, bias: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The k experts of each row of x [R, H], with router weight [E, H] and bias [E].

    Returns (experts [R, k] int64, best first, equal logits by lowest id; weights [R, k] float32,
    the softmax over those k logits). Logits are float32.
    """
    logits = F.linear(*(at_least_float32(tensor) for tensor in (x, weight, bias)))
    ordered, experts = logits.sort(dim=-1, descending=True, stable=True)
    return experts[:, :top_k], ordered[:, :top_k].softmax(-1)


def clamped_swiglu(gate_up: Tensor, *, limit: float, alpha: float) -> Tensor:
    """gpt-oss's SwiGLU over interleaved gate_up [..., 2 I] (gate first); returns [..., I].

    gate <= limit, -limit <= up <= limit, and the result is gate sigmoid(alpha gate) (up + 1).
    """
    gate = gate_up[..., ::2].clamp(max=limit)
    up = gate_up[..., 1::2].clamp(min=-limit, max=limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


def dequantize_mxfp4(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """MXFP4 blocks [..., n / 32, 16] and e8m0 scales [..., n / 32], uint8, to values [..., n].

    A byte holds two e2m1 values, the earlier one in its low nibble; the scale is
    2 ** (byte - 127). Exact in float32 and bfloat16 (OCP MX specification 1.0).
    """
    if dtype == torch.float64:
        return dequantize_mxfp4(blocks, scales, torch.float32).double()
    pairs = _mxfp4_pairs(dtype, blocks.device).index_select(0, blocks.flatten().int())
    values = pairs.view(dtype).view(*scales.shape, MXFP4_BLOCK)
    ones = torch.ones(scales.shape, dtype=torch.float32, device=scales.device)
    values *= torch.ldexp(ones, scales.int() - _E8M0_BIAS).to(dtype)[..., None]
    return values.flatten(-2)


@cache
def _mxfp4_pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """[256]: entry b holds the bits of two values, of byte b's low and high nibble.

    As one integer, because looking up two values at once takes half the time.
    """
    magnitudes = torch.tensor(MXFP4_VALUES, dtype=dtype, device=device)
    values = torch.cat((magnitudes, -magnitudes))
    pairs = torch.cartesian_prod(values, values).flip(-1).contiguous()
    return pairs.view(torch.int64 if dtype.itemsize == 4 else torch.int32)[:, 0]


def mxfp4_grouped_linear(
    x: Tensor, counts: Tensor, blocks: Tensor, scales: Tensor, bias: Tensor
) -> Tensor:
    """Each row of x through its own expert's linear layer; rows are sorted by expert.

    x [n, in]; counts [e] rows of each expert, adding up to n; blocks [e, out, in / 32, 16] and
    scales [e, out, in / 32] uint8; bias [e, out]. Returns [n, out] in x's dtype. The weights of
    experts without rows are not touched; the others are dequantised a few at a time.
    """
    out = x.new_empty(x.shape[0], bias.shape[1])
    starts = [0, *accumulate(counts.tolist())]
    hit = [e for e in range(len(counts)) if starts[e] < starts[e + 1]]
    for first in range(0, len(hit), _EXPERTS_AT_ONCE):
        chosen = hit[first : first + _EXPERTS_AT_ONCE]
        weights = dequantize_mxfp4(blocks[chosen], scales[chosen], x.dtype)
        for weight, e in zip(weights, chosen, strict=True):
            rows = slice(starts[e], starts[e + 1])
            out[rows] = F.linear(x[rows], weight, bias[e])
    return out


def expert_outputs(
    x: Tensor,
    experts: Tensor,
    gate_up_blocks: Tensor,
    gate_up_scales: Tensor,
    gate_up_bias: Tensor,
    down_blocks: Tensor,
    down_scales: Tensor,
    down_bias: Tensor,
    *,
    first_expert: int,
    limit: float,
    alpha: float,
) -> Tensor:
    """What each chosen expert makes of each row, for the experts held here.

    x [R, H]; experts [R, k] int64, ids among all E. Held are ids first_expert to first_expert + e:
    gate_up_blocks [e, 2 I, H / 32, 16], gate_up_scales [e, 2 I, H / 32], gate_up_bias [e, 2 I];
    down_blocks [e, H, I / 32, 16], down_scales [e, H, I / 32], down_bias [e, H].
    Returns [R, k, H] in x's dtype; zeros where the chosen expert is not held.
    """
    rows, top_k = experts.shape
    held = gate_up_blocks.shape[0]
    local = experts.flatten() - first_expert
    here = ((local >= 0) & (local < held)).nonzero().flatten()
    order = here[local[here].argsort(stable=True)]
    counts = local[here].bincount(minlength=held)
    hidden = mxfp4_grouped_linear(
        x[order // top_k], counts, gate_up_blocks, gate_up_scales, gate_up_bias
    )
    hidden = clamped_swiglu(hidden, limit=limit, alpha=alpha)
    out = x.new_zeros(rows * top_k, x.shape[1])
    out[order] = mxfp4_grouped_linear(hidden, counts, down_blocks, down_scales, down_bias)
    return out.view(rows, top_k, -1)


def expert_group_sums(
    outputs: Tensor, experts: Tensor, weights: Tensor, *, group_experts: int, first: int, last: int
) -> Tensor:
    """Weighted sums of the experts' outputs by expert group, for groups first to last - 1.

    outputs [R, k, H]; experts [R, k] int64; weights [R, k] float32; group g holds experts
    g * group_experts to (g + 1) * group_experts. Returns [last - first, R, H] float32. Inside a
    group the terms of a row are added one by one in expert order, from zero.
    """
    rows, top_k, hidden = outputs.shape
    ordered, slots = experts.sort(dim=-1)
    terms = weights[..., None] * at_least_float32(outputs)
    terms = terms.gather(1, slots[..., None].expand(-1, -1, hidden))
    groups = ordered // group_experts - first
    # Terms of other ranks' groups end up in one more sum that is dropped.
    groups = groups.where((groups >= 0) & (groups < last - first), last - first)
    sums = terms.new_zeros(last - first + 1, rows, hidden)
    every_row = torch.arange(rows, device=outputs.device)
    for j in range(top_k):
        sums[groups[:, j], every_row] += terms[:, j]
    return sums[:-1]


def tree_sum(parts: Tensor) -> Tensor:
    """Adds parts [n, ...], n a power of two, in one fixed binary tree: adjacent pairs first.

    Where each rank holds an aligned run of n / ranks groups, a rank's tree_sum is a node of the
    tree over all groups, so the tree_sum of the ranks' sums equals the one over all groups bit for
    bit.
    """
    while parts.shape[0] > 1:
        parts = parts[0::2] + parts[1::2]
    return parts[0]


def combine(
    outputs: Tensor, experts: Tensor, weights: Tensor, *, group_experts: int, first: int, last: int
) -> Tensor:
    """The subtree sum [R, H], float32, of expert groups first to last - 1.

    Arguments as for expert_group_sums. With all groups it is the experts' weighted sum.
    """
    return tree_sum(
        expert_group_sums(
            outputs, experts, weights, group_experts=group_experts, first=first, last=last
        )
    )
