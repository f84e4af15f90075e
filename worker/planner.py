"""From the scheduler's StepPlan to the arrays that each rank runs."""

from array import array
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from moeray.worker.plan import Float32, Int32, RankPlan, SampleRows
from moeray.worker.sampling_record import SAMPLING_RECORD
from moeray.worker.sequence import Chunk, LegalTokens, Sequence, StepPlan

_NO_IDS: Final = np.zeros(0, np.int32)
_NO_BIAS: Final = (_NO_IDS, np.zeros(0, np.float32))


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
    records = np.frombuffer(b"".join([s.sampling_record for s in sequences]), SAMPLING_RECORD)
    legal = [sequence.automaton.legal() for sequence in sequences]
    bias, penalised = _adjustments(sequences, legal)
    return SampleRows(
        sequences=np.array(indices, np.int32),
        **{name: records[name].copy() for name in SAMPLING_RECORD.names or ()},
        draw_position=np.array([len(s.tokens) for s in sequences], np.uint64),
        text_legal=np.array([tokens.text for tokens in legal], np.bool_),
        legal_starts=_prefix_offsets(np.array([len(tokens.ids) for tokens in legal], np.int32)),
        legal_ids=np.array([token for tokens in legal for token in tokens.ids], np.int32),
        bias_starts=bias.starts,
        bias_ids=bias.ids,
        bias=bias.values,
        penalised_starts=penalised.starts,
        penalised_ids=penalised.ids,
        output_counts=penalised.values,
    )


class _Ragged(NamedTuple):
    """Ids and a value for each, of n sequences: sequence k has starts[k] to starts[k + 1]."""

    starts: Int32
    ids: Int32
    values: NDArray[Any]


def _adjustments(sequences: list[Sequence], legal: Seq[LegalTokens]) -> tuple[_Ragged, _Ragged]:
    """Bias, and penalised ids with their output counts: only sequences in bodies have any."""
    bias: dict[int, tuple[Int32, Float32]] = {}
    penalised: dict[int, tuple[Int32, Int32]] = {}
    for index, (sequence, tokens) in enumerate(zip(sequences, legal, strict=True)):
        adjustments = sequence.adjustments
        if adjustments is not None and tokens.text:
            bias[index] = adjustments.bias_ids, adjustments.bias
            penalised[index] = adjustments.penalised(sequence.tokens)
        if tokens.excluded:
            bias[index] = _with_excluded(*bias.get(index, _NO_BIAS), tokens.excluded)
    count = len(sequences)
    return _ragged(count, bias, np.float32), _ragged(count, penalised, np.int32)


def _with_excluded(
    bias_ids: Int32, bias: Float32, excluded: tuple[int, ...]
) -> tuple[Int32, Float32]:
    kept = ~np.isin(bias_ids, excluded)
    ids = np.concatenate((bias_ids[kept], np.array(excluded, np.int32)))
    return ids, np.concatenate((bias[kept], np.full(len(excluded), -np.inf, np.float32)))


def _ragged(
    count: int, parts: Mapping[int, tuple[Int32, NDArray[Any]]], dtype: DTypeLike
) -> _Ragged:
    lengths = np.zeros(count, np.int32)
    if not parts:
        return _Ragged(_prefix_offsets(lengths), _NO_IDS, np.zeros(0, dtype))
    for index, (ids, _) in parts.items():
        lengths[index] = len(ids)
    ids, values = zip(*parts.values(), strict=True)
    return _Ragged(_prefix_offsets(lengths), np.concatenate(ids), np.concatenate(values))


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
