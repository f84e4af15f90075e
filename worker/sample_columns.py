"""The columns of a plan's samples, kept from one step to the next.

What a request asks of sampling is the same in each step, so its columns change only when the
sampled sequences do. What is legal changes only when a message of an answer begins or ends. Bias
and penalties are gathered anew, from the few sequences that have any.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from moeray.worker.plan import Bool, Float32, Int32, SampleRows, UInt64
from moeray.worker.sampling_record import SAMPLING_RECORD
from moeray.worker.sequence import LegalTokens, Sequence

_NO_IDS: Final = np.zeros(0, np.int32)
_NO_BIAS: Final = (_NO_IDS, np.zeros(0, np.float32))


class SampleColumns:
    """The SampleRows of one rank, step by step. Columns that did not change are the same arrays
    again: nobody writes to a plan's arrays.
    """

    def __init__(self) -> None:
        self._use_sequences([])
        self._use_legal([])

    def rows(self, indices: Int32, sequences: list[Sequence], draw_position: UInt64) -> SampleRows:
        """The rows of the sampled ``sequences``, which have these indices in the plan."""
        if sequences != self._sequences:
            self._use_sequences(sequences)
        legal = [sequence.automaton.legal() for sequence in sequences]
        if legal != self._legal:
            self._use_legal(legal)
        bias, penalised = self._none_adjusted
        if self._adjusted or self._excluding:
            bias, penalised = self._adjustments()
        return SampleRows(
            sequences=indices,
            **self._settings,
            draw_position=draw_position,
            text_legal=self._text_legal,
            legal_starts=self._legal_starts,
            legal_ids=self._legal_ids,
            bias_starts=bias.starts,
            bias_ids=bias.ids,
            bias=bias.values,
            penalised_starts=penalised.starts,
            penalised_ids=penalised.ids,
            output_counts=penalised.values,
        )

    def _use_sequences(self, sequences: list[Sequence]) -> None:
        self._sequences = sequences
        records = np.frombuffer(b"".join([s.sampling_record for s in sequences]), SAMPLING_RECORD)
        self._settings = {name: records[name].copy() for name in SAMPLING_RECORD.names or ()}
        self._adjusted = [i for i, s in enumerate(sequences) if s.adjustments is not None]
        no_starts = np.zeros(len(sequences) + 1, np.int32)
        self._none_adjusted = (
            _Ragged(no_starts, _NO_IDS, _NO_BIAS[1]),
            _Ragged(no_starts, _NO_IDS, _NO_IDS),
        )

    def _use_legal(self, legal: list[LegalTokens]) -> None:
        self._legal = legal
        ids = [tokens.ids for tokens in legal]
        self._text_legal: Bool = np.array([tokens.text for tokens in legal], np.bool_)
        self._legal_starts = prefix_offsets(np.array(list(map(len, ids)), np.int32))
        self._legal_ids: Int32 = np.array(list(chain.from_iterable(ids)), np.int32)
        self._excluding = [i for i, tokens in enumerate(legal) if tokens.excluded]

    def _adjustments(self) -> "tuple[_Ragged, _Ragged]":
        """Bias, and penalised ids with their output counts: only sequences in bodies have any."""
        bias: dict[int, tuple[Int32, Float32]] = {}
        penalised: dict[int, tuple[Int32, Int32]] = {}
        for index in self._adjusted:
            sequence = self._sequences[index]
            adjustments = sequence.adjustments
            if adjustments is not None and self._legal[index].text:
                bias[index] = adjustments.bias_ids, adjustments.bias
                penalised[index] = adjustments.penalised(sequence.tokens)
        for index in self._excluding:
            excluded = self._legal[index].excluded
            bias[index] = _with_excluded(*bias.get(index, _NO_BIAS), excluded)
        count = len(self._sequences)
        return _ragged(count, bias, np.float32), _ragged(count, penalised, np.int32)


class _Ragged(NamedTuple):
    """Ids and a value for each, of n sequences: sequence k has starts[k] to starts[k + 1]."""

    starts: Int32
    ids: Int32
    values: NDArray[Any]


def prefix_offsets(lengths: Int32) -> Int32:
    """[n + 1] from lengths [n]."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _with_excluded(
    bias_ids: Int32, bias: Float32, excluded: tuple[int, ...]
) -> tuple[Int32, Float32]:
    kept = ~np.isin(bias_ids, excluded)
    ids = np.concatenate((bias_ids[kept], np.array(excluded, np.int32)))
    return ids, np.concatenate((bias[kept], np.full(len(excluded), -np.inf, np.float32)))


def _ragged(
    count: int, parts: Mapping[int, tuple[Int32, NDArray[Any]]], dtype: DTypeLike
) -> _Ragged:
    """``parts`` are by sequence; their order is of no matter."""
    lengths = np.zeros(count, np.int32)
    if not parts:
        return _Ragged(np.zeros(count + 1, np.int32), _NO_IDS, np.zeros(0, dtype))
    for index, (ids, _) in parts.items():
        lengths[index] = len(ids)
    ids, values = zip(*(parts[index] for index in sorted(parts)), strict=True)
    return _Ragged(prefix_offsets(lengths), np.concatenate(ids), np.concatenate(values))
