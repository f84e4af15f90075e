"""From the scheduler's StepPlan to the arrays that each rank runs.

Most sequences of a step were in the step before, one token shorter. So a planner keeps what it made
of them: their block tables (``block_rows.py``) and what sampling needs (``sample_columns.py``). The
arrays are the same as a new planner would make.
"""

from itertools import compress
from typing import NamedTuple

import numpy as np

from moeray.worker.block_rows import BlockRows
from moeray.worker.plan import Int32, RankPlan
from moeray.worker.sample_columns import SampleColumns, prefix_offsets
from moeray.worker.sequence import Chunks, StepPlan


class Planner:
    """Makes the RankPlans of one engine, step after step."""

    def __init__(self, ranks: int) -> None:
        self._ranks = [_RankPlanner() for _ in range(ranks)]

    def rank_plans(self, plan: StepPlan) -> list[RankPlan]:
        """One RankPlan for each rank, all padded to the same number of rows."""
        padded_rows = max(1, *(sum(chunks.rows) for chunks in plan.ranks))
        return [
            rank.rank_plan(plan.step, padded_rows, chunks)
            for rank, chunks in zip(self._ranks, plan.ranks, strict=True)
        ]


class _RankPlanner:
    def __init__(self) -> None:
        self._block_rows = BlockRows()
        self._sample_columns = SampleColumns()

    def rank_plan(self, step: int, padded_rows: int, chunks: Chunks) -> RankPlan:
        rows = _Rows.of(chunks)
        tables = [sequence.blocks for sequence in chunks.sequences]
        full, window, window_first = self._block_rows.arrays(tables)
        indices = np.flatnonzero(np.frombuffer(bytes(chunks.sampled), np.bool_))
        return RankPlan(
            step=step,
            padded_rows=padded_rows,
            tokens=rows.tokens,
            positions=rows.positions,
            row_starts=rows.row_starts,
            full_blocks=full,
            window_blocks=window,
            window_first=window_first,
            samples=self._sample_columns.rows(
                indices.astype(np.int32),
                list(compress(chunks.sequences, chunks.sampled)),
                rows.ends[indices].astype(np.uint64),
            ),
        )


class _Rows(NamedTuple):
    """As in RankPlan, and the position behind each sequence's last row."""

    tokens: Int32
    positions: Int32
    row_starts: Int32
    ends: Int32

    @classmethod
    def of(cls, chunks: Chunks) -> "_Rows":
        starts: Int32 = np.array(chunks.starts, np.int32)
        if chunks.rows.count(1) == len(chunks):
            # Most steps only decode: each sequence has one row.
            pairs = zip(chunks.sequences, chunks.starts, strict=True)
            decoded = np.array([sequence.tokens[start] for sequence, start in pairs], np.int32)
            return cls(decoded, starts, np.arange(len(chunks) + 1, dtype=np.int32), starts + 1)
        tokens: list[int] = []
        for sequence, start, rows, _ in chunks:
            tokens += sequence.tokens[start : start + rows]
        lengths: Int32 = np.array(chunks.rows, np.int32)
        row_starts = prefix_offsets(lengths)
        # A row's position is its sequence's first one plus how far it is behind that row.
        offsets = np.repeat(starts - row_starts[:-1], lengths)
        positions = np.arange(len(tokens), dtype=np.int32) + offsets
        return cls(np.array(tokens, np.int32), positions, row_starts, starts + lengths)
