"""Figures, criteria, tables and the JSON file of an evaluation, from trials made by hand."""

import io
import json
from collections.abc import Iterable
from dataclasses import replace

import pytest
from rich.console import Console

from moeray.cluster.generation import ReasoningEffort
from moeray.cluster.tiny.eval_figures import Criterion, by_effort, by_task, criteria
from moeray.cluster.tiny.eval_report import MAX_FAILURES, EvalReport, print_report
from moeray.cluster.tiny.eval_run import BudgetTrial, Trial
from moeray.cluster.tiny.scoring import Score

LOW, MEDIUM, HIGH = ReasoningEffort.LOW, ReasoningEffort.MEDIUM, ReasoningEffort.HIGH
RIGHT = Score(
    correct=True,
    parsed_and_valid=None,
    right_call=None,
    final_not_empty=True,
    analysis_tokens=10,
    output_tokens=20,
    finish_reason="stop",
)


def trial(number: int = 0, effort: ReasoningEffort = LOW, **fields: object) -> Trial:
    made = Trial(
        number=number,
        task="addition",
        effort=effort,
        question=f"question {number}",
        expected="1",
        got="2",
        needs_call=False,
        score=RIGHT,
        error="",
        budget=None,
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def scored(share: float, tokens: int, effort: ReasoningEffort, count: int = 100) -> list[Trial]:
    """``count`` trials of which ``share`` are right, each with ``tokens`` of analysis."""
    return [
        trial(n, effort, score=replace(RIGHT, correct=n < share * count, analysis_tokens=tokens))
        for n in range(count)
    ]


def calls(valid: int, right: int, count: int = 100) -> list[Trial]:
    scores = (
        replace(RIGHT, parsed_and_valid=n < valid, right_call=n < right) for n in range(count)
    )
    return [trial(n, needs_call=True, score=score) for n, score in enumerate(scores)]


def budgets(kept: Iterable[bool]) -> list[Trial]:
    return [
        trial(n, HIGH, budget=BudgetTrial(budget=3, kept=k, correct=False, got="", error=""))
        for n, k in enumerate(kept)
    ]


def criterion(name: str, trials: list[Trial]) -> Criterion:
    (found,) = (each for each in criteria(trials) if each.name == name)
    return found


@pytest.mark.parametrize(
    ("name", "trials", "measured", "met"),
    [
        ("accuracy: medium - low", [(0.5, 0, LOW), (0.65, 0, MEDIUM)], "+15.0 points", True),
        ("accuracy: medium - low", [(0.5, 0, LOW), (0.64, 0, MEDIUM)], "+14.0 points", False),
        ("accuracy: high - medium", [(0.9, 0, MEDIUM), (0.93, 0, HIGH)], "+3.0 points", True),
        ("accuracy: high - medium", [(0.9, 0, MEDIUM), (0.92, 0, HIGH)], "+2.0 points", False),
        ("accuracy: high - medium", [(0.99, 0, MEDIUM), (0.97, 0, HIGH)], "-2.0 points", True),
        ("accuracy: high", [(0.9, 0, HIGH)], "90.0%", True),
        ("accuracy: high", [(0.89, 0, HIGH)], "89.0%", False),
        ("analysis: medium / low", [(1, 5, LOW), (1, 10, MEDIUM)], "2.0 times", True),
        ("analysis: medium / low", [(1, 6, LOW), (1, 11, MEDIUM)], "1.8 times", False),
        ("analysis: medium / low", [(1, 0, LOW), (1, 11, MEDIUM)], "0 to 11.0", True),
        ("analysis: medium / low", [(1, 0, LOW), (1, 0, MEDIUM)], "-", None),
        ("analysis: high / medium", [(1, 10, MEDIUM), (1, 20, HIGH)], "2.0 times", True),
        ("analysis: high / medium", [(1, 10, MEDIUM), (1, 0, HIGH)], "0.0 times", False),
        ("accuracy: medium - low", [(0.5, 0, LOW)], "-", None),
    ],
)
def test_criteria_of_efforts(
    name: str,
    trials: list[tuple[float, int, ReasoningEffort]],
    measured: str,
    met: bool | None,
) -> None:
    found = criterion(name, [each for part in trials for each in scored(*part)])
    assert (found.measured, found.met) == (measured, met)
    assert found.samples == (0 if met is None else 100)


@pytest.mark.parametrize(
    ("name", "trials", "measured", "met"),
    [
        ("calls: parse and validate", calls(98, 98), "98.0%", True),
        ("calls: parse and validate", calls(97, 97), "97.0%", False),
        ("calls: right arguments", calls(98, 95), "95.0%", True),
        ("calls: right arguments", calls(98, 94), "94.0%", False),
        ("calls: right arguments", [trial()], "-", None),
        ("final: not empty", [trial(), trial(score=None)], "1 of 2", False),
        ("final: not empty", [trial(), trial()], "2 of 2", True),
        ("thinking budget: kept", budgets([True, True]), "2 of 2", True),
        ("thinking budget: kept", budgets([True, False]), "1 of 2", False),
        ("thinking budget: kept", [trial()], "-", None),
    ],
)
def test_criteria_of_single_answers(
    name: str, trials: list[Trial], measured: str, met: bool | None
) -> None:
    found = criterion(name, trials)
    assert (found.measured, found.met) == (measured, met)


def test_a_failed_call_is_no_valid_call() -> None:
    trials = [*calls(1, 1, 1), trial(needs_call=True, score=None, error="UNAVAILABLE")]
    assert criterion("calls: parse and validate", trials).measured == "50.0%"


def test_figures_by_effort_and_task() -> None:
    trials = [
        trial(0, LOW),
        trial(0, HIGH, score=replace(RIGHT, correct=False, analysis_tokens=40)),
        trial(1, LOW, score=None, error="UNAVAILABLE"),
        trial(2, LOW, task="dates", score=replace(RIGHT, analysis_tokens=0)),
    ]
    low = by_effort(trials)[LOW]
    assert (low.problems, low.correct, low.failed, low.accuracy) == (3, 2, 1, 2 / 3)
    assert (low.analysis_tokens, low.output_tokens) == (5.0, 20.0)
    tasks = by_task(trials)
    assert list(tasks) == ["addition", "dates"]
    assert list(tasks["addition"]) == [LOW, HIGH]
    assert by_effort([trials[2]])[LOW].analysis_tokens is None


def report(trials: list[Trial], problems: int = 2, ended_early: str = "") -> EvalReport:
    return EvalReport(
        settings={"seed": 5},
        environment={"server": {"model": "fake"}},
        problems=problems,
        ended_early=ended_early,
        trials=trials,
    )


def printed(made: EvalReport) -> str:
    out = io.StringIO()
    print_report(made, Console(file=out, width=100, highlight=False))
    return out.getvalue()


def test_the_tables_fit_and_say_what_they_rest_on() -> None:
    failed = trial(1, HIGH, score=None, error="UNAVAILABLE: no engine")
    lines = printed(report([trial(0), trial(0, MEDIUM), failed, *budgets([True])])).splitlines()
    rows = [line.split() for line in lines]
    assert ["addition", "2", "100.0", "100.0", "50.0", *["10.0"] * 3, *["20.0"] * 3] in rows
    assert any(row[:2] == ["all", "2"] for row in rows)
    assert "Right within a thinking budget: 0 of 1." in lines
    assert any(line.startswith("Problems that this rests on: 2;") for line in lines)
    assert "Requests that failed: 1, with UNAVAILABLE: no engine" in lines


def test_a_partial_run_says_so() -> None:
    said = printed(report([trial()], problems=1000, ended_early="interrupted"))
    assert "Partial: 1 of 3000 answers, then: interrupted." in said
    assert "Problems that this rests on: 1;" in said


def test_enough_problems_need_no_word() -> None:
    trials = [trial(number) for number in range(1000)]
    assert "rests on" not in printed(report(trials, problems=1000))


def test_a_run_without_answers_prints() -> None:
    assert "Partial: 0 of 6 answers" in printed(report([], ended_early="interrupted"))


def test_the_json_has_everything_but_too_many_failures() -> None:
    wrong = replace(RIGHT, correct=False, finish_reason="length")
    many = [trial(n, HIGH, score=wrong) for n in reversed(range(MAX_FAILURES + 5))]
    document = json.loads(report([*many, trial(3, LOW), *budgets([False])]).to_json())
    assert document["schema"] == "moeray.eval/1"
    assert document["settings"] == {"seed": 5}
    assert document["efforts"]["low"]["accuracy"] == 1.0
    assert document["tasks"]["addition"]["high"]["problems"] == MAX_FAILURES + 6
    assert {each["name"]: each["met"] for each in document["criteria"]}["accuracy: high"] is False
    assert document["budgets"] == {
        "total": 1,
        "kept": 0,
        "correct": 0,
        "not_kept": [{"budget": 3, "kept": False, "correct": False, "got": "", "error": ""}],
    }
    failures = document["failures"]
    assert [each["number"] for each in failures] == list(range(MAX_FAILURES))
    assert failures[7] == {
        "number": 7,
        "task": "addition",
        "effort": "high",
        "question": "question 7",
        "expected": "1",
        "got": "2",
        "finish_reason": "length",
        "error": "",
    }
