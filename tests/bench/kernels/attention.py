"""Attention over a paged cache: decoding sequences and one prompt, in full and windowed layers.

The pages of a cache are shuffled, and the floor counts the keys and values that must be read (with
their scales where the cache is FP8) or, for a prompt, the products of the causal half. The peer is
FlashAttention-3 from vLLM's wheel, where it is installed: over the same pages and with the same
sinks and, for full prompts, also over keys without pages, which suit it best. It is timed only if
its result is ours. Else it is torch's flash attention for a full prompt, without sinks and pages.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from moeray.kernels.attention_decode import decode_attention
from moeray.kernels.attention_prefill import prefill_attention
from tests.bench.kernels import flash_attention_peer as flash_attention
from tests.bench.kernels.benchmark import Benchmark
from tests.bench.kernels.timing import Call, copies_for

HEADS, KV_HEADS, HEAD_DIM, WINDOW = 64, 8, 64, 128
DECODING = ((1, 1024), (1, 8192), (8, 1024), (8, 8192), (64, 1024), (64, 8192), (256, 1024))
PROMPTS = (1024, 8192)
MOST_DIFFERENCE = 1e-2
"""Of a peer's result from ours, relative, in the Frobenius norm: each rounds to bfloat16 twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """One call: sequences of one context each, of which the last ``rows`` are computed."""

    sequences: int
    context: int
    rows: int
    windowed: bool
    fp8: bool = False
    block_tokens: int = 16

    @property
    def keys(self) -> int:
        """That a sequence's rows see together."""
        return min(self.context, WINDOW - 1 + self.rows) if self.windowed else self.context

    @property
    def first_block(self) -> int:
        """Blocks before it are behind the window, and given away as an engine does."""
        return (self.context - self.keys) // self.block_tokens

    @property
    def held(self) -> int:
        """Tokens of a sequence that its blocks hold."""
        return self.context - self.first_block * self.block_tokens

    @property
    def bytes(self) -> int:
        token = KV_HEADS * (HEAD_DIM + 4 if self.fp8 else 2 * HEAD_DIM)
        queries = 2 * self.rows * HEADS * HEAD_DIM * 2
        return self.sequences * (2 * self.keys * token + queries)

    @property
    def flops(self) -> int:
        if self.rows == 1:
            pairs = self.keys
        else:
            pairs = self.rows * min(self.context // 2, WINDOW if self.windowed else self.context)
        return 4 * HEAD_DIM * HEADS * self.sequences * pairs

    @property
    def name(self) -> str:
        kind = "decode_attention" if self.rows == 1 else "prefill_attention"
        return f"{kind}{'_window' if self.windowed else ''}{'_fp8' if self.fp8 else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The tensors of one call, as of ``reference.paged_attention``."""

    sizes: Sizes
    queries: Tensor
    caches: dict[str, Tensor]
    row_starts: Tensor
    positions: Tensor
    block_table: Tensor
    first_blocks: Tensor
    sinks: Tensor
    counters: Tensor

    @classmethod
    def random(cls, sizes: Sizes, seed: int) -> "Inputs":
        generator = torch.Generator("cuda").manual_seed(seed)
        sequences, rows, context = sizes.sequences, sizes.rows, sizes.context
        columns = -(-sizes.held // sizes.block_tokens)
        shape = (1 + sequences * columns, sizes.block_tokens, KV_HEADS, HEAD_DIM)
        order = torch.randperm(sequences * columns, device="cuda", generator=generator)
        queries = torch.randn(
            (sequences * rows, HEADS, HEAD_DIM), device="cuda", generator=generator
        )
        positions = torch.arange(context - rows, context, device="cuda")
        return cls(
            sizes=sizes,
            queries=queries.bfloat16(),
            caches=_caches(shape, sizes.fp8, generator),
            row_starts=torch.arange(0, sequences * rows + 1, rows, device="cuda"),
            positions=positions.repeat(sequences),
            block_table=1 + order.view(sequences, columns),
            first_blocks=torch.full((sequences,), sizes.first_block, device="cuda"),
            sinks=torch.randn(HEADS, device="cuda", generator=generator).bfloat16(),
            counters=torch.zeros(sequences * KV_HEADS, dtype=torch.int32, device="cuda"),
        )

    def call(self) -> Callable[..., Tensor]:
        decoding = self.sizes.rows == 1
        return partial(
            partial(decode_attention, counters=self.counters) if decoding else prefill_attention,
            self.queries,
            row_starts=self.row_starts,
            positions=self.positions,
            block_table=self.block_table,
            first_blocks=self.first_blocks,
            sinks=self.sinks,
            scale=HEAD_DIM**-0.5,
            window=WINDOW if self.sizes.windowed else None,
            **self.caches,
        )

    def flash_attention_call(self, *, paged: bool) -> Callable[[], Tensor]:
        sizes = self.sizes
        keys, values = self.caches["key_cache"], self.caches["value_cache"]
        if not paged:
            keys, values = (cache[self.block_table].flatten(0, 2) for cache in (keys, values))
        return flash_attention.attention(
            self.queries,
            keys,
            values,
            rows=sizes.rows,
            lengths=torch.full((sizes.sequences,), sizes.held, device="cuda"),
            longest=sizes.held,
            block_table=self.block_table if paged else None,
            sinks=self.sinks,
            scale=HEAD_DIM**-0.5,
            window=WINDOW if sizes.windowed else None,
        )


def _caches(shape: tuple[int, ...], fp8: bool, generator: torch.Generator) -> dict[str, Tensor]:
    caches = {}
    for name in ("key", "value"):
        cache = torch.randn(shape, device="cuda", generator=generator, dtype=torch.bfloat16)
        caches[f"{name}_cache"] = cache.to(torch.float8_e4m3fn) if fp8 else cache
        if fp8:
            caches[f"{name}_scales"] = torch.ones(shape[:3], device="cuda")
    return caches


def benchmarks() -> Iterator[Benchmark]:
    for sequences, context in DECODING:
        for windowed, fp8 in ((False, False), (False, True), (True, False)):
            sizes = Sizes(sequences=sequences, context=context, rows=1, windowed=windowed, fp8=fp8)
            yield benchmark(sizes)
    for context in PROMPTS:
        for windowed, fp8 in ((False, False), (False, True), (True, False)):
            sizes = Sizes(sequences=1, context=context, rows=context, windowed=windowed, fp8=fp8)
            yield benchmark(sizes)
        if flash_attention.available():
            sizes = Sizes(sequences=1, context=context, rows=context, windowed=False)
            yield benchmark(sizes, paged_peer=False)


def benchmark(sizes: Sizes, *, paged_peer: bool = True) -> Benchmark:
    peer, theirs = _peer(sizes, paged_peer)
    return Benchmark(
        op=sizes.name,
        model="both",
        rows=sizes.sequences * sizes.rows,
        bytes=sizes.bytes,
        flops=sizes.flops,
        prepare=lambda: [inputs.call() for inputs in copies(sizes)],
        peer=peer,
        prepare_peer=theirs,
        note=f"context {sizes.context}, {sizes.flops / 1e9:.1f} GFLOP",
    )


def copies(sizes: Sizes) -> Iterator[Inputs]:
    """Enough inputs to take turns that no cache holds the next one's."""
    return (Inputs.random(sizes, seed) for seed in range(copies_for(sizes.bytes)))


def _peer(sizes: Sizes, paged: bool) -> tuple[str, Callable[[], Sequence[Call]] | None]:
    if flash_attention.available() and not sizes.fp8:
        name = f"{flash_attention.NAME}{'' if paged else ', no pages'}"
        return name, partial(_flash_attention_calls, sizes, name, paged)
    if sizes.rows > 1 and not sizes.windowed and not sizes.fp8:
        return "torch flash, no sinks", lambda: [_torch_call(sizes)]
    return "", None


def _flash_attention_calls(sizes: Sizes, name: str, paged: bool) -> Sequence[Call]:
    """None, and a line that says why, where the result is another than ours."""
    inputs = list(copies(sizes))
    what = f"{name}, {sizes.name}, {sizes.sequences} of {sizes.context}"
    try:
        calls = [each.flash_attention_call(paged=paged) for each in inputs]
        # The second of two, both held: one that leaves its schedule used up writes nothing then.
        ours, _, theirs = inputs[0].call()(), calls[0](), calls[0]()
    except RuntimeError as error:
        print(f"ERROR: {what}: {error}", file=sys.stderr, flush=True)
        return []
    difference = float((theirs.double() - ours.double()).norm() / ours.double().norm())
    right = difference < MOST_DIFFERENCE  # NaN is not
    verdict = f"relative difference from ours {difference:.1e}"
    print(f"{'' if right else 'ERROR: '}{what}: {verdict}", file=sys.stderr, flush=True)
    return calls if right else []


def _torch_call(sizes: Sizes) -> Call:
    shape = (1, HEADS, sizes.context, HEAD_DIM)
    query, key, value = torch.randn((3, *shape), device="cuda", dtype=torch.bfloat16)

    def call() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    return call
