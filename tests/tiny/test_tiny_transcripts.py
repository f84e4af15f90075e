"""The embedded model says, word for word, what it said when it was trained.

A short form of the evaluation that needs no cluster: fixed held-out problems, greedy, in float32.
The golden file is written by ``python -m tests.tiny.golden``.
"""

from pathlib import Path

import pytest

from moeray.cluster.generation import GenerationRequest, ReasoningEffort
from tests.tiny.golden import TASK_AT_ALL_EFFORTS
from tests.tiny.transcripts import MARGIN, Transcriber, held_out, read_golden, request_of

CASES = read_golden()


@pytest.fixture(scope="module")
def transcriber(embedded_model: Path) -> Transcriber:
    return Transcriber(embedded_model)


@pytest.fixture(scope="module")
def requests() -> list[GenerationRequest]:
    problems = held_out(1 + max(case["index"] for case in CASES))
    return [request_of(problems[case["index"]], ReasoningEffort(case["effort"])) for case in CASES]


@pytest.fixture(scope="module")
def answers(transcriber: Transcriber, requests: list[GenerationRequest]) -> list[list[int]]:
    """All answers, run side by side in one engine."""
    return transcriber.answers(requests)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_transcript(
    number: int,
    transcriber: Transcriber,
    requests: list[GenerationRequest],
    answers: list[list[int]],
) -> None:
    case, answer = CASES[number], answers[number]
    prompt = transcriber.prompt(requests[number])
    assert transcriber.text(prompt) == case["prompt"], "the problems changed: write the file anew"
    assert transcriber.text(answer) == case["answer"]
    assert transcriber.least_margin(prompt, answer) >= MARGIN


def test_every_task_has_a_transcript() -> None:
    tasks = {problem.task for problem in held_out(400)}
    assert {case["task"] for case in CASES} == tasks


def test_effort_shows_in_the_analysis() -> None:
    lengths = {
        case["effort"]: len(case["answer"]) for case in CASES if case["task"] == TASK_AT_ALL_EFFORTS
    }
    assert lengths["low"] < lengths["medium"] < lengths["high"]
