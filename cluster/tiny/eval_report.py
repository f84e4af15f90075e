"""The results of ``moeray eval tiny`` as tables, and everything that is known of a run as JSON."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from moeray.cluster.generation import ReasoningEffort
from moeray.cluster.terminal import printable
from moeray.cluster.tiny.eval_figures import Figures, by_effort, by_task, criteria
from moeray.cluster.tiny.eval_run import BudgetTrial, Trial

SCHEMA: Final = "moeray.eval/1"
"""Of the JSON file; the number grows when a field changes its meaning or goes away."""
DEFINITIONS: Final = (
    "acc: share of problems whose final text is as expected, or whose JSON has the expected"
    " value; with a function, after exactly the call that was expected. Failed requests are wrong.",
    "think, out: mean tokens of a problem in the analysis, and in all; with a function, of both"
    " its turns.",
    "final: a call where none was due gets an error as its result, and the answer after it counts.",
    "Thinking budgets: drawn below what the model thought without, for a sample at high effort.",
)
ENOUGH_PROBLEMS: Final = 1000
"""What the criteria are meant to rest on."""
MAX_FAILURES: Final = 50
"""Kept in the JSON file for each task and effort."""
_SHOWN_EFFORTS: Final = {
    ReasoningEffort.LOW: "low",
    ReasoningEffort.MEDIUM: "med",
    ReasoningEffort.HIGH: "high",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    settings: dict[str, Any]
    """As given on the command line, defaults filled in."""
    environment: dict[str, Any]
    """Client, server, when it started and how long it took."""
    problems: int
    """Asked for, each at every effort."""
    ended_early: str
    """Why not all were asked; empty where they were."""
    trials: list[Trial]

    @property
    def budgets(self) -> list[BudgetTrial]:
        return [trial.budget for trial in self.trials if trial.budget is not None]

    @property
    def notes(self) -> list[str]:
        """What a reader must know before believing the figures."""
        found = []
        if self.ended_early:
            asked = self.problems * len(ReasoningEffort)
            found.append(
                f"Partial: {len(self.trials)} of {asked} answers, then: {self.ended_early}."
            )
        rests_on = len({trial.number for trial in self.trials})
        if rests_on < ENOUGH_PROBLEMS:
            found.append(
                f"Problems that this rests on: {rests_on}; the criteria are meant for"
                f" {ENOUGH_PROBLEMS} or more."
            )
        errors = Counter(trial.error for trial in self.trials if trial.error)
        found += [
            f"Requests that failed: {count}, with {error}" for error, count in errors.most_common(3)
        ]
        return found

    def to_json(self) -> str:
        """Everything; failures one by one, up to a limit."""
        document = {
            "schema": SCHEMA,
            "definitions": DEFINITIONS,
            "notes": self.notes,
            "settings": self.settings,
            "environment": self.environment,
            "problems": self.problems,
            "ended_early": self.ended_early,
            "efforts": _by_name(by_effort(self.trials)),
            "tasks": {task: _by_name(row) for task, row in by_task(self.trials).items()},
            "criteria": [asdict(criterion) for criterion in criteria(self.trials)],
            "budgets": {
                "total": len(self.budgets),
                "kept": sum(budget.kept for budget in self.budgets),
                "correct": sum(budget.correct for budget in self.budgets),
                "not_kept": [asdict(budget) for budget in self.budgets if not budget.kept],
            },
            "failures": list(_failures(self.trials)),
        }
        return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def print_report(report: EvalReport, console: Console) -> None:
    """The tables, and what they mean."""
    parts: list[RenderableType] = [_figures_table(report), _criteria_table(report)]
    if report.budgets:
        right = sum(budget.correct for budget in report.budgets)
        parts.append(Text(f"Right within a thinking budget: {right} of {len(report.budgets)}.\n"))
    parts += [Text(line, style="dim") for line in DEFINITIONS]
    parts += [Text(printable(line), style="bold yellow") for line in report.notes]
    console.print(Group(*parts))


def _figures_table(report: EvalReport) -> Table:
    # Narrow, so that nine figures of a task fit into a line of 80 columns.
    table = Table(
        title="By task and effort",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("\ntask", no_wrap=True)
    table.add_column("\nasked", justify="right", no_wrap=True)
    for group in ("acc %", "think", "out"):
        for effort, shown in _SHOWN_EFFORTS.items():
            title = group if effort is ReasoningEffort.LOW else ""
            table.add_column(f"{title}\n{shown}", justify="right", min_width=5, no_wrap=True)
    rows = by_task(report.trials)
    for task, row in rows.items():
        table.add_row(*_figures_row(task, row), end_section=task == next(reversed(rows)))
    table.add_row(*_figures_row("all", by_effort(report.trials)), style="bold")
    return table


def _figures_row(name: str, row: dict[ReasoningEffort, Figures]) -> Iterator[Text]:
    found = [row.get(effort) for effort in ReasoningEffort]
    yield Text(printable(name))
    yield Text(str(max((each.problems for each in found if each is not None), default=0)))
    for each in found:
        yield Text("-" if each is None else f"{100 * each.accuracy:.1f}")
    for each in found:
        yield _mean(None if each is None else each.analysis_tokens)
    for each in found:
        yield _mean(None if each is None else each.output_tokens)


def _mean(tokens: float | None) -> Text:
    return Text("-" if tokens is None else f"{tokens:.{1 if tokens < 100 else 0}f}")


def _criteria_table(report: EvalReport) -> Table:
    table = Table(
        title="What is asked of the embedded model",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name in ("", "asked", "measured", "samples", "met"):
        justify: Literal["left", "right"] = "right" if name in ("measured", "samples") else "left"
        table.add_column(name, justify=justify, no_wrap=True)
    marks = {
        True: Text("yes", style="green"),
        False: Text("no", style="bold red"),
        None: Text("-"),
    }
    for each in criteria(report.trials):
        table.add_row(each.name, each.asked, each.measured, str(each.samples), marks[each.met])
    return table


def _by_name(row: dict[ReasoningEffort, Figures]) -> dict[str, dict[str, Any]]:
    return {effort.value: asdict(found) for effort, found in row.items()}


def _failures(trials: list[Trial]) -> Iterator[dict[str, Any]]:
    """The wrong answers in the order of the problems, at most so many of each task and effort."""
    kept: Counter[tuple[str, ReasoningEffort]] = Counter()
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.correct:
            continue
        kept[trial.task, trial.effort] += 1
        if kept[trial.task, trial.effort] > MAX_FAILURES:
            continue
        yield {
            "number": trial.number,
            "task": trial.task,
            "effort": trial.effort.value,
            "question": trial.question,
            "expected": trial.expected,
            "got": trial.got,
            "finish_reason": trial.score.finish_reason if trial.score else None,
            "error": trial.error,
        }
