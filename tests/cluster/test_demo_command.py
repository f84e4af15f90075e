"""``moeray demo``: which model is asked what, and when it ends with 1."""

import pytest
from typer.testing import CliRunner, Result

from moeray.cluster.cli import app
from moeray.cluster.demo_command import PROMPT
from moeray.v1 import inference_pb2 as pb

from .started_cluster import replace_cluster
from .test_demo_questions import ASKED, PROBLEMS, problem
from .tiny.fake_inference import FakeInference, serving


@pytest.fixture
def service() -> FakeInference:
    return FakeInference([*PROBLEMS, problem(PROMPT, "Because.")])


def run(
    service: FakeInference, monkeypatch: pytest.MonkeyPatch, *arguments: str, embedded: bool = True
) -> Result:
    with serving(service) as target:
        replace_cluster(monkeypatch, target, embedded=embedded)
        return CliRunner().invoke(app, ["demo", *arguments])


def test_the_embedded_model_is_asked_three_questions(
    service: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(service, monkeypatch)
    assert result.exit_code == 0, result.output
    assert len(service.requests) == 7
    assert "What the client saw" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "embedded", "prompt"), [((), False, PROMPT), (("--prompt", ASKED), True, ASKED)]
)
def test_another_model_or_a_prompt_is_asked_at_each_effort(
    service: FakeInference,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    embedded: bool,
    prompt: str,
) -> None:
    result = run(service, monkeypatch, *arguments, embedded=embedded)
    assert result.exit_code == 0, result.output
    assert [request.messages[0].content for request in service.requests] == [prompt] * 3


def test_an_answer_that_is_not_in_form_ends_it_with_1(
    service: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silence(problem: object, request: pb.GenerateRequest, answer: pb.Answer) -> None:
        if request.reasoning_effort == pb.REASONING_EFFORT_LOW:
            answer.final = ""

    service.fault = silence
    result = run(service, monkeypatch)
    assert result.exit_code == 1
    assert result.stderr == "moeray: effort low: the answer is empty\n"


def test_ranks_that_cannot_be_are_refused_before_anything_starts() -> None:
    result = CliRunner().invoke(app, ["demo", "--ranks", "3"])
    assert result.exit_code == 1
    assert "ranks" in result.stderr
