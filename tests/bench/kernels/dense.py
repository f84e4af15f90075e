"""Norms, few-row linear layers and QKV at gpt-oss's sizes, which both models share."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from moeray.kernels.linear import linear, norm_linear
from moeray.kernels.norm import add_rms_norm
from moeray.kernels.qkv import qkv_rope_write
from moeray.kernels.qkv_projection import qkv_projection
from tests.bench.kernels.benchmark import Benchmark
from tests.bench.kernels.timing import Call, copies_for

HIDDEN = 2880
QUERY_HEADS, KV_HEADS, HEAD_DIM = 64, 8, 64
QKV = (QUERY_HEADS + 2 * KV_HEADS) * HEAD_DIM
VOCABULARY = 201088
BLOCK_TOKENS = 16
EPS = 1e-5
FEW = (1, 2, 4, 8)


def benchmarks() -> Iterator[Benchmark]:
    for rows in (*FEW, 1024, 8192):
        yield _add_rms_norm(rows)
    for rows in FEW:
        yield _linear("linear qkv", rows, HIDDEN, QKV, norm=False)
        yield _linear("norm_linear qkv", rows, HIDDEN, QKV, norm=True)
        yield _linear("linear output projection", rows, QUERY_HEADS * HEAD_DIM, HIDDEN, norm=False)
        yield _linear("linear unembedding", rows, HIDDEN, VOCABULARY, norm=False)
        yield _linear("norm_linear unembedding", rows, HIDDEN, VOCABULARY, norm=True)
    for rows in FEW:
        yield _qkv_projection(rows)
    for rows in (1024, 8192):
        yield _qkv_rope_write(rows)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def _calls(bytes_each: int, prepare: Callable[[], Call]) -> Callable[[], Sequence[Call]]:
    """``prepare`` makes one call on inputs of its own."""
    return lambda: [prepare() for _ in range(copies_for(bytes_each))]


def _add_rms_norm(rows: int) -> Benchmark:
    moved = (4 * rows + 1) * HIDDEN * 2

    def call() -> Call:
        x, residual, weight = normal(rows, HIDDEN), normal(rows, HIDDEN), normal(HIDDEN)
        return lambda: add_rms_norm(x, residual, weight, EPS)

    return Benchmark(
        op="add_rms_norm", model="20b", rows=rows, bytes=moved, flops=0, prepare=_calls(moved, call)
    )


def _linear(op: str, rows: int, in_features: int, out_features: int, *, norm: bool) -> Benchmark:
    """The unembedding has no bias and float32 outputs; the output projection adds a residual."""
    weight_bytes = in_features * out_features * 2
    unembedding = out_features == VOCABULARY
    out_dtype = torch.float32 if unembedding else torch.bfloat16
    added = not unembedding and not norm and out_features == HIDDEN

    def ours() -> Call:
        x, weight, gain = (
            normal(rows, in_features),
            normal(out_features, in_features),
            normal(in_features),
        )
        bias = None if unembedding else normal(out_features)
        residual = normal(rows, out_features) if added else None
        if norm:
            return lambda: norm_linear(x, gain, EPS, weight, bias, out_dtype=out_dtype)
        return lambda: linear(x, weight, bias, residual, out_dtype=out_dtype)

    def theirs() -> Call:
        x, weight = normal(rows, in_features), normal(out_features, in_features)
        bias = None if unembedding else normal(out_features)
        return lambda: F.linear(x, weight, bias)

    out_bytes = rows * out_features * (out_dtype.itemsize + (2 if added else 0))
    return Benchmark(
        op=op,
        model="20b",
        rows=rows,
        bytes=weight_bytes + rows * in_features * 2 + out_bytes,
        flops=2 * rows * in_features * out_features,
        prepare=_calls(weight_bytes, ours),
        peer="cuBLAS",
        prepare_peer=_calls(weight_bytes, theirs),
    )


def caches(rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tables, caches, and slots as of so many sequences of some blocks each."""
    blocks = 2 * -(-rows // BLOCK_TOKENS) + 1
    shape = (blocks, BLOCK_TOKENS, KV_HEADS, HEAD_DIM)
    angles = torch.rand(rows, HEAD_DIM // 2, device="cuda")
    slots = torch.randperm(blocks * BLOCK_TOKENS, device="cuda")[:rows]
    return angles.cos(), angles.sin(), normal(*shape), normal(*shape), slots


def _qkv_projection(rows: int) -> Benchmark:
    weight_bytes = QKV * HIDDEN * 2

    def ours() -> Call:
        x, gain = normal(rows, HIDDEN), normal(HIDDEN)
        weight, bias = normal(QKV, HIDDEN), normal(QKV)
        rest = caches(rows)
        return lambda: qkv_projection(x, gain, EPS, weight, bias, *rest, query_heads=QUERY_HEADS)

    def theirs() -> Call:
        x, weight, bias = normal(rows, HIDDEN), normal(QKV, HIDDEN), normal(QKV)
        return lambda: F.linear(x, weight, bias)

    return Benchmark(
        op="qkv_projection",
        model="20b",
        rows=rows,
        bytes=weight_bytes + rows * (HIDDEN + QKV) * 2,
        flops=2 * rows * QKV * HIDDEN,
        prepare=_calls(weight_bytes, ours),
        peer="cuBLAS, product only",
        prepare_peer=_calls(weight_bytes, theirs),
    )


def _qkv_rope_write(rows: int) -> Benchmark:
    moved = rows * (2 * QKV * 2 + HEAD_DIM * 4 + 8)

    def call() -> Call:
        qkv, bias, rest = normal(rows, QKV), normal(QKV), caches(rows)
        return lambda: qkv_rope_write(qkv, *rest, query_heads=QUERY_HEADS, bias=bias)

    return Benchmark(
        op="qkv_rope_write",
        model="20b",
        rows=rows,
        bytes=moved,
        flops=0,
        prepare=_calls(moved, call),
    )
