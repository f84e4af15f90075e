"""Collectives between real processes over gloo, and the model on top: two ranks answer as one."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moeray.worker.communicator import SingleRank, TorchDistributed, connect, host_store
from tests.worker.paged_run import CPU, PagedRun, greedy, make_small
from tests.worker.rank_process import PADDED_ROWS, STEPS, prompts_of, sums_of

ROOT = Path(__file__).parents[2]


def _group(role: str, size: int, folder: Path) -> list[Any]:
    """What each rank's process printed."""
    store = host_store()
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.worker.rank_process", role),
                *(str(rank), str(size), str(store.port), str(folder)),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads(output) if output else None for output in outputs]


def test_two_processes_answer_as_one(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder = make_small(tmp_path / "made")
    ranks = _group("works", 2, folder)
    gathered = [[0.0] * 3] * 2 + [[1.0] * 3] * 2
    for rank, result in enumerate(ranks):
        assert result["rows"] == gathered
        mine = slice(rank * 3, (rank + 1) * 3)
        parts = torch.stack([sums_of(other, 2)[mine] for other in range(2)])
        assert result["parts"] == hashlib.sha256(parts.numpy().tobytes()).hexdigest()
    alone = greedy(PagedRun(folder), prompts_of(0, 1), steps=STEPS, padded_rows=PADDED_ROWS)
    together = ranks[0]["answers"] | ranks[1]["answers"]
    assert together == alone
    assert len({tuple(answer) for answer in alone.values()}) == len(alone), "answers differ"


def test_lost_peer_is_an_error(tmp_path: Path) -> None:
    assert _group("leaves", 2, tmp_path) == ["RuntimeError", None]


def test_peer_that_never_comes_is_an_error() -> None:
    store = host_store()
    with pytest.raises(RuntimeError):
        connect(
            rank=0,
            size=2,
            host=store.host,
            port=store.port,
            prefix="alone",
            device=CPU,
            timeout_s=0.5,
        )


def test_group_of_one_needs_no_store() -> None:
    group = connect(rank=0, size=1, host="127.0.0.1", port=1, prefix="one", device=CPU, timeout_s=1)
    assert group == SingleRank()
    x = torch.randn(3, 4)
    assert torch.equal(group.gather_rows(x), x)
    assert torch.equal(group.exchange_sums(x), x[None])


def test_incarnations_share_a_store() -> None:
    """Two groups one after the other, in threads: the second has its own prefix."""
    from concurrent.futures import ThreadPoolExecutor

    store = host_store()

    def join(prefix: str, rank: int) -> list[float]:
        group = connect(
            rank=rank,
            size=2,
            host=store.host,
            port=store.port,
            prefix=prefix,
            device=CPU,
            timeout_s=20,
        )
        assert isinstance(group, TorchDistributed)
        return group.gather_rows(torch.tensor([[float(rank)]])).flatten().tolist()

    with ThreadPoolExecutor(2) as pool:
        for prefix in ("first", "second"):
            joined = pool.map(join, [prefix] * 2, range(2))
            assert list(joined) == [[0.0, 1.0]] * 2
