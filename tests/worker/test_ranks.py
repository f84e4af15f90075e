"""Groups of ranks: each in a process of its own, which may die, raise or hang."""

import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from moeray.worker.plan import RankPlan
from moeray.worker.planner import rank_plans
from moeray.worker.ranks import LocalRanks, RankFailure, SocketRanks
from moeray.worker.sequence import StepPlan
from moeray.worker.wire import Hello, Int64, encode_hello, send_message

# A rank without a model: it answers with the step, dies, raises or hangs at the step it is told.
RANK = textwrap.dedent(
    """
    import os, signal, sys
    import numpy as np
    from moeray.worker.rank_server import serve_rank

    rank, path, secret, fault, at = sys.argv[1:]

    class Executor:
        def execute(self, plan):
            if plan.step == int(at):
                if fault == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                if fault == "raise":
                    raise ArithmeticError("a row is not finite")
                if fault == "hang":
                    signal.pause()
                if fault == "wrong":
                    return np.zeros(5, np.int64)
            return np.zeros(len(plan.samples.sequences), np.int64)

    serve_rank(Executor(), rank=int(rank), path=path, secret=bytes.fromhex(secret))
    """
)


def idle_plans(step: int, ranks: int) -> list[RankPlan]:
    return rank_plans(StepPlan(step, tuple([] for _ in range(ranks))))


@contextmanager
def started(
    group: SocketRanks, *faults: str, at: int = 2
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """One process for each fault ("" is none), and the group closed at the end."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), group.path, group.secret.hex(), fault, str(at)],
            stderr=subprocess.PIPE,
        )
        for rank, fault in enumerate(faults)
    ]
    try:
        yield processes
    finally:
        group.close()
        for process in processes:
            process.kill()
            process.communicate()


def test_steps_run_on_all_ranks_and_ranks_return_when_the_leader_closes() -> None:
    group = SocketRanks(2)
    with started(group, "", "") as processes:
        group.accept(timeout_s=60)
        for step in (1, 2, 3):
            assert [len(tokens) for tokens in group.execute(idle_plans(step, 2))] == [0, 0]
        group.close()
        assert [process.wait(timeout=30) for process in processes] == [0, 0]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("die", "rank 1: lost in step 2"),
        ("raise", "rank 1: ArithmeticError: a row is not finite"),
        ("wrong", "rank 1: its answer does not belong to step 2"),
    ],
)
def test_a_rank_that_is_lost_in_a_step_is_named(fault: str, reason: str) -> None:
    group = SocketRanks(2)
    with started(group, "", fault) as processes:
        group.accept(timeout_s=60)
        group.execute(idle_plans(1, 2))
        with pytest.raises(RankFailure, match=reason) as failure:
            group.execute(idle_plans(2, 2))
        assert failure.value.rank == 1
        if fault == "die":
            assert processes[1].wait(timeout=30) == -signal.SIGKILL
        if fault == "raise":
            assert processes[1].wait(timeout=30) == 1


def test_a_dead_rank_is_seen_while_another_still_hangs() -> None:
    # Rank 0 waits for rank 1, as in a collective.
    group = SocketRanks(2, step_timeout_s=60)
    with started(group, "hang", "die"):
        group.accept(timeout_s=60)
        group.execute(idle_plans(1, 2))
        with pytest.raises(RankFailure, match="rank 1: lost"):
            group.execute(idle_plans(2, 2))


def test_a_rank_killed_between_steps_is_named() -> None:
    group = SocketRanks(1)
    with started(group, "") as (process,):
        group.accept(timeout_s=60)
        group.execute(idle_plans(1, 1))
        process.kill()
        process.wait(timeout=30)
        with pytest.raises(RankFailure, match="rank 0: lost"):
            group.execute(idle_plans(2, 1))


def test_a_rank_that_hangs_fails_the_step_after_the_timeout() -> None:
    group = SocketRanks(2, step_timeout_s=0.5)
    with started(group, "", "hang"):
        group.accept(timeout_s=60)
        group.execute(idle_plans(1, 2))
        with pytest.raises(RankFailure, match=r"no answer within 0.5 s \(silent: \[1\]\)"):
            group.execute(idle_plans(2, 2))


def test_only_ranks_that_know_the_secret_are_taken() -> None:
    group = SocketRanks(1)
    try:
        strangers = [
            encode_hello(Hello(0, b"guess")),
            encode_hello(Hello(1, group.secret)),
            b"not a hello",
        ]
        connections = []
        for message in strangers:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(group.path)
            send_message(connection, message)
            connections.append(connection)
            with pytest.raises(RankFailure, match=r"not connected within 0.2 s \(missing: \[0\]\)"):
                group.accept(timeout_s=0.2)
        for connection in connections:
            assert connection.recv(1) == b""
            connection.close()
    finally:
        group.close()


def test_the_socket_is_in_a_private_folder_that_goes_away() -> None:
    group = SocketRanks(1)
    folder = Path(group.path).parent
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    group.close()
    assert not folder.exists()


def test_an_error_of_a_local_rank_is_a_rank_failure() -> None:
    class Executor:
        def execute(self, plan: RankPlan) -> Int64:
            if plan.step == 2:
                raise ArithmeticError("a row is not finite")
            return np.zeros(0, np.int64)

    group = LocalRanks(Executor())
    assert [tokens.tolist() for tokens in group.execute(idle_plans(1, 1))] == [[]]
    with pytest.raises(RankFailure, match="rank 0: ArithmeticError: a row is not finite"):
        group.execute(idle_plans(2, 1))
