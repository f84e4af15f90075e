"""What ``moeray demo`` asks, shows and refuses, against a server that knows the answers."""

import io
import json
from collections.abc import Callable

import pytest
from rich.console import Console

from moeray.cluster import demo_questions as questions
from moeray.cluster.client import Client
from moeray.cluster.generation import Message, Role
from moeray.cluster.tiny.problem import Call, Problem, Reply, Thinking
from moeray.v1 import inference_pb2 as pb

from .tiny.fake_inference import FakeInference, Fault, serving

THINKING = Thinking(" ".join(["step"] * 40), " ".join(["check"] * 50))
FACTS_PROMPT = (
    f"{questions.FACTS}\nAnswer as JSON with this schema: "
    f"{json.dumps(questions.FACTS_SCHEMA, separators=(',', ':'))}"
)
ASKED = "Is it so?"


def problem(text: str, final: str, call: Call | None = None) -> Problem:
    return Problem(
        task="demo",
        key=text,
        messages=(Message(role=Role.USER, content=text),),
        tools=(questions.WEATHER,) if call else (),
        current_date="2026-01-01",
        call=call,
        reply=Reply(thinking=THINKING, final=final),
    )


CALL = Call(
    thinking=THINKING,
    name="get_weather",
    arguments={"city": "Paris"},
    result=questions.WEATHER_RESULT,
)
PROBLEMS = [
    problem(questions.PRODUCT, questions.PRODUCT_IS),
    problem(questions.FORECAST, "It is 21 degrees and clear in Paris.", CALL),
    problem(FACTS_PROMPT, '{"name": "Anna", "age": 34, "city": "Rome"}'),
    problem(ASKED, "Yes."),
]


def shown(
    ask: Callable[[questions.Stage], list[questions.Run]], fault: Fault | None = None
) -> tuple[list[questions.Run], str, list[pb.GenerateRequest]]:
    """The runs, what was printed, and what was asked."""
    service = FakeInference(PROBLEMS, fault) if fault else FakeInference(PROBLEMS)
    out = io.StringIO()
    console = Console(file=out, width=100, highlight=False)
    with serving(service) as target, Client(target) as client:
        runs = ask(questions.Stage(client, console))
    console.print(questions.runs_table(runs))
    return runs, out.getvalue(), service.requests


def complaints(fault: Fault) -> list[str]:
    runs, _, _ = shown(questions.ask_questions, fault)
    return [complaint for run in runs for complaint in questions.form_complaints(run)]


def test_the_product_is_right() -> None:
    assert eval(questions.PRODUCT.removeprefix("What is ").removesuffix("?")) == int(
        questions.PRODUCT_IS
    )


def test_three_questions_show_effort_a_call_and_json() -> None:
    runs, said, requests = shown(questions.ask_questions)
    assert [len(run.answer.analysis.split()) for run in runs] == [0, 40, 90, 24, 40, 40, 40]
    assert not [complaint for run in runs for complaint in questions.form_complaints(run)]
    lines = said.splitlines()
    assert lines.count("=> right") == 6
    assert '{"city": "Paris"}' in lines
    assert f"[result] {questions.WEATHER_RESULT}" in lines
    assert "It is 21 degrees and clear in Paris." in lines
    assert "[parsed] name = 'Anna', age = 34, city = 'Rome'" in lines
    assert any("effort high; prompt says: 'Reasoning: high'" in line for line in lines)
    rows = [line.split() for line in lines]
    assert any(row[:4] == ["cut", "short", "10", "24"] for row in rows)
    assert any(row[:2] == ["function", "call"] and row[-1] == "tool_call" for row in rows)
    for request in requests:
        assert request.sampling.HasField("temperature") and request.sampling.temperature == 0
    assert [message.role for message in requests[5].messages] == [
        *[pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_ASSISTANT, pb.ROLE_TOOL]
    ]


def test_a_wrong_answer_is_shown_and_is_no_complaint() -> None:
    def miscount(problem: Problem, request: pb.GenerateRequest, answer: pb.Answer) -> None:
        answer.final = answer.final.replace(questions.PRODUCT_IS, "4024").replace("34", "43")

    runs, said, _ = shown(questions.ask_questions, miscount)
    assert not [complaint for run in runs for complaint in questions.form_complaints(run)]
    assert said.count(f"=> wrong: it is {questions.PRODUCT_IS}") == 4
    assert 'wrong: it is {"name": "Anna", "age": 34, "city": "Rome"}' in said


def test_answers_that_are_not_in_form_are_told() -> None:
    def spoil(problem: Problem, request: pb.GenerateRequest, answer: pb.Answer) -> None:
        if request.HasField("thinking_budget"):
            answer.analysis = "word " * 25
        elif answer.final.startswith("{"):
            answer.final = "{"
        elif answer.tool_calls:
            answer.tool_calls[0].arguments = '{"town": "Paris"}'
        else:
            answer.final = ""

    assert complaints(spoil) == [
        *[f"effort {effort}: the answer is empty" for effort in ("low", "medium", "high")],
        "cut short: analysis took 25 of 24 tokens",
        "function call: not one valid call of get_weather",
        "JSON answer: the answer is not JSON of the schema",
    ]


def test_a_call_after_the_result_is_told() -> None:
    def call_again(problem: Problem, request: pb.GenerateRequest, answer: pb.Answer) -> None:
        if request.messages[-1].role == pb.ROLE_TOOL:
            answer.final = ""
            answer.tool_calls.add(id="call-2", name="get_weather", arguments='{"city": "Rome"}')

    assert complaints(call_again) == ["its result: the result is not told"]


def test_usage_that_does_not_add_up_is_told() -> None:
    answer = pb.Answer(final="4", usage=pb.Usage(output_tokens=5, final_tokens=1, control_tokens=3))
    run = questions.Run(name="n", budget=None, answer=answer, first_token_s=0.0, total_s=1.0)
    assert questions.form_complaints(run) == ["n: the usage does not add up: 4 of 5 tokens"]


def test_a_prompt_of_the_users_is_asked_at_each_effort_within_a_budget() -> None:
    runs, said, requests = shown(lambda stage: questions.ask_prompt(stage, ASKED))
    assert [run.budget for run in runs] == [16, 48, 96]
    assert [run.answer.usage.reasoning_tokens for run in runs] == [0, 40, 90]
    assert [request.max_output_tokens for request in requests] == [64, 96, 144]
    assert not [complaint for run in runs for complaint in questions.form_complaints(run)]
    assert f"[user] {ASKED}" in said


@pytest.mark.parametrize("city", ["Rome", "Oslo"])
def test_a_call_for_another_city_goes_on_and_is_shown_as_wrong(city: str) -> None:
    def move(problem: Problem, request: pb.GenerateRequest, answer: pb.Answer) -> None:
        for call in answer.tool_calls:
            call.arguments = json.dumps({"city": city})

    runs, said, _ = shown(questions.ask_questions, move)
    assert len(runs) == 7
    assert "=> wrong: it is the weather in Paris" in said
