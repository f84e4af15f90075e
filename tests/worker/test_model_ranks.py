"""The model at 1, 2, 4 and 8 ranks in one process: the same tokens, also beside idle ranks."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moeray.worker.checkpoint import Checkpoint
from moeray.worker.communicator import SingleRank
from moeray.worker.model import expert_share
from tests.worker.paged_run import PagedRun, greedy, make_small
from tests.worker.rank_process import prompts_of

STEPS = 12
PADDED_ROWS = 40


@dataclass
class _Room:
    """Where the threads of a group leave their tensors for each other."""

    size: int
    left: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=60)

    def everyone(self, rank: int, x: Tensor) -> list[Tensor]:
        self.left[rank] = x
        self.barrier.wait()
        parts = [self.left[other] for other in range(self.size)]
        self.barrier.wait()
        return parts


@dataclass(frozen=True)
class _ThreadRank:
    rank: int
    size: int
    room: _Room

    def gather_rows(self, x: Tensor) -> Tensor:
        return torch.cat(self.room.everyone(self.rank, x))

    def exchange_sums(self, sums: Tensor) -> Tensor:
        parts = self.room.everyone(self.rank, sums)
        return torch.stack([part.chunk(self.size)[self.rank] for part in parts])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_small(tmp_path_factory.mktemp("ranks") / "made")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, list[int]]:
    return greedy(PagedRun(folder), prompts_of(0, 1), steps=STEPS, padded_rows=PADDED_ROWS)


def _answers(folder: Path, size: int, busy: int) -> dict[str, list[int]]:
    """Of all prompts, dealt to the first ``busy`` of ``size`` ranks; the others idle."""
    room = _Room(size)

    def rank(number: int) -> dict[str, list[int]]:
        torch.set_num_threads(1)
        prompts = prompts_of(number, busy) if number < busy else {}
        run = PagedRun(folder, _ThreadRank(number, size, room))
        return greedy(run, prompts, steps=STEPS, padded_rows=PADDED_ROWS)

    with ThreadPoolExecutor(size) as pool:
        parts = list(pool.map(rank, range(size)))
    return {name: answer for part in parts for name, answer in part.items()}


@pytest.mark.parametrize(("size", "busy"), [(2, 2), (2, 1), (4, 3), (8, 8)])
def test_same_tokens(folder: Path, alone: dict[str, list[int]], size: int, busy: int) -> None:
    assert _answers(folder, size, busy) == alone


def test_padding_changes_nothing(folder: Path, alone: dict[str, list[int]]) -> None:
    prompts = prompts_of(0, 1)
    assert greedy(PagedRun(folder), prompts, steps=STEPS, padded_rows=101) == alone


def test_each_rank_loads_its_own_experts_only(folder: Path) -> None:
    config = Checkpoint.open(folder).config
    room = _Room(4)
    assert list(expert_share(config, SingleRank())) == list(range(16))
    assert list(expert_share(config, _ThreadRank(3, 4, room))) == [12, 13, 14, 15]
    whole = PagedRun(folder).model.layers[0].experts
    part = PagedRun(folder, _ThreadRank(3, 4, room)).model.layers[0].experts
    assert torch.equal(part.gate_up_blocks, whole.gate_up_blocks[12:])
    assert torch.equal(part.down_bias, whole.down_bias[12:])
