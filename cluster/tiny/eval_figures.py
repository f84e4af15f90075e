"""The figures of an evaluation, and the criteria that the embedded model is held to.

A request that failed counts as a wrong answer without a call and without a final text; means of
tokens are over the others. Accuracies are shares from 0 to 1; their differences are given in
percentage points.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from moeray.cluster.generation import ReasoningEffort
from moeray.cluster.tiny.eval_run import Trial

_ROUNDING: Final = 1e-9
LOW, MEDIUM, HIGH = ReasoningEffort.LOW, ReasoningEffort.MEDIUM, ReasoningEffort.HIGH


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of some problems at one effort."""

    problems: int
    correct: int
    failed: int
    """Requests without an answer."""
    accuracy: float
    analysis_tokens: float | None
    """Mean. None: no answer came."""
    output_tokens: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One thing that was asked of the model, and what was measured."""

    name: str
    asked: str
    measured: str
    met: bool | None
    """None: there was nothing to measure."""
    samples: int
    """What the figure rests on: problems, calls, answers or budgets."""


def figures(trials: Sequence[Trial]) -> Figures:
    """Of ``trials``, at least one."""
    scores = [trial.score for trial in trials if trial.score is not None]
    correct = sum(trial.correct for trial in trials)
    return Figures(
        problems=len(trials),
        correct=correct,
        failed=len(trials) - len(scores),
        accuracy=correct / len(trials),
        analysis_tokens=fmean(score.analysis_tokens for score in scores) if scores else None,
        output_tokens=fmean(score.output_tokens for score in scores) if scores else None,
    )


def by_effort(trials: Iterable[Trial]) -> dict[ReasoningEffort, Figures]:
    """Efforts without a trial are left out."""
    parts: dict[ReasoningEffort, list[Trial]] = {effort: [] for effort in ReasoningEffort}
    for trial in trials:
        parts[trial.effort].append(trial)
    return {effort: figures(part) for effort, part in parts.items() if part}


def by_task(trials: Iterable[Trial]) -> dict[str, dict[ReasoningEffort, Figures]]:
    """Tasks in the order of their names."""
    parts: dict[str, list[Trial]] = {}
    for trial in trials:
        parts.setdefault(trial.task, []).append(trial)
    return {task: by_effort(parts[task]) for task in sorted(parts)}


def criteria(trials: Sequence[Trial]) -> list[Criterion]:
    """Everything that is asked of the model, in the order in which it is reported."""
    efforts = by_effort(trials)
    low, medium, high = efforts.get(LOW), efforts.get(MEDIUM), efforts.get(HIGH)
    calls = [trial.score for trial in trials if trial.needs_call]
    budgets = [trial.budget for trial in trials if trial.budget is not None]
    return [
        _points("accuracy: medium - low", medium, low, asked=15.0, or_at_least=None),
        _points("accuracy: high - medium", high, medium, asked=3.0, or_at_least=0.97),
        _accuracy("accuracy: high", high, 0.9),
        _ratio("analysis: medium / low", medium, low, 2.0),
        _ratio("analysis: high / medium", high, medium, 2.0),
        _share(
            "calls: parse and validate", [s is not None and s.parsed_and_valid for s in calls], 0.98
        ),
        _share("calls: right arguments", [s is not None and s.right_call for s in calls], 0.95),
        _share(
            "final: not empty",
            [t.score is not None and t.score.final_not_empty for t in trials],
            1.0,
        ),
        _share("thinking budget: kept", [budget.kept for budget in budgets], 1.0),
    ]


def _points(
    name: str,
    more: Figures | None,
    less: Figures | None,
    *,
    asked: float,
    or_at_least: float | None,
) -> Criterion:
    words = f">= {asked:g} points"
    if or_at_least is not None:
        words += f" or >= {or_at_least:.0%}"
    if more is None or less is None:
        return _nothing(name, words)
    points = 100 * (more.accuracy - less.accuracy)
    return Criterion(
        name=name,
        asked=words,
        measured=f"{points:+.1f} points",
        met=points >= asked - _ROUNDING
        or (or_at_least is not None and more.accuracy >= or_at_least),
        samples=min(more.problems, less.problems),
    )


def _accuracy(name: str, found: Figures | None, asked: float) -> Criterion:
    words = f">= {asked:.0%}"
    if found is None:
        return _nothing(name, words)
    return Criterion(
        name=name,
        asked=words,
        measured=f"{found.accuracy:.1%}",
        met=found.accuracy >= asked,
        samples=found.problems,
    )


def _ratio(name: str, more: Figures | None, less: Figures | None, asked: float) -> Criterion:
    words = f">= {asked:g} times"
    if more is None or less is None:
        return _nothing(name, words)
    tokens, before = more.analysis_tokens or 0.0, less.analysis_tokens or 0.0
    if not tokens and not before:
        return _nothing(name, words)
    return Criterion(
        name=name,
        asked=words,
        measured=f"{tokens / before:.1f} times" if before else f"0 to {tokens:.1f}",
        met=tokens >= asked * before,
        samples=min(more.problems, less.problems),
    )


def _share(name: str, held: Sequence[bool | None], asked: float) -> Criterion:
    words = f">= {asked:.0%}" if asked < 1 else "all"
    if not held:
        return _nothing(name, words)
    count = sum(map(bool, held))
    return Criterion(
        name=name,
        asked=words,
        measured=f"{count / len(held):.1%}" if asked < 1 else f"{count} of {len(held)}",
        met=count / len(held) >= asked - _ROUNDING,
        samples=len(held),
    )


def _nothing(name: str, asked: str) -> Criterion:
    return Criterion(name=name, asked=asked, measured="-", met=None, samples=0)
