"""What the leader sends to a rank for one step, as plain arrays.

A plan says which rows to run, where their keys and values live, and which of them to sample. It
holds no object of the scheduler, so it travels as bytes (``wire.py``) or stays in the process.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRows:
    """The K sequences of a plan whose last row is sampled, and how.

    A token is legal where ``text_legal`` holds and its id is below the first special token, or
    where its id is listed.
    """

    sequences: Int32
    """[K] index of each into the plan's sequences."""
    temperature: NDArray[np.float32]
    """[K]; 0 is greedy."""
    top_p: NDArray[np.float32]
    """[K]"""
    top_k: Int32
    """[K]; 0 is all."""
    seed: NDArray[np.uint64]
    """[K]"""
    draw_position: NDArray[np.uint64]
    """[K] position in the sequence of the token to draw: the generator's counter."""
    text_legal: NDArray[np.bool_]
    """[K] whether every token below the first special one is legal."""
    legal_starts: Int32
    """[K + 1] prefix offsets into legal_ids."""
    legal_ids: Int32
    """Ids that are legal one by one."""


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
