"""Drives a model step by step over its paged cache, as the scheduler would but in plain sight."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moeray.worker.batch import Batch
from moeray.worker.checkpoint import Checkpoint
from moeray.worker.checkpoint_make import make_checkpoint
from moeray.worker.checkpoint_shape import CheckpointShape
from moeray.worker.communicator import Communicator, SingleRank
from moeray.worker.config import EngineConfig
from moeray.worker.kv_cache import KvCache
from moeray.worker.model import Model
from moeray.worker.plan import Int32, RankPlan, SampleRows
from moeray.worker.random_weights import RandomWeights

CPU = torch.device("cpu")
SMALL = CheckpointShape(
    layers=3,
    experts=16,
    hidden_size=96,
    intermediate_size=64,
    query_heads=6,
    kv_heads=2,
    head_dim=16,
    vocabulary_size=480,
)
"""Every size differs from the others, so that a mix-up of dimensions shows."""
BLOCK_TOKENS = 8


def make_small(path: Path, shape: CheckpointShape = SMALL, *, shard_bytes: int = 100_000) -> Path:
    """A small checkpoint in several shards, with an empty tokenizer.json."""
    return make_checkpoint(
        path,
        RandomWeights(shape, 7, CPU),
        shard_bytes=shard_bytes,
        write_tokenizer=lambda file: _write(file, "{}"),
    )


def _write(file: Path, text: str) -> None:
    file.write_text(text)


@dataclass
class _Sequence:
    length: int
    full: list[int]
    window: dict[int, int]
    """Physical block of each logical one that is still held."""


class PagedRun:
    """A model with its cache; blocks are handed out in a shuffled order."""

    def __init__(
        self,
        folder: Path,
        communicator: Communicator | None = None,
        *,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
        kv_tokens: int = 2048,
        step_tokens: int = 256,
        sequences: int = 8,
    ) -> None:
        checkpoint = Checkpoint.open(folder)
        engine = EngineConfig(
            model=folder,
            block_tokens=BLOCK_TOKENS,
            kv_tokens_per_rank=kv_tokens,
            max_running_per_rank=sequences,
            step_tokens_per_rank=step_tokens,
        )
        self.model = Model.load(
            checkpoint,
            device=device,
            dtype=dtype,
            communicator=communicator or SingleRank(),
        )
        self.kv = KvCache.allocate(checkpoint.config, engine, device, dtype)
        self._device = device
        shuffled = np.random.default_rng(3)
        plan = self.kv.plan
        self._free_full = shuffled.permutation(np.arange(1, plan.full_blocks)).tolist()
        self._free_window = shuffled.permutation(np.arange(1, plan.window_blocks)).tolist()
        self._sequences: dict[str, _Sequence] = {}

    def step(
        self, chunks: Mapping[str, Sequence[int]], *, padded_rows: int | None = None
    ) -> dict[str, Tensor]:
        """Appends tokens to sequences; returns the logits after the last token of each."""
        plan = self.plan(chunks, padded_rows=padded_rows)
        batch = Batch.from_plan(plan, BLOCK_TOKENS, self._device)
        logits = self.model.forward(batch, self.kv)
        return dict(zip(chunks, logits, strict=True))

    def plan(
        self, chunks: Mapping[str, Sequence[int]], *, padded_rows: int | None = None
    ) -> RankPlan:
        rows: list[tuple[int, int]] = []
        starts = [0]
        for name, tokens in chunks.items():
            sequence = self._grown(name, len(tokens))
            first = sequence.length - len(tokens)
            rows += [(token, first + i) for i, token in enumerate(tokens)]
            starts.append(len(rows))
        sequences = [self._sequences[name] for name in chunks]
        table = _int32([t for t, _ in rows])
        return RankPlan(
            step=0,
            padded_rows=padded_rows or max(1, len(rows)),
            tokens=table,
            positions=_int32([p for _, p in rows]),
            row_starts=_int32(starts),
            full_blocks=_table([s.full for s in sequences]),
            window_blocks=_table([list(s.window.values()) for s in sequences]),
            window_first=_int32([next(iter(s.window)) for s in sequences]),
            samples=greedy_samples(len(sequences)),
        )

    def _grown(self, name: str, tokens: int) -> _Sequence:
        sequence = self._sequences.setdefault(name, _Sequence(0, [], {}))
        first_seen = self.kv.plan.first_visible(sequence.length) // BLOCK_TOKENS
        for logical in [b for b in sequence.window if b < first_seen]:
            self._free_window.insert(0, sequence.window.pop(logical))
        sequence.length += tokens
        while len(sequence.full) * BLOCK_TOKENS < sequence.length:
            sequence.window[len(sequence.full)] = self._free_window.pop()
            sequence.full.append(self._free_full.pop())
        return sequence


def greedy_samples(count: int) -> SampleRows:
    """Samples the last row of each of ``count`` sequences."""
    return SampleRows.greedy(np.arange(count, dtype=np.int32), np.zeros(count, np.uint64))


def _int32(values: Sequence[int]) -> Int32:
    return np.array(values, np.int32)


def _table(rows: Sequence[Sequence[int]]) -> Int32:
    width = max((len(row) for row in rows), default=0)
    return np.array([[*row, *[0] * (width - len(row))] for row in rows], np.int32).reshape(
        len(rows), width
    )


def greedy(
    run: PagedRun, prompts: Mapping[str, Sequence[int]], *, steps: int, padded_rows: int
) -> dict[str, list[int]]:
    """The greedy tokens of each prompt; every step has ``padded_rows`` rows, also an idle one."""
    answers: dict[str, list[int]] = {name: [] for name in prompts}
    chunks: Mapping[str, Sequence[int]] = prompts
    for _ in range(steps):
        logits = run.step(chunks, padded_rows=padded_rows)
        for name, row in logits.items():
            answers[name].append(int(row.argmax()))
        chunks = {name: answers[name][-1:] for name in answers}
    return answers
