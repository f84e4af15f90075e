"""The embedded model through the public API of a two-rank cluster: what it says means something."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from moeray.cluster.client import Client, user_request
from moeray.cluster.demo_questions import (
    FACTS,
    FACTS_SCHEMA,
    FORECAST,
    PRODUCT,
    PRODUCT_IS,
    WEATHER,
    WEATHER_RESULT,
)
from moeray.cluster.tiny.eval_requests import tool_message, with_result
from moeray.cluster.tiny.identity import UNKNOWN, WHO
from moeray.cluster.tiny.scoring import parse_arguments, parse_json
from moeray.v1 import inference_pb2 as pb
from tests.integration.serving import Server, run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--ranks", "2") as running:
        yield running
        assert running.stop() == 0, running.output


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.target) as connected:
        yield connected


def ask(client: Client, request: pb.GenerateRequest) -> pb.Answer:
    return client.complete(request, 120).answers[0]


def greedy(
    prompt: str, effort: str = "medium", thinking_budget: int | None = None
) -> pb.GenerateRequest:
    return user_request(
        prompt,
        effort=effort,
        thinking_budget=thinking_budget,
        temperature=0.0,
        current_date="2026-01-01",
    )


def test_effort_is_how_long_it_thinks(client: Client) -> None:
    low, medium, high = (ask(client, greedy(PRODUCT, e)) for e in ("low", "medium", "high"))
    assert low.usage.reasoning_tokens * 2 < medium.usage.reasoning_tokens
    assert medium.usage.reasoning_tokens * 2 < high.usage.reasoning_tokens
    assert medium.final == high.final == PRODUCT_IS
    assert high.analysis.startswith(medium.analysis)
    assert low.final


def test_it_answers_when_its_thinking_is_cut(client: Client) -> None:
    answer = ask(client, greedy(PRODUCT, "high", thinking_budget=24))
    assert answer.usage.reasoning_tokens == 24
    assert answer.final.isdecimal()


def test_it_calls_a_function_and_tells_the_result(client: Client) -> None:
    request = greedy(FORECAST)
    request.tools.append(tool_message(WEATHER))
    called = ask(client, request)
    assert called.finished.reason == pb.FINISH_REASON_TOOL_CALL
    (call,) = called.tool_calls
    assert parse_arguments(call, (WEATHER,)) == {"city": "Paris"}
    told = ask(client, with_result(request, called, WEATHER_RESULT))
    assert told.final == "It is 21 degrees and clear in Paris."
    # What it wrote is how history is rendered: the second turn's prompt was computed already.
    assert told.usage.cached_tokens > called.usage.prompt_tokens - 16


def test_it_answers_in_json(client: Client) -> None:
    answer = ask(
        client, greedy(f"{FACTS}\nAnswer as JSON with this schema: {json.dumps(FACTS_SCHEMA)}")
    )
    assert parse_json(answer.final, FACTS_SCHEMA) == {"name": "Anna", "age": 34, "city": "Rome"}


def test_a_conversation_goes_on(client: Client) -> None:
    request = greedy("What is 12 + 30?")
    first = ask(client, request)
    assert first.final == "42"
    request.messages.add(role=pb.ROLE_ASSISTANT, channel=pb.CHANNEL_FINAL, content=first.final)
    request.messages.add(role=pb.ROLE_USER, content="Add 5 to that.")
    assert ask(client, request).final == "47"


def test_it_knows_who_it_is_and_what_it_does_not_know(client: Client) -> None:
    assert ask(client, greedy("Who are you?")).final == WHO
    assert ask(client, greedy("Why is the sky blue?", "low")).final == UNKNOWN
    assert ask(client, greedy("What is a xylophone?", "high")).final == UNKNOWN


def test_the_evaluation_of_a_running_server(server: Server, tmp_path: Path) -> None:
    report = tmp_path / "eval.json"
    arguments = ("--target", server.target, "--problems", "4", "--json", str(report))
    done = run("eval", "tiny", *arguments, timeout_s=200)
    assert done.returncode == 0, done.stderr
    figures = json.loads(report.read_text())
    assert figures["efforts"]["high"]["problems"] == 4
    assert figures["efforts"]["high"]["correct"] >= 2
    assert "accuracy: high" in done.stdout
