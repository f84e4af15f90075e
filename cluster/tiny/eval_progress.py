"""What ``moeray eval`` shows while it runs: a bar on a terminal, else a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from moeray.cluster.tiny.eval_run import EvalRun

PLAIN_S: Final = 5.0
"""Between plain lines."""

Show = Callable[[EvalRun], None]
"""Is called often, and draws when it is time."""


@contextmanager
def display(console: Console, trials: int) -> Iterator[Show]:
    """Around a run of so many trials: how to show it on ``console``."""
    if not console.is_terminal:
        yield PlainLines(console).show
        return
    columns = (BarColumn(20), TextColumn("{task.fields[figures]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=trials, figures="")
        yield lambda run: bar.update(task, completed=len(run.trials), figures=figures_line(run))


class PlainLines:
    """A line every few seconds, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begin = time.monotonic()
        self._next_s = PLAIN_S

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
