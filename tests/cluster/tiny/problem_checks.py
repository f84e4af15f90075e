"""What holds of every problem of the embedded model, whatever its task."""

import json
import random
from collections.abc import Callable
from functools import cache
from itertools import chain

from jsonschema import Draft202012Validator

from moeray.cluster.generation import (
    Channel,
    GenerationRequest,
    Message,
    ReasoningEffort,
    Role,
    SamplingParams,
    ToolCall,
)
from moeray.cluster.harmony import HarmonyRenderer
from moeray.cluster.tiny.problem import Call, Problem, Reply, Thinking
from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.cluster.tool_schema import parse_parameters
from moeray.cluster.validation import Validator
from moeray.v1 import inference_pb2

Draw = Callable[[random.Random], Problem]

SEEDS = range(2000)
RENDERED = 40
MOST_TOKENS = 480
LEAST_STEPS = 8
LEAST_RATIO = 2.1

_ROLES = {
    Role.DEVELOPER: inference_pb2.ROLE_DEVELOPER,
    Role.USER: inference_pb2.ROLE_USER,
    Role.ASSISTANT: inference_pb2.ROLE_ASSISTANT,
}


@cache
def tokenizer() -> HarmonyTokenizer:
    return HarmonyTokenizer.load()


@cache
def drawn(draw: Draw) -> tuple[Problem, ...]:
    return tuple(draw(random.Random(seed)) for seed in SEEDS)


def tokens(text: str) -> int:
    return len(tokenizer().encode(text))


def thinkings(problem: Problem) -> list[Thinking]:
    return [turn.thinking for turn in (problem.call, problem.reply) if turn is not None]


def check_family(draw: Draw, *, least_distinct: int, brief: bool = False) -> None:
    """Every problem is well formed, thinking grows with effort, and problems vary.

    At low effort there is no thinking, or one line where ``brief``.
    """
    problems = drawn(draw)
    for problem in problems:
        check_problem(problem)
    every = list(chain.from_iterable(thinkings(problem) for problem in problems))
    steps = [tokens(thinking.at(ReasoningEffort.MEDIUM)) for thinking in every]
    whole = [tokens(thinking.at(ReasoningEffort.HIGH)) for thinking in every]
    assert sum(whole) >= LEAST_RATIO * sum(steps)
    assert min(steps) >= LEAST_STEPS
    low = {thinking.at(ReasoningEffort.LOW) for thinking in every}
    assert not any("\n" in line for line in low)
    assert (low != {""}) is brief
    assert len({problem.key for problem in problems}) >= least_distinct
    assert [draw(random.Random(seed)) for seed in range(50)] == list(problems[:50])


def check_one_key_one_answer(draw: Draw) -> None:
    """What is right for a key is right for all its problems."""
    answers: dict[tuple[str, str], object] = {}
    for problem in drawn(draw):
        call = None if problem.call is None else problem.call.arguments
        right = call if call is not None else problem.reply.final
        assert answers.setdefault((problem.task, problem.key), right) == right


def check_renders(draw: Draw) -> None:
    """The gateway accepts the request, and the whole conversation is short."""
    renderer = HarmonyRenderer(tokenizer())
    validator = Validator(renderer.tool_problem)
    for problem in drawn(draw)[:RENDERED]:
        if problem.reply.schema is not None:
            parse_parameters(json.dumps(problem.reply.schema))
        request = validator.validate(_proto(problem))
        assert request.tools == problem.tools
        assert _whole_length(renderer, problem) <= MOST_TOKENS


def check_problem(problem: Problem) -> None:
    assert problem.key
    assert problem.messages[-1].role is Role.USER
    assert all(message.content.strip() == message.content != "" for message in problem.messages)
    _check_reply(problem.reply)
    names = [tool.name for tool in problem.tools]
    assert len(set(names)) == len(names)
    if problem.call is not None:
        _check_call(problem, problem.call)


def _check_reply(reply: Reply) -> None:
    assert reply.final.strip() == reply.final != ""
    if reply.schema is not None:
        Draft202012Validator(reply.schema).validate(json.loads(reply.final))


def _check_call(problem: Problem, call: Call) -> None:
    (tool,) = (tool for tool in problem.tools if tool.name == call.name)
    assert tool.parameters is not None
    closed = tool.parameters | {"additionalProperties": False}
    Draft202012Validator(closed).validate(call.arguments)
    assert call.result


def _proto(problem: Problem) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(
        messages=[
            inference_pb2.Message(role=_ROLES[message.role], content=message.content)
            for message in problem.messages
        ],
        tools=[
            inference_pb2.Tool(
                name=tool.name,
                description=tool.description,
                parameters_json_schema=json.dumps(tool.parameters),
            )
            for tool in problem.tools
        ],
        current_date=problem.current_date,
    )


def _whole_length(renderer: HarmonyRenderer, problem: Problem) -> int:
    """Tokens of prompt, thinking at high effort, call, result and answer."""
    turns: list[Message] = []
    if problem.call is not None:
        arguments = json.dumps(problem.call.arguments, separators=(",", ":"))
        call = ToolCall("call_1", problem.call.name, arguments)
        turns = [
            _analysis(problem.call.thinking),
            Message(
                role=Role.ASSISTANT, channel=Channel.COMMENTARY, content="", tool_calls=(call,)
            ),
            Message(role=Role.TOOL, name=call.name, content=problem.call.result),
        ]
    prompt = renderer.render(
        GenerationRequest(
            model="",
            messages=(*problem.messages, *turns, _analysis(problem.reply.thinking)),
            tools=problem.tools,
            reasoning_effort=ReasoningEffort.HIGH,
            sampling=SamplingParams(seed=0),
            current_date=problem.current_date,
        )
    )
    return len(prompt) + tokens(problem.reply.final) + 4


def _analysis(thinking: Thinking) -> Message:
    return Message(
        role=Role.ASSISTANT,
        channel=Channel.ANALYSIS,
        content=thinking.at(ReasoningEffort.HIGH),
    )
