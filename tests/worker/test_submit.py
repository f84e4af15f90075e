"""Submit messages: good ones become requests, bad ones are refused by field."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeray.engine.v1 import engine_pb2
from moeray.worker.request import BodyKind, Header, RequestKey
from moeray.worker.submit import engine_request


def good_submit() -> engine_pb2.Submit:
    return engine_pb2.Submit(
        request_key=2**64 - 1,
        epoch=3,
        rank=1,
        prompt_token_ids=[5, 99],
        max_output_tokens=20,
        sampling=engine_pb2.Sampling(temperature=0.5, top_p=1.0, top_k=40, seed=2**64 - 1),
        channel_rules=engine_pb2.ChannelRules(
            turn_opening=[1, 2],
            headers=[engine_pb2.Header(token_ids=[3, 4], kind=engine_pb2.BODY_KIND_FINAL)],
            thinking_budget=0,
        ),
        priority=-7,
    )


def test_a_good_message_becomes_a_request() -> None:
    request = engine_request(good_submit(), link=4, vocabulary_size=100)
    assert request.key == RequestKey(4, 2**64 - 1)
    assert (request.epoch, request.rank, request.priority) == (3, 1, -7)
    assert (request.prompt, request.max_output_tokens) == ((5, 99), 20)
    assert (request.sampling.temperature, request.sampling.top_p) == (0.5, 1.0)
    assert (request.sampling.top_k, request.sampling.seed) == (40, 2**64 - 1)
    assert request.channel_rules.turn_opening == (1, 2)
    assert request.channel_rules.headers == (Header((3, 4), BodyKind.FINAL),)
    assert request.channel_rules.thinking_budget == 0


def test_no_budget_is_not_budget_zero_and_a_huge_top_k_is_all() -> None:
    submit = good_submit()
    submit.channel_rules.ClearField("thinking_budget")
    submit.sampling.top_k = 2**32 - 1
    request = engine_request(submit, link=1, vocabulary_size=100)
    assert request.channel_rules.thinking_budget is None
    assert request.sampling.top_k == 100


def _set(path: str, value: object) -> Callable[[engine_pb2.Submit], None]:
    def change(submit: engine_pb2.Submit) -> None:
        *folders, name = path.split(".")
        message: object = submit
        for folder in folders:
            message = getattr(message, folder)
        setattr(message, name, value)

    return change


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("prompt_token_ids: empty", lambda s: s.ClearField("prompt_token_ids")),
        ("prompt_token_ids: 100 is beyond", lambda s: s.prompt_token_ids.append(100)),
        ("prompt_token_ids: 4294967295", lambda s: s.prompt_token_ids.append(2**32 - 1)),
        ("max_output_tokens: 0", _set("max_output_tokens", 0)),
        ("sampling: missing", lambda s: s.ClearField("sampling")),
        ("sampling.temperature: nan", _set("sampling.temperature", float("nan"))),
        ("sampling.temperature: inf", _set("sampling.temperature", float("inf"))),
        ("sampling.temperature: -1", _set("sampling.temperature", -1.0)),
        ("sampling.top_p: 0", _set("sampling.top_p", 0.0)),
        ("sampling.top_p: 1.5", _set("sampling.top_p", 1.5)),
        ("sampling.top_p: nan", _set("sampling.top_p", float("nan"))),
        ("channel_rules: missing", lambda s: s.ClearField("channel_rules")),
        ("turn_opening: empty", lambda s: s.channel_rules.ClearField("turn_opening")),
        ("channel_rules.headers: empty", lambda s: s.channel_rules.ClearField("headers")),
        (r"headers\[1\].kind: 0", lambda s: s.channel_rules.headers.add(token_ids=[1])),
        (r"headers\[1\].kind: 9", lambda s: s.channel_rules.headers.add(token_ids=[1], kind=9)),
        (r"headers\[1\].token_ids: empty", lambda s: s.channel_rules.headers.add(kind=4)),
        (
            r"headers\[1\].token_ids: 100",
            lambda s: s.channel_rules.headers.add(token_ids=[100], kind=4),
        ),
    ],
)
def test_a_bad_message_is_refused_by_field(
    reason: str, change: Callable[[engine_pb2.Submit], None]
) -> None:
    submit = good_submit()
    change(submit)
    with pytest.raises(ValueError, match=reason):
        engine_request(submit, link=1, vocabulary_size=100)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_message_that_parses_is_taken_or_refused(data: bytes) -> None:
    submit = good_submit()
    try:
        submit.MergeFromString(data)
    except Exception:
        return
    try:
        request = engine_request(submit, link=1, vocabulary_size=100)
    except ValueError:
        return
    assert request.prompt
    assert max(request.prompt) < 100
