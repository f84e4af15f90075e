"""What the leader sends to a rank for one step, and what it gets back, as plain arrays.

A plan says which rows to run, where their keys and values live, and which of them to sample. It
holds no object of the scheduler, so it travels as bytes (``wire.py``) or stays in the process.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRows:
    """The K sequences of a plan whose last row is sampled, and how.

    A token is legal where ``text_legal`` holds and its id is below the first special token, or
    where its id is listed. Rows with ``text_legal`` are in bodies: there alone, and on text tokens
    alone, bias and penalties act. Each id is once in a row's bias and once in its penalised ids.
    """

    sequences: Int32
    """[K] index of each into the plan's sequences."""
    temperature: Float32
    """[K]; 0 is greedy."""
    top_p: Float32
    """[K]"""
    top_k: Int32
    """[K]; 0 is all."""
    min_p: Float32
    """[K] least probability relative to the likeliest token; 0 is all."""
    repetition_penalty: Float32
    """[K] on all penalised ids; 1 is none."""
    presence_penalty: Float32
    """[K] on penalised ids of the output; 0 is none."""
    frequency_penalty: Float32
    """[K] on penalised ids of the output, for each time; 0 is none."""
    seed: UInt64
    """[K]"""
    draw_position: UInt64
    """[K] position in the sequence of the token to draw: the generator's counter."""
    wants_logprobs: Bool
    """[K] whether to report log-probabilities; only rows in bodies do."""
    top_logprobs: Int32
    """[K] how many of the likeliest tokens are reported with them."""
    text_legal: Bool
    """[K] whether every token below the first special one is legal."""
    legal_starts: Int32
    """[K + 1] prefix offsets into legal_ids."""
    legal_ids: Int32
    """Ids that are legal one by one."""
    bias_starts: Int32
    """[K + 1] prefix offsets into bias_ids and bias."""
    bias_ids: Int32
    """Text tokens whose logits are shifted."""
    bias: Float32
    """What is added to each; -inf makes a token illegal."""
    penalised_starts: Int32
    """[K + 1] prefix offsets into penalised_ids and output_counts."""
    penalised_ids: Int32
    """Text tokens of the output and, for the repetition penalty, of the prompt."""
    output_counts: Int32
    """How often each is in the output; 0 is in the prompt alone."""

    @classmethod
    def greedy(cls, sequences: Int32, draw_position: UInt64) -> "SampleRows":
        """Rows that take the likeliest text token."""
        count = len(sequences)
        zeros, ones = np.zeros(count, np.float32), np.ones(count, np.float32)
        no_ids, no_starts = np.zeros(0, np.int32), np.zeros(count + 1, np.int32)
        return cls(
            sequences=sequences,
            temperature=zeros,
            top_p=ones,
            top_k=np.zeros(count, np.int32),
            min_p=zeros,
            repetition_penalty=ones,
            presence_penalty=zeros,
            frequency_penalty=zeros,
            seed=np.zeros(count, np.uint64),
            draw_position=draw_position,
            wants_logprobs=np.zeros(count, np.bool_),
            top_logprobs=np.zeros(count, np.int32),
            text_legal=np.ones(count, np.bool_),
            legal_starts=no_starts,
            legal_ids=no_ids,
            bias_starts=no_starts,
            bias_ids=no_ids,
            bias=np.zeros(0, np.float32),
            penalised_starts=no_starts,
            penalised_ids=no_ids,
            output_counts=no_ids,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One rank's share of a step: R rows of S sequences, each sequence's rows together.

    A rank with nothing to do gets a plan with R = S = K = 0 and joins with padded rows alone.
    """

    step: int
    padded_rows: int
    """Rows after padding: equal on all ranks, at least R and at least 1."""
    tokens: Int32
    """[R]"""
    positions: Int32
    """[R] from 0."""
    row_starts: Int32
    """[S + 1] prefix offsets: sequence s owns rows row_starts[s] to row_starts[s + 1]."""
    full_blocks: Int32
    """[S, F] block table of the full-attention layers: column c holds positions c * block_size on.
    Unused entries are 0."""
    window_blocks: Int32
    """[S, W] block table of the windowed layers, from window_first on. Unused entries are 0."""
    window_first: Int32
    """[S] logical block that column 0 of window_blocks holds."""
    samples: SampleRows


class DrawnLogprobs(NamedTuple):
    """Log-probabilities of one sample."""

    logprob: float
    """Of the drawn token."""
    top_ids: tuple[int, ...]
    """The likeliest tokens, the likeliest first."""
    top_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What a rank drew for the K samples of its plan, in their order."""

    tokens: Int64
    """[K]; of no meaning where not sound."""
    sound: Bool
    """[K] whether the row could be sampled: its greatest legal logit is finite."""
    logprob_rows: Int32
    """[L] the samples whose log-probabilities follow, ascending."""
    logprobs: Float32
    """[L] natural logarithm of the drawn token's probability in the model's own distribution."""
    top_starts: Int32
    """[L + 1] prefix offsets into top_ids and top_logprobs."""
    top_ids: Int32
    """The likeliest tokens of each, the likeliest first, the lowest id on ties."""
    top_logprobs: Float32
    """Their log-probabilities."""

    @classmethod
    def plain(cls, tokens: Int64, sound: Bool | None = None) -> "Drawn":
        """Tokens without log-probabilities; all sound where nothing else is said."""
        return cls(
            tokens=tokens,
            sound=np.ones(len(tokens), np.bool_) if sound is None else sound,
            logprob_rows=np.zeros(0, np.int32),
            logprobs=np.zeros(0, np.float32),
            top_starts=np.zeros(1, np.int32),
            top_ids=np.zeros(0, np.int32),
            top_logprobs=np.zeros(0, np.float32),
        )

    def logprobs_by_row(self) -> dict[int, DrawnLogprobs]:
        """By the sample's index; only those that have them."""
        if not len(self.logprob_rows):
            return {}
        starts, ids = self.top_starts.tolist(), self.top_ids.tolist()
        tops = self.top_logprobs.tolist()
        return {
            row: DrawnLogprobs(logprob, tuple(ids[start:end]), tuple(tops[start:end]))
            for row, logprob, start, end in zip(
                self.logprob_rows.tolist(),
                self.logprobs.tolist(),
                starts[:-1],
                starts[1:],
                strict=True,
            )
        }
