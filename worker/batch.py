"""One step's rows as tensors: a RankPlan on the device, padded to the rows all ranks agreed on."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeray.worker.plan import Int32, RankPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedRows:
    """Where a batch's keys and values live in one kind of layer. All int64."""

    block_table: Tensor
    """[S, C]"""
    first_blocks: Tensor
    """[S] logical block that column 0 of block_table holds."""
    slots: Tensor
    """[P] block * block_tokens + offset of each row; padding writes into the scratch block 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """R rows of S sequences, padded to P rows. All int64."""

    tokens: Tensor
    """[P]; padding is token 0."""
    positions: Tensor
    """[P]; padding is position 0."""
    row_starts: Tensor
    """[S + 1]; row_starts[S] is R."""
    full: PagedRows
    window: PagedRows
    sample_rows: Tensor
    """[K] the rows whose logits are wanted: the last one of each sampled sequence."""

    @classmethod
    def from_plan(cls, plan: RankPlan, block_tokens: int, device: torch.device) -> "Batch":
        sequences = len(plan.row_starts) - 1
        owner = np.repeat(np.arange(sequences), np.diff(plan.row_starts))
        full_first = np.zeros(sequences, np.int32)
        last_rows = plan.row_starts[1:] - 1

        def paged(blocks: Int32, first: Int32) -> PagedRows:
            column = plan.positions // block_tokens - first[owner]
            slots = blocks[owner, column].astype(np.int64) * block_tokens
            slots += plan.positions % block_tokens
            return PagedRows(
                block_table=_on_device(blocks, device),
                first_blocks=_on_device(first, device),
                slots=_on_device(_padded(slots, plan.padded_rows), device),
            )

        return cls(
            tokens=_on_device(_padded(plan.tokens, plan.padded_rows), device),
            positions=_on_device(_padded(plan.positions, plan.padded_rows), device),
            row_starts=_on_device(plan.row_starts, device),
            full=paged(plan.full_blocks, full_first),
            window=paged(plan.window_blocks, plan.window_first),
            sample_rows=_on_device(last_rows[plan.samples.sequences], device),
        )


def _padded(values: NDArray[np.integer], rows: int) -> NDArray[np.int64]:
    padded = np.zeros(rows, np.int64)
    padded[: len(values)] = values
    return padded


def _on_device(values: NDArray[np.integer], device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(device)
