"""What ``moeray eval`` shows while it runs: a bar on a terminal, else a line now and then."""

import time
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from moeray.cluster.tiny.eval_run import EvalRun

PLAIN_S: Final = 5.0
"""Between plain lines."""


class Display(Protocol):
    """Used as a context around a run; ``show`` is called often, and draws when it is time."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def show(self, run: EvalRun) -> None: ...


def display(console: Console, trials: int) -> Display:
    return LiveBar(console, trials) if console.is_terminal else PlainLines(console)


class LiveBar:
    """Answers done, the share that was right, and the time left."""

    def __init__(self, console: Console, trials: int) -> None:
        self._progress = Progress(
            BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=trials, figures="")

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

    def show(self, run: EvalRun) -> None:
        self._progress.update(self._task, completed=len(run.trials), figures=figures_line(run))


class PlainLines:
    """A line every few seconds, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begin = time.monotonic()
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

    def show(self, run: EvalRun) -> None:
        now_s = time.monotonic() - self._begin
        if now_s < self._next_s:
            return
        self._next_s = now_s + PLAIN_S
        left_s = seconds_left(now_s, len(run.trials), run.plan.trials)
        left = "" if left_s is None else f", {left_s:.0f} s left"
        self._console.print(f"{now_s:6.0f} s  {figures_line(run)}{left}", soft_wrap=True)


def figures_line(run: EvalRun) -> str:
    done = len(run.trials)
    right = f", {run.correct / done:.1%} right" if done else ""
    return f"{done}/{run.plan.trials} answers{right}"


def seconds_left(elapsed_s: float, done: int, total: int) -> float | None:
    """At the pace so far; None before anything is done."""
    return elapsed_s / done * (total - done) if done else None
