"""A plan becomes tensors: slots from both block tables, and padding that hurts nobody."""

import numpy as np
import torch

from moeray.worker.batch import Batch
from moeray.worker.plan import Int32, RankPlan
from tests.worker.paged_run import CPU, greedy_samples


def _int32(*values: int) -> Int32:
    return np.array(values, np.int32)


def test_rows_slots_and_padding() -> None:
    plan = RankPlan(
        step=1,
        padded_rows=6,
        tokens=_int32(11, 12, 13, 99),
        positions=_int32(7, 8, 9, 3),
        row_starts=_int32(0, 3, 4),
        full_blocks=np.array([[5, 6, 7], [2, 0, 0]], np.int32),
        window_blocks=np.array([[4, 9], [1, 0]], np.int32),
        window_first=_int32(1, 0),
        samples=greedy_samples(2),
    )
    batch = Batch.from_plan(plan, 4, CPU)
    assert batch.tokens.tolist() == [11, 12, 13, 99, 0, 0]
    assert batch.positions.tolist() == [7, 8, 9, 3, 0, 0]
    assert batch.row_starts.tolist() == [0, 3, 4]
    assert batch.sample_rows.tolist() == [2, 3]
    assert batch.full.slots.tolist() == [6 * 4 + 3, 7 * 4, 7 * 4 + 1, 2 * 4 + 3, 0, 0]
    assert batch.window.slots.tolist() == [4 * 4 + 3, 9 * 4, 9 * 4 + 1, 1 * 4 + 3, 0, 0]
    assert batch.full.first_blocks.tolist() == [0, 0]
    assert batch.window.first_blocks.tolist() == [1, 0]
    assert batch.full.block_table.tolist() == [[5, 6, 7], [2, 0, 0]]
    assert batch.full.slots.dtype == torch.int64


def test_only_sampled_sequences_give_logits() -> None:
    samples = greedy_samples(1)
    samples.sequences[0] = 1
    plan = RankPlan(
        step=1,
        padded_rows=5,
        tokens=_int32(1, 2, 3, 4, 5),
        positions=_int32(0, 1, 0, 1, 2),
        row_starts=_int32(0, 2, 5),
        full_blocks=np.array([[1], [2]], np.int32),
        window_blocks=np.array([[1], [2]], np.int32),
        window_first=_int32(0, 0),
        samples=samples,
    )
    assert Batch.from_plan(plan, 4, CPU).sample_rows.tolist() == [4]


def test_idle_rank() -> None:
    plan = RankPlan(
        step=1,
        padded_rows=3,
        tokens=_int32(),
        positions=_int32(),
        row_starts=_int32(0),
        full_blocks=np.zeros((0, 0), np.int32),
        window_blocks=np.zeros((0, 0), np.int32),
        window_first=_int32(),
        samples=greedy_samples(0),
    )
    batch = Batch.from_plan(plan, 4, CPU)
    assert batch.tokens.tolist() == [0, 0, 0]
    assert batch.full.slots.tolist() == [0, 0, 0]
    assert batch.sample_rows.tolist() == []
