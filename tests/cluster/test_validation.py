"""The gate for requests: what it lets through, and every way it refuses with a path."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeray.cluster.errors import InvalidRequest
from moeray.cluster.generation import (
    Channel,
    GenerationRequest,
    Message,
    ReasoningEffort,
    Role,
    SamplingParams,
    Tool,
    ToolCall,
)
from moeray.cluster.harmony import HarmonyRenderer
from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.cluster.validation import Validator
from moeray.v1 import inference_pb2 as pb

SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}}'


@pytest.fixture(scope="module")
def renderer() -> HarmonyRenderer:
    return HarmonyRenderer(HarmonyTokenizer.load())


@pytest.fixture(scope="module")
def validator(renderer: HarmonyRenderer) -> Validator:
    return Validator(
        renderer.tool_problem,
        clock=lambda: datetime(2026, 2, 3, 23, 59, tzinfo=UTC),
        seed_source=lambda: 42,
    )


def user(content: str = "Hi") -> pb.Message:
    return pb.Message(role=pb.ROLE_USER, content=content)


def good() -> pb.GenerateRequest:
    """A request that uses every field that may be used."""
    return pb.GenerateRequest(
        model="gpt-oss-20b",
        messages=[
            pb.Message(role=pb.ROLE_SYSTEM, content="Be kind."),
            pb.Message(role=pb.ROLE_DEVELOPER, content="Be brief."),
            user("Weather?"),
            pb.Message(role=pb.ROLE_ASSISTANT, content="Hm.", channel=pb.CHANNEL_ANALYSIS),
            pb.Message(
                role=pb.ROLE_ASSISTANT,
                tool_calls=[pb.ToolCall(id="1", name="get_weather", arguments="no JSON")],
            ),
            pb.Message(role=pb.ROLE_TOOL, name="get_weather", content="sunny"),
        ],
        tools=[
            pb.Tool(name="get_weather", description="Weather.", parameters_json_schema=SCHEMA),
            pb.Tool(name="get_time"),
        ],
        reasoning_effort=pb.REASONING_EFFORT_HIGH,
        thinking_budget=0,
        sampling=pb.Sampling(
            temperature=0.0,
            top_p=0.5,
            top_k=201_088,
            seed=2**64 - 1,
            min_p=1.0,
            repetition_penalty=2.0,
            presence_penalty=-2.0,
            frequency_penalty=2.0,
            logit_bias={199_997: 100.0, 0: -100.0},
        ),
        max_output_tokens=16,
        priority=-100,
        conversation_id="c" * 128,
        current_date="2025-11-01",
        include_token_ids=True,
        stop=["\n\n", "🙂" * 256],
        top_logprobs=20,
        cache_salt="s" * 128,
        stop_token_ids=[199_997, 0, 0],
        ignore_eos=True,
        n=16,
    )


def test_every_field_of_a_good_request_is_carried_over(validator: Validator) -> None:
    assert validator.validate(good()) == GenerationRequest(
        model="gpt-oss-20b",
        messages=(
            Message(role=Role.SYSTEM, content="Be kind."),
            Message(role=Role.DEVELOPER, content="Be brief."),
            Message(role=Role.USER, content="Weather?"),
            Message(role=Role.ASSISTANT, content="Hm.", channel=Channel.ANALYSIS),
            Message(
                role=Role.ASSISTANT,
                content="",
                channel=Channel.COMMENTARY,
                tool_calls=(ToolCall("1", "get_weather", "no JSON"),),
            ),
            Message(role=Role.TOOL, content="sunny", name="get_weather"),
        ),
        tools=(
            Tool("get_weather", "Weather.", json.loads(SCHEMA)),
            Tool("get_time", "", None),
        ),
        reasoning_effort=ReasoningEffort.HIGH,
        thinking_budget=0,
        sampling=SamplingParams(
            temperature=0.0,
            top_p=0.5,
            top_k=201_088,
            seed=2**64 - 1,
            min_p=1.0,
            repetition_penalty=2.0,
            presence_penalty=-2.0,
            frequency_penalty=2.0,
            logit_bias=((0, -100.0), (199_997, 100.0)),
        ),
        max_output_tokens=16,
        priority=-100,
        conversation_id="c" * 128,
        current_date="2025-11-01",
        include_token_ids=True,
        stop=("\n\n", "🙂" * 256),
        top_logprobs=20,
        cache_salt="s" * 128,
        stop_token_ids=frozenset({0, 199_997}),
        ignore_eos=True,
        n=16,
    )


def test_defaults(validator: Validator) -> None:
    assert validator.validate(pb.GenerateRequest(messages=[user()])) == GenerationRequest(
        model="",
        messages=(Message(role=Role.USER, content="Hi"),),
        sampling=SamplingParams(temperature=1.0, top_p=1.0, top_k=0, seed=42),
        current_date="2026-02-03",
    )


def test_seeds_are_drawn_anew_when_none_is_given(renderer: HarmonyRenderer) -> None:
    validator = Validator(renderer.tool_problem)
    request = pb.GenerateRequest(messages=[user()])
    seeds = {validator.validate(request).sampling.seed for _ in range(8)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**64 for seed in seeds)


def violations(validator: Validator, request: pb.GenerateRequest) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as error:
        validator.validate(request)
    return {violation.field: violation.description for violation in error.value.violations}


def changed(change: Callable[[pb.GenerateRequest], Any]) -> pb.GenerateRequest:
    request = good()
    change(request)
    return request


def message(index: int, **fields: Any) -> Callable[[pb.GenerateRequest], None]:
    """Change fields of one message."""

    def change(request: pb.GenerateRequest) -> None:
        request.messages[index].MergeFrom(pb.Message(**fields))

    return change


def merged(**fields: Any) -> Callable[[pb.GenerateRequest], None]:
    return lambda request: request.MergeFrom(pb.GenerateRequest(**fields))


def schema(text: str) -> Callable[[pb.GenerateRequest], None]:
    def change(request: pb.GenerateRequest) -> None:
        request.tools[0].parameters_json_schema = text

    return change


def tool(**fields: Any) -> Callable[[pb.GenerateRequest], None]:
    return merged(tools=[pb.Tool(**fields)])


def nested(depth: int) -> str:
    return '{"type":"object","properties":{"a":' * depth + "{}" + "}}" * depth


def call(**fields: Any) -> Callable[[pb.GenerateRequest], None]:
    return message(4, tool_calls=[pb.ToolCall(**{"id": "2", "name": "f", **fields})])


PARAMETERS = "tools[0].parameters_json_schema"


@pytest.mark.parametrize(
    ("change", "path", "description"),
    [
        (lambda r: r.ClearField("messages"), "messages", "at least one"),
        (merged(messages=[user()] * 4091), "messages", "4097 messages, at most 4096"),
        (message(0, role=pb.ROLE_ASSISTANT, channel=9), "messages[0].channel", "9 is not"),
        (lambda r: setattr(r.messages[2], "role", 77), "messages[2].role", "77 is not a role"),
        (lambda r: r.messages[2].ClearField("role"), "messages[2].role", "0 is not a role"),
        (lambda r: r.messages[2].ClearField("content"), "messages[2].content", "empty"),
        (lambda r: r.messages[4].ClearField("tool_calls"), "messages[4].content", "empty"),
        (lambda r: r.messages[5].ClearField("content"), "messages[5].content", "empty"),
        (lambda r: r.messages.pop(), "messages[4].role", "user or a tool"),
        (message(2, channel=pb.CHANNEL_FINAL), "messages[2].channel", "assistant"),
        (message(2, name="get_time"), "messages[2].name", "tools"),
        (lambda r: r.messages[5].ClearField("name"), "messages[5].name", "1 to 64"),
        (lambda r: setattr(r.messages[5], "name", "other"), "messages[5].name", "'other'"),
        (message(5, tool_calls=[pb.ToolCall(id="2", name="f")]), "messages[5].tool_calls", "only"),
        (call(name="no name"), "messages[4].tool_calls[1].name", "1 to 64"),
        (call(id=""), "messages[4].tool_calls[1].id", "empty"),
        (call(id="1"), "messages[4].tool_calls[1].id", "another call"),
        (call(id="i" * 129), "messages[4].tool_calls[1].id", "at most 128"),
        (
            message(4, tool_calls=[pb.ToolCall(id=str(i), name="f") for i in range(9, 137)]),
            "messages[4].tool_calls",
            "129 calls, at most 128",
        ),
        (merged(tools=[pb.Tool(name=f"t{i}") for i in range(127)]), "tools", "129 tools"),
        (tool(name="a", description="d" * 300_000), "tools", "at most 262144"),
        (tool(name="a", description="d" * 32_769), "tools[2].description", "at most 32768"),
        (tool(name=""), "tools[2].name", "1 to 64"),
        (tool(name="n" * 65), "tools[2].name", "1 to 64"),
        (tool(name="größe"), "tools[2].name", "1 to 64"),
        (tool(name="a\n"), "tools[2].name", "1 to 64"),
        (tool(name="get_time"), "tools[2].name", "another tool"),
        (schema("{"), PARAMETERS, "not JSON"),
        (schema("[" * 30_000), PARAMETERS, "nested deeper"),
        (schema('{"type": "object", "minimum": NaN}'), PARAMETERS, "NaN is no JSON number"),
        (schema('{"type":"object","maximum":' + "9" * 5000 + "}"), PARAMETERS, "not JSON"),
        (schema("[]"), PARAMETERS, "must be a JSON object"),
        (schema('"object"'), PARAMETERS, "must be a JSON object"),
        (schema("{}"), PARAMETERS, '"type": "object"'),
        (schema('{"type": "array"}'), PARAMETERS, '"type": "object"'),
        (schema('{"type": "object", "properties": []}'), PARAMETERS, "not a JSON Schema"),
        (
            schema('{"type":"object","properties":{"a":{"type":"text"}}}'),
            PARAMETERS,
            "$.properties",
        ),
        (schema('{"type":"object","properties":{"a":{"pattern":"("}}}'), PARAMETERS, "JSON Schema"),
        (
            schema(json.dumps({"type": "object", "pattern": "(" * 20_000})),
            PARAMETERS,
            "",
        ),
        (schema('{"type":"object","title":"\\ud800"}'), PARAMETERS, "surrogate"),
        (schema('{"type":"object","properties":{"\\ud800":{}}}'), PARAMETERS, "surrogate"),
        (schema(json.dumps({"type": "object", "k" * 201: 1})), PARAMETERS, "longer than 200"),
        (schema(json.dumps({"type": "object", "description": "d" * 65_536})), PARAMETERS, "65536"),
        (schema(json.dumps({"type": "object", "allOf": [{}] * 2048})), PARAMETERS, "2048"),
        (schema(nested(17)), PARAMETERS, "nested deeper than 32"),
        (
            schema('{"type":"object","properties":{"a":{"minimum":1' + "0" * 400 + "}}}"),
            PARAMETERS,
            "cannot be rendered",
        ),
        (merged(reasoning_effort=9), "reasoning_effort", "9 is not"),
        (merged(thinking_budget=131_073), "thinking_budget", "at most 131072"),
        (merged(max_output_tokens=15), "max_output_tokens", "at least 16"),
        (lambda r: setattr(r, "max_output_tokens", 0), "max_output_tokens", "at least 16"),
        (merged(priority=101), "priority", "101"),
        (merged(priority=-101), "priority", "-101"),
        (merged(conversation_id="c" * 129), "conversation_id", "at most 128"),
        (merged(model="m" * 129), "model", "at most 128"),
        (merged(current_date="2025-02-29"), "current_date", "YYYY-MM-DD"),
        (merged(current_date="20250228"), "current_date", "YYYY-MM-DD"),
        (merged(current_date="today"), "current_date", "YYYY-MM-DD"),
        (merged(response_format=pb.ResponseFormat()), "response_format", "not supported"),
        (merged(cache_salt="s" * 129), "cache_salt", "at most 128"),
    ],
)
def test_what_is_wrong_is_refused_with_its_path(
    validator: Validator,
    change: Callable[[pb.GenerateRequest], Any],
    path: str,
    description: str,
) -> None:
    found = violations(validator, changed(change))
    assert set(found) == {path}
    assert description in found[path]
    assert len(found[path]) < 500


def test_all_violations_come_together(validator: Validator) -> None:
    request = pb.GenerateRequest(
        messages=[user(""), pb.Message(role=9, content="x")],
        tools=[pb.Tool(name="bad name"), pb.Tool(name="f", parameters_json_schema="[]")],
        reasoning_effort=9,
        sampling=pb.Sampling(temperature=3, top_p=2),
        response_format=pb.ResponseFormat(),
        stop=["x", ""],
        stop_token_ids=[200_002],
    )
    with pytest.raises(InvalidRequest) as error:
        validator.validate(request)
    assert [violation.field for violation in error.value.violations] == [
        "response_format",
        "tools[0].name",
        "tools[1].parameters_json_schema",
        "messages[0].content",
        "messages[1].role",
        "messages[1].role",
        "sampling.temperature",
        "sampling.top_p",
        "reasoning_effort",
        "stop[1]",
        "stop_token_ids[0]",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"type": "object"}',
        nested(15),
        '{"type":"object","properties":{"a":{"$ref":"#/$defs/a"}},"$defs":{"a":{"type":"null"}}}',
        '{"type":"object","properties":{"a":{"anyOf":[{"type":"string"},{"type":"null"}]}}}',
    ],
)
def test_schemas_that_are_let_through_can_be_rendered(
    validator: Validator, renderer: HarmonyRenderer, text: str
) -> None:
    request = validator.validate(changed(schema(text)))
    assert request.tools[0].parameters == (json.loads(text) if text else None)
    assert renderer.render(request)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "properties", "oneOf", "items", "enum", "default", "description", "title"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(["properties", "oneOf", "required", "default", "description"]),
        json_values,
        max_size=4,
    )
)
def test_any_schema_is_refused_or_rendered(
    validator: Validator, renderer: HarmonyRenderer, keywords: dict[str, Any]
) -> None:
    request = changed(schema(json.dumps({"type": "object", **keywords})))
    try:
        valid = validator.validate(request)
    except InvalidRequest as error:
        assert {violation.field for violation in error.violations} == {PARAMETERS}
    else:
        assert renderer.render(valid)


def test_tools_seen_before_are_not_checked_again() -> None:
    checked: list[str] = []

    def check(tool: Tool) -> str | None:
        checked.append(tool.name)
        return None

    validator = Validator(check)
    for _ in range(3):
        validator.validate(good())
    assert checked == ["get_weather", "get_time"]


def test_threads_share_a_validator(validator: Validator) -> None:
    requests = [changed(tool(name=f"t{i % 7}")) for i in range(64)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(validator.validate, requests))
    assert together == [validator.validate(request) for request in requests]
