"""From the scheduler's StepPlan to the arrays that each rank runs."""

from array import array

import numpy as np

from moeray.worker.plan import Int32, RankPlan, SampleRows
from moeray.worker.sequence import Chunk, StepPlan


def rank_plans(plan: StepPlan) -> list[RankPlan]:
    """One RankPlan for each rank, all padded to the same number of rows."""
    rows = max(sum(chunk.rows for chunk in chunks) for chunks in plan.ranks)
    return [_rank_plan(plan.step, max(rows, 1), chunks) for chunks in plan.ranks]


def _rank_plan(step: int, padded_rows: int, chunks: list[Chunk]) -> RankPlan:
    tokens: list[int] = []
    for sequence, start, rows, _ in chunks:
        tokens += sequence.tokens[start : start + rows]
    tables = [chunk.sequence.blocks for chunk in chunks]
    lengths = np.array([chunk.rows for chunk in chunks], np.int32)
    row_starts = _prefix_offsets(lengths)
    # A row's position is its sequence's first one plus how far it is behind that row.
    offsets = np.array([chunk.start for chunk in chunks], np.int32) - row_starts[:-1]
    return RankPlan(
        step=step,
        padded_rows=padded_rows,
        tokens=np.array(tokens, np.int32),
        positions=np.arange(len(tokens), dtype=np.int32) + np.repeat(offsets, lengths),
        row_starts=row_starts,
        full_blocks=_padded([table.full for table in tables]),
        window_blocks=_padded([table.window for table in tables]),
        window_first=np.array([table.window_first for table in tables], np.int32),
        samples=_sample_rows(chunks),
    )


def _sample_rows(chunks: list[Chunk]) -> SampleRows:
    indices = [index for index, chunk in enumerate(chunks) if chunk.sampled]
    sequences = [chunks[index].sequence for index in indices]
    sampling = [sequence.request.sampling for sequence in sequences]
    legal = [sequence.automaton.legal() for sequence in sequences]
    return SampleRows(
        sequences=np.array(indices, np.int32),
        temperature=np.array([s.temperature for s in sampling], np.float32),
        top_p=np.array([s.top_p for s in sampling], np.float32),
        top_k=np.array([s.top_k for s in sampling], np.int32),
        seed=np.array([s.seed for s in sampling], np.uint64),
        draw_position=np.array([len(s.tokens) for s in sequences], np.uint64),
        text_legal=np.array([tokens.text for tokens in legal], np.bool_),
        legal_starts=_prefix_offsets(np.array([len(tokens.ids) for tokens in legal], np.int32)),
        legal_ids=np.array([token for tokens in legal for token in tokens.ids], np.int32),
    )


def _prefix_offsets(lengths: Int32) -> Int32:
    """[n + 1] from lengths [n]."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _padded(tables: "list[array[int]]") -> Int32:
    """[S, longest], each table padded with the scratch block."""
    # Joining bytes is several times faster than a NumPy assignment for each table; a bytearray
    # keeps the result writable, which torch.from_numpy wants.
    width = max(map(len, tables), default=0)
    size = width * np.dtype(np.int32).itemsize
    data = bytearray().join([table.tobytes().ljust(size, b"\0") for table in tables])
    return np.frombuffer(data, np.int32).reshape(len(tables), width)
