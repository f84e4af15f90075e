"""Each plain-torch op against a formulation of another kind: scalar loops, complex numbers, tables
written out, or transformers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GptOssConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from moeray.kernels import reference as ops

GPT_OSS_YARN = {
    "head_dim": 64,
    "theta": 150000.0,
    "factor": 32.0,
    "original_context": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_rms_norm() -> None:
    x, weight = _randn(5, 24), _randn(24, seed=1)
    want = [
        [
            v * w / math.sqrt(sum(u * u for u in row) / 24 + 0.1)
            for v, w in zip(row, weight, strict=True)
        ]
        for row in x.double()
    ]
    torch.testing.assert_close(ops.rms_norm(x, weight, 0.1), torch.tensor(want).float())
    assert ops.rms_norm(x.bfloat16(), weight, 0.1).dtype == torch.bfloat16


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_yarn_equals_transformers(truncate: bool, head_dim: int) -> None:
    config = GptOssConfig(
        head_dim=head_dim,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": truncate,
            "original_max_position_embeddings": 4096,
        },
    )
    want, scaling = ROPE_INIT_FUNCTIONS["yarn"](config)
    got = ops.yarn_inverse_frequencies(**{**GPT_OSS_YARN, "head_dim": head_dim}, truncate=truncate)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    assert ops.yarn_attention_scaling(32.0) == pytest.approx(scaling)


def test_yarn_ends() -> None:
    """Fast dimensions keep RoPE's frequency; slow ones are slowed by the whole factor."""
    got = ops.yarn_inverse_frequencies(**GPT_OSS_YARN, truncate=False)
    plain = 150000.0 ** -(torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(got[:8], plain[:8])
    torch.testing.assert_close(got[-8:], plain[-8:] / 32)
    assert ops.yarn_attention_scaling(0.5) == 1.0


def test_rope_turns_complex_numbers() -> None:
    x, positions = _randn(4, 3, 16), torch.tensor([0, 1, 77, 130000])
    frequencies = torch.rand(8, generator=torch.Generator().manual_seed(2))
    cosine, sine = ops.rope_tables(positions, frequencies, 1.25)
    turns = torch.polar(torch.tensor(1.25), positions.float()[:, None] * frequencies)
    numbers = torch.complex(x[..., :8], x[..., 8:]) * turns[:, None]
    want = torch.cat((numbers.real, numbers.imag), dim=-1)
    torch.testing.assert_close(ops.apply_rope(x, cosine, sine), want)


def test_write_kv_fills_slots() -> None:
    keys, values = _randn(3, 2, 4), _randn(3, 2, 4, seed=1)
    key_cache, value_cache = torch.zeros(3, 2, 2, 4), torch.zeros(3, 2, 2, 4)
    ops.write_kv(keys, values, key_cache, value_cache, torch.tensor([5, 2, 3]))
    for row, (block, offset) in enumerate([(2, 1), (1, 0), (1, 1)]):
        assert torch.equal(key_cache[block, offset], keys[row])
        assert torch.equal(value_cache[block, offset], values[row])
    assert not key_cache[0].any()
    assert not value_cache[2, 0].any()


def _attention_by_hand(
    query: Tensor, keys: list[Tensor], values: list[Tensor], sink: float, scale: float
) -> Tensor:
    """One head of one row over the keys it sees."""
    scores = [float(query.double() @ key.double()) * scale for key in keys]
    total = math.exp(sink) + sum(math.exp(score) for score in scores)
    terms = [math.exp(s) / total * v.double() for s, v in zip(scores, values, strict=True)]
    return torch.stack(terms).sum(0).float()


@settings(deadline=None, max_examples=40)
@given(
    sequences=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 12)), max_size=5),
    window=st.one_of(st.none(), st.integers(1, 12)),
    padding=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_paged_attention(
    sequences: list[tuple[int, int]], window: int | None, padding: int, seed: int
) -> None:
    """Sequences of (context, rows at its end), scattered over shuffled blocks."""
    block, heads, groups, dim = 4, 2, 3, 8
    generator = torch.Generator().manual_seed(seed)
    sequences = [(context, min(context, rows)) for context, rows in sequences]
    counts = [rows for _, rows in sequences]
    columns = max((-(-context // block) for context, _ in sequences), default=0)
    key_cache = torch.randn(1 + 5 * 8, block, heads, dim, generator=generator)
    value_cache = torch.randn(1 + 5 * 8, block, heads, dim, generator=generator)
    free = (1 + torch.randperm(5 * 8, generator=generator)).tolist()
    table = torch.zeros(len(sequences), columns, dtype=torch.int32)
    firsts = torch.zeros(len(sequences), dtype=torch.int32)
    tables = []
    for s, (context, rows) in enumerate(sequences):
        blocks = {i: free.pop() for i in range(-(-context // block))}
        tables.append(blocks)
        if window is not None:
            firsts[s] = max(0, context - max(rows, 1) - window + 1) // block
        held = [blocks[i] for i in sorted(blocks) if i >= firsts[s]]
        table[s, : len(held)] = torch.tensor(held, dtype=torch.int32)
    rows = sum(counts) + padding
    queries = torch.randn(rows, heads * groups, dim, generator=generator)
    sinks = torch.randn(heads * groups, generator=generator)
    positions = [context - n + i for context, n in sequences for i in range(n)]
    owners = [s for s, n in enumerate(counts) for _ in range(n)]

    got = ops.paged_attention(
        queries,
        key_cache,
        value_cache,
        torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32),
        torch.tensor(positions + [0] * padding, dtype=torch.int32),
        table,
        firsts,
        sinks,
        scale=0.3,
        window=window,
    )

    want = torch.zeros_like(queries)
    for row, (s, position) in enumerate(zip(owners, positions, strict=True)):
        first = 0 if window is None else max(0, position - window + 1)
        places = [(tables[s][p // block], p % block) for p in range(first, position + 1)]
        for head in range(heads * groups):
            want[row, head] = _attention_by_hand(
                queries[row, head],
                [key_cache[b, o, head // groups] for b, o in places],
                [value_cache[b, o, head // groups] for b, o in places],
                float(sinks[head]),
                0.3,
            )
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert not got[len(positions) :].any()


def test_route() -> None:
    x, weight, bias = _randn(50, 12), _randn(16, 12, seed=1), _randn(16, seed=2)
    experts, weights = ops.route(x, weight, bias, 4)
    for row in range(50):
        logits = [
            float(x[row].double() @ w.double() + b) for w, b in zip(weight, bias, strict=True)
        ]
        best = sorted(range(16), key=lambda e: -logits[e])[:4]
        assert experts[row].tolist() == best
        powers = [math.exp(logits[e]) for e in best]
        assert weights[row].tolist() == pytest.approx([p / sum(powers) for p in powers], rel=1e-5)


def test_route_breaks_ties_by_lowest_id() -> None:
    experts, weights = ops.route(torch.ones(3, 4), torch.zeros(64, 4), torch.zeros(64), 4)
    assert experts.tolist() == [[0, 1, 2, 3]] * 3
    assert weights.tolist() == [[0.25] * 4] * 3


@pytest.mark.parametrize(
    ("gate", "up"), [(0.0, 1.0), (-9.0, -9.0), (9.0, 9.0), (1.5, -0.5), (6.99, -7.01)]
)
def test_clamped_swiglu(gate: float, up: float) -> None:
    g, u = min(gate, 7.0), max(-7.0, min(up, 7.0))
    want = g / (1 + math.exp(-1.702 * g)) * (u + 1)
    got = ops.clamped_swiglu(torch.tensor([5.0, 0.0, gate, up]), limit=7.0, alpha=1.702)
    assert got[1].item() == pytest.approx(want, rel=1e-5)


E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dequantize_mxfp4_by_table(dtype: torch.dtype) -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(2, 8, 16)
    scales = torch.tensor([120, 121, 127, 128, 1, 254, 100, 140], dtype=torch.uint8).repeat(2, 1)
    got = ops.dequantize_mxfp4(blocks, scales, dtype)
    assert got.shape == (2, 8 * 32)
    for byte in range(256):
        scale = 2.0 ** (int(scales.flatten()[byte // 16]) - 127)
        low, high = got.flatten()[2 * byte].item(), got.flatten()[2 * byte + 1].item()
        for value, nibble in ((low, byte & 15), (high, byte >> 4)):
            want = torch.tensor(E2M1[nibble] * scale, dtype=dtype).item()
            assert value == want
            assert math.copysign(1, value) == math.copysign(1, want)


def test_dequantize_mxfp4_equals_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 10, 4, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(90, 140, (3, 10, 4), dtype=torch.uint8, generator=generator)
    want = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)
    assert torch.equal(ops.dequantize_mxfp4(blocks, scales, torch.float32), want)


@pytest.mark.parametrize(("first", "held"), [(0, 16), (4, 8), (14, 2)])
def test_expert_outputs(first: int, held: int) -> None:
    rows, hidden, width, top_k = 9, 64, 32, 3
    generator = torch.Generator().manual_seed(5)

    def packed(*shape: int) -> tuple[Tensor, Tensor]:
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(120, 126, shape, dtype=torch.uint8, generator=generator)
        return blocks, scales

    gate_up, gate_up_scales = packed(held, 2 * width, hidden // 32)
    down, down_scales = packed(held, hidden, width // 32)
    gate_up_bias = torch.randn(held, 2 * width, generator=generator)
    down_bias = torch.randn(held, hidden, generator=generator)
    x = torch.randn(rows, hidden, generator=generator)
    experts = torch.stack([torch.randperm(16, generator=generator)[:top_k] for _ in range(rows)])

    got = ops.expert_outputs(
        x,
        experts,
        gate_up,
        gate_up_scales,
        gate_up_bias,
        down,
        down_scales,
        down_bias,
        first_expert=first,
        limit=7.0,
        alpha=1.702,
    )

    wide = ops.dequantize_mxfp4(gate_up, gate_up_scales, torch.float32)
    narrow = ops.dequantize_mxfp4(down, down_scales, torch.float32)
    for row in range(rows):
        for slot in range(top_k):
            e = int(experts[row, slot]) - first
            want = torch.zeros(hidden)
            if 0 <= e < held:
                inner = wide[e] @ x[row] + gate_up_bias[e]
                gate, up = inner[0::2].clamp(max=7), inner[1::2].clamp(-7, 7)
                want = narrow[e] @ (gate / (1 + (-1.702 * gate).exp()) * (up + 1)) + down_bias[e]
            torch.testing.assert_close(got[row, slot], want, rtol=1e-4, atol=1e-4)
