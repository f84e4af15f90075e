"""From the scheduler's StepPlan to the arrays that each rank runs.

Most sequences of a step were in the step before, one token shorter. So a planner keeps what it
made of them: their block tables (``block_rows.py``) and what sampling needs (``sample_columns.py``).
The arrays are the same as a new planner would make.
"""

from itertools import compress

import numpy as np

from moeray.worker.block_rows import BlockRows
from moeray.worker.plan import Int32, RankPlan
from moeray.worker.sample_columns import SampleColumns, prefix_offsets
from moeray.worker.sequence import Chunk, StepPlan


class Planner:
    """Makes the RankPlans of one engine, step after step."""

    def __init__(self, ranks: int) -> None:
        self._ranks = [_RankPlanner() for _ in range(ranks)]

    def rank_plans(self, plan: StepPlan) -> list[RankPlan]:
        """One RankPlan for each rank, all padded to the same number of rows."""
        tokens = [_tokens(chunks) for chunks in plan.ranks]
        padded_rows = max(1, *map(len, tokens))
        return [
            rank.rank_plan(plan.step, padded_rows, row_tokens, chunks)
            for rank, row_tokens, chunks in zip(self._ranks, tokens, plan.ranks, strict=True)
        ]


class _RankPlanner:
    def __init__(self) -> None:
        self._block_rows = BlockRows()
        self._sample_columns = SampleColumns()

    def rank_plan(
        self, step: int, padded_rows: int, tokens: list[int], chunks: list[Chunk]
    ) -> RankPlan:
        sequences, starts, rows, sampled = zip(*chunks, strict=True) if chunks else ((),) * 4
        lengths, first_positions = np.array(rows, np.int32), np.array(starts, np.int32)
        row_starts = prefix_offsets(lengths)
        # A row's position is its sequence's first one plus how far it is behind that row.
        offsets = first_positions - row_starts[:-1]
        full, window, window_first = self._block_rows.arrays([s.blocks for s in sequences])
        indices: Int32 = np.flatnonzero(np.array(sampled, np.bool_)).astype(np.int32)
        return RankPlan(
            step=step,
            padded_rows=padded_rows,
            tokens=np.array(tokens, np.int32),
            positions=np.arange(len(tokens), dtype=np.int32) + np.repeat(offsets, lengths),
            row_starts=row_starts,
            full_blocks=full,
            window_blocks=window,
            window_first=window_first,
            samples=self._sample_columns.rows(
                indices,
                list(compress(sequences, sampled)),
                (first_positions + lengths)[indices].astype(np.uint64),
            ),
        )


def _tokens(chunks: list[Chunk]) -> list[int]:
    """Of each row."""
    tokens: list[int] = []
    for sequence, start, rows, _ in chunks:
        if rows == 1:
            tokens.append(sequence.tokens[start])
        else:
            tokens += sequence.tokens[start : start + rows]
    return tokens
