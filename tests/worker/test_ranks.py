"""Groups of ranks: each in a process of its own, which may die, raise or hang."""

import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from moeray.worker.plan import Drawn, RankPlan
from moeray.worker.planner import Planner
from moeray.worker.ranks import LocalRanks, RankFailure, SocketRanks
from moeray.worker.sequence import Chunks, StepPlan
from moeray.worker.wire import Hello, encode_hello, send_message

# A rank without a model: it answers with the step, dies, raises or hangs at the step it is told.
RANK = textwrap.dedent(
    """
    import os, signal, sys
    import numpy as np
    from moeray.worker.plan import Drawn
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
                    return Drawn.plain(np.zeros(5, np.int64))
            return Drawn.plain(np.zeros(len(plan.samples.sequences), np.int64))

    serve_rank(Executor(), rank=int(rank), path=path, secret=bytes.fromhex(secret))
    """
)


def idle_plans(step: int, ranks: int) -> list[RankPlan]:
    return Planner(ranks).rank_plans(StepPlan(step, tuple(Chunks() for _ in range(ranks))))


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
            assert [len(drawn.tokens) for drawn in group.execute(idle_plans(step, 2))] == [0, 0]
        group.close()
        assert [process.wait(timeout=30) for process in processes] == [0, 0]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("die", "rank 1: lost: the peer closed"),
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


def test_a_stopped_rank_is_missed_in_a_step_long_before_the_step_times_out() -> None:
    group = SocketRanks(2, step_timeout_s=60, silence_s=1.5)
    with started(group, "", "hang") as processes:
        group.accept(timeout_s=60)
        group.execute(idle_plans(1, 2))
        processes[1].send_signal(signal.SIGSTOP)
        with pytest.raises(RankFailure, match=r"rank 1: it said nothing for 1.5 s"):
            group.execute(idle_plans(2, 2))


def test_a_stopped_rank_is_missed_between_steps() -> None:
    group = SocketRanks(2, silence_s=1.5)
    with started(group, "", "") as processes:
        group.accept(timeout_s=60)
        processes[0].send_signal(signal.SIGSTOP)
        with pytest.raises(RankFailure, match=r"rank 0: it said nothing for 1.5 s"):
            check_until_lost(group)


def test_a_rank_killed_between_steps_is_missed_without_a_step() -> None:
    group = SocketRanks(2)
    with started(group, "", "") as processes:
        group.accept(timeout_s=60)
        processes[1].kill()
        with pytest.raises(RankFailure, match="rank 1: lost"):
            check_until_lost(group)


def check_until_lost(group: SocketRanks) -> None:
    for _ in range(600):
        group.check()
        time.sleep(0.05)


def test_a_leader_that_stood_still_does_not_blame_its_ranks() -> None:
    group = SocketRanks(2, silence_s=1.5)
    with started(group, "", ""):
        group.accept(timeout_s=60)
        time.sleep(2.5)  # heartbeats pile up meanwhile
        group.check()
        assert len(group.execute(idle_plans(1, 2))) == 2


def test_a_machine_that_stood_still_costs_no_rank() -> None:
    group = SocketRanks(2, silence_s=1.5)
    with started(group, "", "") as processes:
        group.accept(timeout_s=60)
        group.check()
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)  # nobody runs, this process neither
        group.check()  # what was sent before
        group.check()
        for process in processes:
            process.send_signal(signal.SIGCONT)
        assert len(group.execute(idle_plans(1, 2))) == 2


def test_a_rank_that_hangs_still_says_that_it_lives() -> None:
    group = SocketRanks(1, step_timeout_s=3, silence_s=1)
    with started(group, "hang", at=1):
        group.accept(timeout_s=60)
        with pytest.raises(RankFailure, match="no answer within 3 s"):
            group.execute(idle_plans(1, 1))


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


def test_nothing_is_left_on_disk_once_the_ranks_are_connected() -> None:
    group = SocketRanks(1)
    folder = Path(group.path).parent
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    with started(group, ""):
        group.accept(timeout_s=60)
        assert not folder.exists()


def test_an_error_of_a_local_rank_is_a_rank_failure() -> None:
    class Executor:
        def execute(self, plan: RankPlan) -> Drawn:
            if plan.step == 2:
                raise ArithmeticError("a row is not finite")
            return Drawn.plain(np.zeros(0, np.int64))

    group = LocalRanks(Executor())
    assert [drawn.tokens.tolist() for drawn in group.execute(idle_plans(1, 1))] == [[]]
    with pytest.raises(RankFailure, match="rank 0: ArithmeticError: a row is not finite"):
        group.execute(idle_plans(2, 1))
