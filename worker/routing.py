"""How evenly a model routes: distinct experts that a batch hits in each layer.

The yardstick is uniform independent routing, where ``rows`` rows with k of E experts each hit
E (1 - (1 - k/E)^rows) of them on average. Measured with the model itself on sequences that start
from one random token each and decode greedily.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from moeray.kernels.reference import route
from moeray.worker.batch import Batch
from moeray.worker.checkpoint import Checkpoint
from moeray.worker.config import EngineConfig
from moeray.worker.kv_cache import KvCache
from moeray.worker.model import Model
from moeray.worker.plan import Int32, Int64, RankPlan, SampleRows

_BLOCK_TOKENS = 16
_LOGITS_AT_ONCE = 32
"""Rows: so few logits stay in memory that the allocator has already."""


@dataclass(frozen=True, slots=True)
class LayerRouting:
    """Distinct experts of one layer, at the first step and after the greedy ones."""

    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """What ``measure_routing`` found."""

    sequences: int
    steps: int
    expected: float
    """Of uniform routing, in each layer."""
    layers: tuple[LayerRouting, ...]

    @property
    def lowest_share(self) -> float:
        """The smallest ratio of distinct experts to the expectation, over layers and both times."""
        return min(min(layer.first, layer.last) for layer in self.layers) / self.expected


def uniform_expectation(experts: int, experts_per_token: int, rows: int) -> float:
    """Distinct experts that ``rows`` rows hit on average when routing is uniform."""
    return experts * (1.0 - (1.0 - experts_per_token / experts) ** rows)


def measure_routing(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    sequences: int = 128,
    steps: int = 64,
    seed: int = 0,
    first_tokens: Int64 | None = None,
) -> Routing:
    """Runs ``sequences`` one-token prompts and ``steps`` greedy steps; counts experts by layer.

    The prompts are drawn from ``first_tokens``, ids of any number; None: the whole vocabulary.
    """
    config = checkpoint.config
    seen = _RowsSeen()
    model = Model.load(checkpoint, device=device, dtype=dtype, communicator=seen)
    kv = _cache(checkpoint, device, dtype, sequences, steps)
    counts = []
    generator = np.random.default_rng(seed)
    ids = np.arange(config.vocabulary_size) if first_tokens is None else first_tokens
    tokens = ids[generator.integers(len(ids), size=sequences, dtype=np.int32)].astype(np.int32)
    for position in range(steps + 1):
        seen.rows.clear()
        plan = _decode_plan(tokens, position, steps)
        hidden = model.last_hidden(Batch.from_plan(plan, _BLOCK_TOKENS, device), kv)
        tokens = _greedy(model, hidden)
        if position in (0, steps):
            counts.append(list(_distinct_experts(model, seen.rows)))
    return Routing(
        sequences=sequences,
        steps=steps,
        expected=uniform_expectation(config.experts, config.experts_per_token, sequences),
        layers=tuple(LayerRouting(a, b) for a, b in zip(counts[0], counts[-1], strict=True)),
    )


@dataclass(frozen=True, slots=True)
class _RowsSeen:
    """A group of one that keeps the rows each layer gathers: those its router sees."""

    rank: int = 0
    size: int = 1
    rows: list[Tensor] = field(default_factory=list)

    def gather_rows(self, x: Tensor) -> Tensor:
        self.rows.append(x)
        return x

    def exchange_sums(self, sums: Tensor) -> Tensor:
        return sums[None]


def _greedy(model: Model, hidden: Tensor) -> Int32:
    parts = []
    for first in range(0, len(hidden), _LOGITS_AT_ONCE):
        logits = model.logits(hidden[first : first + _LOGITS_AT_ONCE])
        # On a CPU, numpy's argmax takes a fifth of torch's time.
        parts.append(
            logits.argmax(-1).cpu().numpy() if logits.is_cuda else logits.numpy().argmax(-1)
        )
    return np.concatenate(parts).astype(np.int32)


def _distinct_experts(model: Model, rows: list[Tensor]) -> Iterator[int]:
    for layer, x in zip(model.layers, rows, strict=True):
        router = layer.router
        experts, _ = route(x, router.weight, router.bias, model.config.experts_per_token)
        yield len(set(experts.flatten().tolist()))


def _cache(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, sequences: int, steps: int
) -> KvCache:
    engine = EngineConfig(
        model=checkpoint.folder,
        block_tokens=_BLOCK_TOKENS,
        kv_tokens_per_rank=sequences * _blocks(steps) * _BLOCK_TOKENS,
        max_running_per_rank=sequences,
        step_tokens_per_rank=sequences,
    )
    return KvCache.allocate(checkpoint.config, engine, device, dtype)


def _blocks(steps: int) -> int:
    """Of one sequence."""
    return steps // _BLOCK_TOKENS + 1


def _decode_plan(tokens: Int32, position: int, steps: int) -> RankPlan:
    """Every sequence's row at ``position``; sequence s has the s-th run of blocks."""
    rows, blocks = len(tokens), _blocks(steps)
    table = np.arange(1, 1 + rows * blocks, dtype=np.int32).reshape(rows, blocks)
    every = np.arange(rows, dtype=np.int32)
    zeros = np.zeros(rows, np.int32)
    return RankPlan(
        step=position,
        padded_rows=rows,
        tokens=tokens,
        positions=np.full(rows, position, np.int32),
        row_starts=np.arange(rows + 1, dtype=np.int32),
        full_blocks=table,
        window_blocks=table,
        window_first=zeros,
        samples=SampleRows.greedy(every, np.full(rows, position + 1, np.uint64)),
    )
