"""Cases of attention over a paged cache, whose unused elements are NaN."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from moeray.kernels import reference
from moeray.kernels.attention_decode import DecodeConfig, decode_attention
from moeray.kernels.attention_prefill import PrefillConfig, paged_attention, prefill_attention
from tests.kernels.op_cases import Draw, OpCase, Outputs

TINY = {"query_heads": 8, "kv_heads": 4, "head_dim": 32}
GPT_OSS = {"query_heads": 64, "kv_heads": 8, "head_dim": 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Paged:
    """Sequences as (context, rows at its end), whose blocks lie shuffled in a cache."""

    sequences: tuple[tuple[int, int], ...]
    query_heads: int
    kv_heads: int
    head_dim: int
    block_tokens: int = 16
    window: int | None = None
    fp8: bool = False
    padding: int = 0
    """Rows behind the last sequence's."""
    spare_columns: int = 1
    """Of the block table, for no sequence."""
    integers: torch.dtype = torch.int64

    def arguments(self, draw: Draw) -> dict[str, Any]:
        firsts = [self._first_block(context, rows) for context, rows in self.sequences]
        ends = [-(-context // self.block_tokens) for context, _ in self.sequences]
        columns = max((e - f for f, e in zip(firsts, ends, strict=True)), default=0)
        blocks = 2 + sum(e - f for f, e in zip(firsts, ends, strict=True))
        caches = self._caches(blocks, draw)
        free = iter((1 + draw.permutation(blocks - 1)).tolist())
        nowhere = next(free)  # what unused columns name: a block of NaN
        table = torch.full((len(self.sequences), columns + self.spare_columns), nowhere)
        used = torch.zeros(blocks * self.block_tokens, dtype=torch.bool)
        for s, (context, _) in enumerate(self.sequences):
            for c in range(ends[s] - firsts[s]):
                table[s, c] = block = next(free)
                tokens = min(self.block_tokens, context - (firsts[s] + c) * self.block_tokens)
                used[block * self.block_tokens :][:tokens] = True
        unused = ~used.view(blocks, self.block_tokens).to(draw.device)
        for cache in caches.values():
            _fill_with_nan(cache, unused)
        rows = sum(rows for _, rows in self.sequences) + self.padding
        starts = [0, *accumulate(rows for _, rows in self.sequences)]
        positions = [
            context - rows + i for context, rows in self.sequences for i in range(rows)
        ] + [0] * self.padding
        integers = {
            "row_starts": starts,
            "positions": positions,
            "block_table": table,
            "first_blocks": firsts,
        }
        return {
            "queries": draw.normal(rows, self.query_heads, self.head_dim),
            **caches,
            **{
                name: torch.as_tensor(numbers).to(self.integers).to(draw.device)
                for name, numbers in integers.items()
            },
            "sinks": draw.normal(self.query_heads),
            "scale": self.head_dim**-0.5,
            "window": self.window,
        }

    def _first_block(self, context: int, rows: int) -> int:
        """Blocks before it are behind every row's window, and given away."""
        if self.window is None:
            return 0
        return max(0, context - max(rows, 1) - self.window + 1) // self.block_tokens

    def _caches(self, blocks: int, draw: Draw) -> dict[str, Tensor]:
        shape = (blocks, self.block_tokens, self.kv_heads, self.head_dim)
        caches = {"key_cache": draw.normal(*shape), "value_cache": draw.normal(*shape)}
        if not self.fp8:
            return caches
        caches = {name: cache.to(torch.float8_e4m3fn) for name, cache in caches.items()}
        for name in ("key_scales", "value_scales"):
            caches[name] = draw.normal(*shape[:3], dtype=torch.float32).exp()
        return caches


def _fill_with_nan(cache: Tensor, unused: Tensor) -> None:
    if cache.dtype == torch.float8_e4m3fn:
        cache.view(torch.uint8)[unused] = 0x7F
    else:
        cache[unused] = torch.nan


def _case(name: str, op: Callable[..., Outputs], paged: Paged) -> OpCase:
    return OpCase(name=name, op=op, reference=reference.paged_attention, arguments=paged.arguments)


def _ones(*contexts: int) -> tuple[tuple[int, int], ...]:
    """Decoding sequences."""
    return tuple((context, 1) for context in contexts)


def _split(splits: int, block_keys: int = 16, least_tiles: int = 1) -> Callable[..., Outputs]:
    config = DecodeConfig(
        block_keys=block_keys, splits=splits, least_tiles=least_tiles, warps=4, stages=3
    )
    return partial(decode_attention, config=config)


def _tiled(
    tile_queries: int, block_keys: int, sequences_at_once: int = 256
) -> Callable[..., Outputs]:
    config = PrefillConfig(
        tile_queries=tile_queries,
        block_keys=block_keys,
        warps=4,
        stages=3,
        sequences_at_once=sequences_at_once,
    )
    return partial(prefill_attention, config=config)


def _decode_cases() -> list[OpCase]:
    page_edges = _ones(1, 15, 16, 17, 33)
    window = {**TINY, "window": 16}
    one_head = {"query_heads": 2, "kv_heads": 2, "head_dim": 16}
    three_heads = {"query_heads": 6, "kv_heads": 2, "head_dim": 16}
    return [
        _case("decode", decode_attention, Paged(sequences=page_edges, **TINY)),
        _case("decode-fp8", decode_attention, Paged(sequences=page_edges, fp8=True, **TINY)),
        _case(
            "decode-window",
            decode_attention,
            Paged(sequences=_ones(1, 16, 17, 32, 47, 100), **window),
        ),
        _case("decode-splits", _split(3), Paged(sequences=_ones(1, 50, 16, 80, 33), **TINY)),
        _case("decode-many-splits", _split(19), Paged(sequences=_ones(400, 3), **one_head)),
        _case(
            "decode-splits-fp8-window",
            _split(2),
            Paged(sequences=_ones(70, 9), fp8=True, **{**window, "window": 40}),
        ),
        _case(
            "decode-big-pages",
            _split(2, 16, 2),
            Paged(sequences=_ones(130, 60), block_tokens=128, integers=torch.int32, **TINY),
        ),
        _case(
            "decode-padded",
            partial(paged_attention, rows_each=1),
            Paged(sequences=(*_ones(20, 5), (9, 0)), padding=2, **one_head),
        ),
        _case("decode-group-of-3", decode_attention, Paged(sequences=_ones(40), **three_heads)),
        _case("decode-nothing", decode_attention, Paged(sequences=(), padding=2, **TINY)),
    ]


def _prefill_cases() -> list[OpCase]:
    ragged = ((37, 37), (20, 1), (9, 0), (50, 13), (16, 16))
    one_head = {"query_heads": 2, "kv_heads": 2, "head_dim": 16}
    three_heads = {"query_heads": 6, "kv_heads": 2, "head_dim": 16}
    op = _tiled(16, 16)
    return [
        _case("prefill", op, Paged(sequences=ragged, padding=11, **TINY)),
        _case("prefill-default", paged_attention, Paged(sequences=ragged, **TINY)),
        _case("prefill-fp8", op, Paged(sequences=ragged, fp8=True, **TINY)),
        _case("prefill-window", op, Paged(sequences=ragged, window=8, padding=1, **TINY)),
        _case("prefill-window-of-1", op, Paged(sequences=((20, 9),), window=1, **TINY)),
        _case(
            "prefill-window-fp8",
            _tiled(32, 32),
            Paged(sequences=((90, 40), (31, 2)), window=33, fp8=True, **TINY),
        ),
        _case(
            "prefill-big-pages",
            op,
            Paged(sequences=((140, 7), (3, 3)), block_tokens=128, integers=torch.int32, **TINY),
        ),
        _case("prefill-group-of-1", op, Paged(sequences=((40, 33),), **one_head)),
        _case("prefill-group-of-3", op, Paged(sequences=((30, 11), (6, 2)), **three_heads)),
        _case(
            "prefill-sequences-in-turn",
            _tiled(16, 16, sequences_at_once=2),
            Paged(sequences=((3, 0), (5, 3), (9, 0), (20, 17), (2, 2)), padding=1, **one_head),
        ),
        _case("prefill-nothing", op, Paged(sequences=((9, 0),), padding=3, **TINY)),
    ]


def _full_size_cases() -> list[OpCase]:
    """gpt-oss's heads, which 20b and 120b share."""
    decoding = _ones(1, 8192, 127, 128, 129, 1000, 3071, 4097)
    ragged = ((1500, 1500), (4096, 513), (700, 0), (129, 1), (2048, 129), (64, 64))
    cases = []
    for window in (None, 128):
        for fp8 in (False, True):
            kind = f"{'full' if window is None else 'window'}{'-fp8' if fp8 else ''}"
            for block_tokens in (16, 64):
                paged = partial(Paged, window=window, fp8=fp8, block_tokens=block_tokens, **GPT_OSS)
                name = f"{kind}-{block_tokens}-gpt-oss"
                cases += [
                    _case(
                        f"decode-{name}",
                        partial(paged_attention, rows_each=1),
                        paged(sequences=decoding, padding=1),
                    ),
                    _case(
                        f"prefill-{name}",
                        paged_attention,
                        paged(sequences=ragged, padding=77),
                    ),
                ]
    many = _ones(*(17 * i % 3000 + 1 for i in range(256)))
    cases += [
        _case("decode-1-gpt-oss", decode_attention, Paged(sequences=_ones(8192), **GPT_OSS)),
        _case("decode-256-gpt-oss", decode_attention, Paged(sequences=many, **GPT_OSS)),
        _case("prefill-8192-gpt-oss", paged_attention, Paged(sequences=((8192, 2048),), **GPT_OSS)),
    ]
    return [replace(case, full_size=True) for case in cases]


CASES: tuple[OpCase, ...] = (
    *_decode_cases(),
    *_prefill_cases(),
    *_full_size_cases(),
)
