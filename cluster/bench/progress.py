"""What ``moeray bench`` shows while it runs: a live line on a terminal, else plain lines."""

import time
from collections import deque
from collections.abc import Sequence
from statistics import median
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from moeray.cluster.bench.run import Limits, LoadRun

PLAIN_S: Final = 5.0
"""Between plain lines."""
_LIVE_S: Final = 0.25
_RATE_WINDOW_S: Final = 3.0


class Display(Protocol):
    """Used as a context around a run; ``show`` is called often, and draws when it is time."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def show(self, run: LoadRun) -> None: ...


def display(console: Console, limits: Limits) -> Display:
    return LiveLine(console, limits) if console.is_terminal else PlainLines(console, limits)


class _Rate:
    """Tokens a second over the last few seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque([(0.0, 0)])

    def take(self, now_s: float, tokens: int) -> float:
        self._samples.append((now_s, tokens))
        while len(self._samples) > 2 and self._samples[1][0] < now_s - _RATE_WINDOW_S:
            self._samples.popleft()
        begin_s, before = self._samples[0]
        return (tokens - before) / max(now_s - begin_s, 1e-9)


class LiveLine:
    """A progress bar and the figures of the moment, drawn again four times a second."""

    def __init__(self, console: Console, limits: Limits) -> None:
        self._limits = limits
        self._rate = _Rate()
        self._next = 0.0
        self._progress = Progress(
            BarColumn(bar_width=6),  # leaves room for the figures in 80 columns
            TextColumn("{task.fields[figures]}"),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._progress.add_task("", total=1.0, figures="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, run: LoadRun) -> None:
        rate = self._rate.take(run.now_s, run.tokens)
        if time.perf_counter() < self._next:
            return
        self._next = time.perf_counter() + _LIVE_S
        figures = figures_line(run, self._limits, rate)
        self._progress.update(self._task, completed=share_done(run, self._limits), figures=figures)
        self._progress.refresh()


class PlainLines:
    """A line every few seconds, for logs."""

    def __init__(self, console: Console, limits: Limits) -> None:
        self._console = console
        self._limits = limits
        self._rate = _Rate()
        self._next_s = PLAIN_S

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def show(self, run: LoadRun) -> None:
        rate = self._rate.take(run.now_s, run.tokens)
        if run.now_s < self._next_s:
            return
        self._next_s = run.now_s + PLAIN_S
        self._console.print(
            f"{run.now_s:6.0f} s  {figures_line(run, self._limits, rate)}", soft_wrap=True
        )


def figures_line(run: LoadRun, limits: Limits, tokens_per_s: float) -> str:
    total = "" if limits.requests is None else f"/{limits.requests}"
    return (
        f"{len(run.records)}{total} done, {run.running} running, {run.failed} errors,"
        f" {tokens_per_s:,.0f} tok/s, TTFT p50 {_median_ms(run.recent.ttft_s)},"
        f" ITL p50 {_median_ms(run.recent.inter_token_s)}"
    )


def share_done(run: LoadRun, limits: Limits) -> float:
    """Of the limit that is nearer, 0 to 1."""
    by_count = len(run.records) / limits.requests if limits.requests else 0.0
    by_time = run.now_s / limits.duration_s if limits.duration_s else 0.0
    return min(1.0, max(by_count, by_time))


def _median_ms(latencies_s: Sequence[float]) -> str:
    return f"{1e3 * median(latencies_s):.0f} ms" if latencies_s else "-"
