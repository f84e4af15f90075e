"""A whole evaluation against a server in this process that knows the answers, or breaks them."""

import threading
from collections.abc import Sequence

import pytest
from google.rpc import code_pb2

from moeray.cluster.client import Client, ClientError
from moeray.cluster.generation import ReasoningEffort
from moeray.cluster.harmony import HarmonyRenderer
from moeray.cluster.tiny.eval_requests import problem_request, question, with_result
from moeray.cluster.tiny.eval_run import CALL_REFUSED, EvalRun, Plan, Trial
from moeray.cluster.tiny.problem import Problem
from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.cluster.validation import Validator
from moeray.v1 import inference_pb2 as pb

from .fake_inference import FakeInference, Fault, answer_of, in_words, serving
from .problem_samples import json_problem, mixed, sum_problem, user, weather_problem

HIGH = ReasoningEffort.HIGH


def evaluate(service: FakeInference, problems: Sequence[Problem], **plan: object) -> EvalRun:
    settings: dict[str, object] = {"seed": 0, "concurrency": 4, "pauses_s": (0.0, 0.0)}
    with serving(service) as target, Client(target) as client:
        run = EvalRun(client, Plan(problems=problems, **(settings | plan)))  # type: ignore[arg-type]
        run.run(lambda run: None)
    return run


def of(run: EvalRun, number: int, effort: ReasoningEffort = HIGH) -> Trial:
    (trial,) = (t for t in run.trials if t.number == number and t.effort is effort)
    return trial


def test_worked_solutions_are_right_at_every_effort() -> None:
    problems = mixed(6)
    service = FakeInference(problems)
    run = evaluate(service, problems, budget_every=100)
    assert (len(run.trials), run.correct, run.ended_early) == (18, 18, "")
    # Two of the six have a call, and so two requests; the first is asked again with a budget.
    assert len(service.requests) == 3 * 8 + 1
    assert service.peak <= 4
    thought = {effort: of(run, 0, effort).score for effort in ReasoningEffort}
    assert [score and score.analysis_tokens for score in thought.values()] == [0, 4, 9]
    call = of(run, 2).score
    assert call is not None
    assert (call.analysis_tokens, call.parsed_and_valid, call.right_call) == (18, True, True)


def test_requests_are_greedy_and_bounded_and_have_the_problems_date() -> None:
    service = FakeInference([sum_problem(1, 2)])
    evaluate(service, service.problems, budget_every=1)
    for request in service.requests:
        assert request.sampling.HasField("temperature") and request.sampling.temperature == 0
        assert (request.max_output_tokens, request.current_date) == (1024, "2026-01-01")
    assert sum(request.HasField("thinking_budget") for request in service.requests) == 1


def test_budgets_are_drawn_below_what_was_thought_and_kept() -> None:
    problems = mixed(9)
    run = evaluate(FakeInference(problems), problems, budget_every=2)
    budgets = {trial.number: trial.budget for trial in run.trials if trial.budget is not None}
    assert sorted(budgets) == [0, 2, 4, 6, 8]
    for budget in budgets.values():
        assert 1 <= budget.budget <= 8
        assert budget.kept and budget.correct and not budget.error
    again = evaluate(FakeInference(problems), problems, budget_every=2)
    assert {t.number: t.budget for t in again.trials if t.budget} == budgets
    other = evaluate(FakeInference(problems), problems, budget_every=2, seed=1)
    assert {t.number: t.budget for t in other.trials if t.budget} != budgets


def exceed(problem: Problem, request: pb.GenerateRequest, answer: pb.Answer) -> None:
    if request.HasField("thinking_budget"):
        answer.analysis = "word " * (request.thinking_budget + 1)


def empty_within_budget(problem: Problem, request: pb.GenerateRequest, answer: pb.Answer) -> None:
    if request.HasField("thinking_budget"):
        answer.final = " "


@pytest.mark.parametrize("fault", [exceed, empty_within_budget])
def test_budgets_that_are_not_kept_are_seen(fault: Fault) -> None:
    problems = [sum_problem(1, 2)]
    run = evaluate(FakeInference(problems, fault), problems)
    budget = of(run, 0).budget
    assert budget is not None and not budget.kept
    assert run.correct == 3


def test_a_wrong_call_ends_the_problem() -> None:
    def misname(problem: Problem, request: pb.GenerateRequest, answer: pb.Answer) -> None:
        for call in answer.tool_calls:
            call.name = "get_time"

    problems = [weather_problem(3)]
    service = FakeInference(problems, misname)
    run = evaluate(service, problems, budget_every=100)
    assert run.correct == 0
    trial = of(run, 0)
    assert trial.score is not None and trial.score.parsed_and_valid and not trial.score.right_call
    assert trial.expected == 'get_weather({"city": "Paris", "days": 3})'
    assert trial.got == 'get_time({"city": "Paris", "days": 3})'
    assert all(request.messages[-1].role == pb.ROLE_USER for request in service.requests)


def test_a_call_that_nobody_asked_for_is_wrong_and_is_refused() -> None:
    def call(problem: Problem, request: pb.GenerateRequest, answer: pb.Answer) -> None:
        if request.messages[-1].role != pb.ROLE_TOOL:
            answer.tool_calls.add(id="call-1", name="find_train", arguments="{}")
            answer.final = ""

    problems = [sum_problem(1, 2)]
    service = FakeInference(problems, call)
    trial = of(evaluate(service, problems, budget_every=100), 0)
    assert trial.score is not None and not trial.score.correct and trial.score.final_not_empty
    assert trial.score.parsed_and_valid is None
    assert trial.got == "find_train({})"
    assert service.requests[-1].messages[-1].content == CALL_REFUSED


def test_invalid_json_and_an_empty_final_are_seen() -> None:
    def spoil(problem: Problem, request: pb.GenerateRequest, answer: pb.Answer) -> None:
        answer.final = answer.final[:-1] if problem.task == "json" else ""

    problems = [json_problem(3), sum_problem(1, 2)]
    run = evaluate(FakeInference(problems, spoil), problems)
    as_json, empty = of(run, 0).score, of(run, 1).score
    assert as_json is not None and not as_json.correct and as_json.final_not_empty
    assert empty is not None and not empty.correct and not empty.final_not_empty
    assert of(run, 0).got == '{"value": 3, "big": false'


@pytest.mark.parametrize("code", [code_pb2.UNAVAILABLE, code_pb2.RESOURCE_EXHAUSTED])
def test_a_server_that_is_busy_for_a_moment_costs_nothing(code: "code_pb2.Code.ValueType") -> None:
    problems = [sum_problem(1, 2)]
    run = evaluate(FakeInference(problems, busy=2, busy_code=code), problems, concurrency=1)
    assert run.correct == 3


@pytest.mark.parametrize(
    ("code", "retry_ms", "after_s"),
    [
        (code_pb2.UNAVAILABLE, 250, 0.25),
        (code_pb2.UNAVAILABLE, 0, 0.0),
        (code_pb2.RESOURCE_EXHAUSTED, 250, 0.25),
        (code_pb2.RESOURCE_EXHAUSTED, 0, None),
        (code_pb2.DEADLINE_EXCEEDED, 250, None),
    ],
)
def test_the_client_says_when_another_try_may_help(
    code: "code_pb2.Code.ValueType", retry_ms: int, after_s: float | None
) -> None:
    service = FakeInference([], busy=1, busy_code=code, retry_ms=retry_ms)
    with (
        serving(service) as target,
        Client(target) as client,
        pytest.raises(ClientError, match="no engine") as failed,
    ):
        client.complete(problem_request(sum_problem(1, 2), HIGH))
    assert failed.value.retry_after_s == after_s


def test_a_request_that_goes_on_failing_counts_as_wrong_with_the_reason() -> None:
    problems = [sum_problem(1, 2)]
    service = FakeInference(problems, busy=3)
    run = evaluate(service, problems, concurrency=1)
    failed, *others = sorted(run.trials, key=lambda trial: trial.effort is not ReasoningEffort.LOW)
    assert failed.score is None and not failed.correct
    assert failed.error.startswith("UNAVAILABLE: no engine")
    assert all(trial.correct for trial in others)
    assert run.ended_early == ""


def test_what_no_retry_can_save_is_not_tried_again() -> None:
    problems = [sum_problem(1, 2)]
    service = FakeInference(problems, refuse="max_output_tokens: too many")
    run = evaluate(service, problems)
    assert len(service.requests) == 3
    assert {trial.error for trial in run.trials} == {
        "INVALID_ARGUMENT: max_output_tokens: too many"
    }


def test_a_server_that_is_gone_ends_the_run() -> None:
    problems = mixed(60)
    run = evaluate(FakeInference(problems, refuse="no"), problems)
    assert len(run.trials) == 20
    assert run.ended_early == "20 requests in a row failed, the last: INVALID_ARGUMENT: no"


def test_an_interrupt_ends_the_run_and_what_is_in_flight() -> None:
    problems = mixed(30)
    service = FakeInference(problems)

    def interrupt(run: EvalRun) -> None:
        if len(run.trials) >= 5:
            service.gate.clear()
            raise KeyboardInterrupt

    with serving(service) as target:
        with Client(target) as client:
            run = EvalRun(client, Plan(problems=problems, seed=0, concurrency=4))
            run.run(interrupt)
        assert run.ended_early == "interrupted"
        assert 5 <= len(run.trials) < run.plan.trials
        # Closing the client ended the calls that the server would never have answered.
        for thread in threading.enumerate():
            if thread.name.startswith("eval"):
                thread.join(10)
                assert not thread.is_alive()


def test_the_analysis_before_a_call_stays_in_the_prompt_of_the_second_turn() -> None:
    problem = weather_problem(3)
    request = problem_request(problem, HIGH)
    answer = answer_of(problem, request)
    in_words(answer)
    second = with_result(request, answer, '{"degrees": 21}')
    assert len(request.messages) == 1
    tokenizer = HarmonyTokenizer.load()
    renderer = HarmonyRenderer(tokenizer)
    checked = Validator(renderer.tool_problem).validate(second)
    text = tokenizer.harmony.decode_utf8(renderer.render(checked))
    assert text.endswith(
        "<|start|>assistant<|channel|>analysis<|message|>"
        "one two three four five six seven eight nine<|end|>"
        "<|start|>assistant to=functions.get_weather<|channel|>commentary <|constrain|>json"
        '<|message|>{"city": "Paris", "days": 3}<|call|>'
        "<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>"
        '{"degrees": 21}<|end|><|start|>assistant'
    )


def test_a_conversation_is_shown_whole() -> None:
    assert question(sum_problem(1, 2)) == "What is 1 + 2?"
    two = Problem(
        task="t", key="k", messages=user("a") + user("b"), current_date="2026-01-01",
        reply=sum_problem(1, 2).reply,
    )  # fmt: skip
    assert question(two) == "user: a\nuser: b"
