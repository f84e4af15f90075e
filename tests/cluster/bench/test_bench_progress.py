"""What `moeray bench` shows while it runs."""

import io
from collections import deque
from typing import Any

import pytest
from rich.console import Console

from moeray.cluster.bench import progress
from moeray.cluster.bench.load import ClosedLoop
from moeray.cluster.bench.progress import LiveLine, PlainLines, display, share_done
from moeray.cluster.bench.run import Limits, LoadRun

from .bench_samples import record

LIMITS = Limits(requests=8, duration_s=None, timeout_s=None)


class SampleRun(LoadRun):
    """A run at a moment that the test chooses."""

    def __init__(self) -> None:
        nothing: Any = None
        super().__init__([], "", nothing, ClosedLoop(1), LIMITS, seed=0)
        self.moment_s = 0.0
        self.records += [record(), record()]
        self.running, self.failed, self.tokens = 3, 1, 500
        self.recent.ttft_s = deque([0.1, 0.2, 0.9])
        self.recent.inter_token_s = deque([0.004])

    @property
    def now_s(self) -> float:
        return self.moment_s


EXPECTED = "2/8 done, 3 running, 1 errors, 100 tok/s, TTFT p50 200 ms, ITL p50 4 ms"


def test_logs_get_a_line_now_and_then() -> None:
    out, run = io.StringIO(), SampleRun()
    shown = display(Console(file=out), LIMITS)
    assert isinstance(shown, PlainLines)
    with shown:
        for moment_s in (4.9, 5.0, 5.1, 9.9):
            run.moment_s = moment_s
            shown.show(run)
    assert out.getvalue() == f"     5 s  {EXPECTED}\n"


def test_a_terminal_gets_a_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LIVE_S", 0.0)
    out, run = io.StringIO(), SampleRun()
    shown = display(Console(file=out, force_terminal=True, width=140), LIMITS)
    assert isinstance(shown, LiveLine)
    run.moment_s = 5.0
    with shown:
        shown.show(run)
    assert EXPECTED in out.getvalue()


def test_a_run_without_tokens_shows_no_latency() -> None:
    run = SampleRun()
    run.recent.ttft_s.clear()
    run.moment_s = 5.0
    out = io.StringIO()
    with PlainLines(
        Console(file=out), Limits(requests=None, duration_s=60, timeout_s=None)
    ) as shown:
        shown.show(run)
    assert "2 done, 3 running" in out.getvalue()
    assert "TTFT p50 -, ITL" in out.getvalue()


def test_share_done_is_that_of_the_nearer_limit() -> None:
    run = SampleRun()
    run.moment_s = 5.0
    assert share_done(run, LIMITS) == 0.25
    assert share_done(run, Limits(requests=8, duration_s=10.0, timeout_s=None)) == 0.5
    assert share_done(run, Limits(requests=None, duration_s=2.0, timeout_s=None)) == 1.0
