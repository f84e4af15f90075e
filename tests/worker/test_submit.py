"""Submit messages: good ones become requests, bad ones are refused by field."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeray.engine.v1 import engine_pb2
from moeray.vocabulary.harmony_tokens import END, FIRST_SPECIAL, VOCABULARY_SIZE
from moeray.worker.request import (
    BodyKind,
    ChannelRules,
    EngineRequest,
    Header,
    RequestKey,
    SamplingParams,
)
from moeray.worker.submit import engine_request


def good_submit() -> engine_pb2.Submit:
    return engine_pb2.Submit(
        request_key=2**64 - 1,
        epoch=3,
        rank=1,
        prompt_token_ids=[5, 99],
        max_output_tokens=20,
        sampling=engine_pb2.Sampling(
            temperature=0.5, top_p=1.0, top_k=40, seed=2**64 - 1, repetition_penalty=1.0
        ),
        channel_rules=engine_pb2.ChannelRules(
            turn_opening=[1, 2],
            headers=[engine_pb2.Header(token_ids=[3, 4], kind=engine_pb2.BODY_KIND_FINAL)],
            thinking_budget=0,
        ),
        priority=-7,
    )


def taken(submit: engine_pb2.Submit, *, link: int = 1) -> EngineRequest:
    return engine_request(submit, link=link, vocabulary_size=100, now=50.0)


def test_a_good_message_becomes_a_request() -> None:
    request = taken(good_submit(), link=4)
    assert request.key == RequestKey(4, 2**64 - 1)
    assert (request.epoch, request.rank, request.priority) == (3, 1, -7)
    assert (request.prompt, request.max_output_tokens) == ((5, 99), 20)
    assert (request.sampling.temperature, request.sampling.top_p) == (0.5, 1.0)
    assert (request.sampling.top_k, request.sampling.seed) == (40, 2**64 - 1)
    assert request.channel_rules.turn_opening == (1, 2)
    assert request.channel_rules.headers == (Header((3, 4), BodyKind.FINAL),)
    assert request.channel_rules.thinking_budget == 0
    plain = SamplingParams(temperature=0.5, top_p=1.0, top_k=40, seed=2**64 - 1)
    assert request.sampling == plain
    assert (request.cache_salt, request.deadline) == ("", None)
    assert request.channel_rules == ChannelRules(
        turn_opening=(1, 2), headers=(Header((3, 4), BodyKind.FINAL),), thinking_budget=0
    )


def test_every_option_arrives() -> None:
    submit = good_submit()
    submit.sampling.MergeFrom(
        engine_pb2.Sampling(
            min_p=0.25,
            repetition_penalty=1.5,
            presence_penalty=-2.0,
            frequency_penalty=2.0,
            logit_bias={99: -100.0, 0: 100.0},
            top_logprobs=20,
        )
    )
    rules = engine_pb2.ChannelRules(stop_token_ids=[7, 8, 7], ignore_eos=True, min_output_tokens=20)
    submit.channel_rules.MergeFrom(rules)
    submit.cache_salt = "é" * 128
    submit.time_left_ms = 1_500
    request = taken(submit)
    sampling = request.sampling
    assert (sampling.min_p, sampling.repetition_penalty) == (0.25, 1.5)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-2.0, 2.0)
    assert (sampling.logit_bias, sampling.top_logprobs) == (((0, 100.0), (99, -100.0)), 20)
    assert request.channel_rules.stop_token_ids == {7, 8}
    assert request.channel_rules.ignore_eos
    assert request.channel_rules.min_output_tokens == 20
    assert (request.cache_salt, request.deadline) == ("é" * 128, 51.5)


def test_no_time_left_is_a_deadline_and_no_top_logprobs_are_log_probabilities() -> None:
    submit = good_submit()
    submit.time_left_ms = 0
    submit.sampling.top_logprobs = 0
    request = taken(submit)
    assert (request.deadline, request.sampling.top_logprobs) == (50.0, 0)


def test_no_budget_is_not_budget_zero_and_a_huge_top_k_is_all() -> None:
    submit = good_submit()
    submit.channel_rules.ClearField("thinking_budget")
    submit.sampling.top_k = 2**32 - 1
    request = taken(submit)
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
        ("sampling.min_p: 1.5", _set("sampling.min_p", 1.5)),
        ("sampling.min_p: -0.1", _set("sampling.min_p", -0.1)),
        ("sampling.min_p: nan", _set("sampling.min_p", float("nan"))),
        ("sampling.repetition_penalty: 0.0", _set("sampling.repetition_penalty", 0.0)),
        ("sampling.repetition_penalty: 2.5", _set("sampling.repetition_penalty", 2.5)),
        ("sampling.repetition_penalty: nan", _set("sampling.repetition_penalty", float("nan"))),
        ("sampling.presence_penalty: -2.1", _set("sampling.presence_penalty", -2.1)),
        ("sampling.presence_penalty: nan", _set("sampling.presence_penalty", float("nan"))),
        ("sampling.frequency_penalty: 2.1", _set("sampling.frequency_penalty", 2.1)),
        ("sampling.frequency_penalty: nan", _set("sampling.frequency_penalty", float("nan"))),
        ("sampling.logit_bias: 100 is", lambda s: s.sampling.logit_bias.update({100: 1.0})),
        (r"logit_bias\[5\]: 100.5", lambda s: s.sampling.logit_bias.update({5: 100.5})),
        (r"logit_bias\[5\]: nan", lambda s: s.sampling.logit_bias.update({5: float("nan")})),
        ("sampling.top_logprobs: 21", _set("sampling.top_logprobs", 21)),
        ("stop_token_ids: 100 is", lambda s: s.channel_rules.stop_token_ids.append(100)),
        ("stop_token_ids: 65 are", lambda s: s.channel_rules.stop_token_ids.extend([1] * 65)),
        ("min_output_tokens: 21", _set("channel_rules.min_output_tokens", 21)),
        ("cache_salt: longer", _set("cache_salt", "x" * 129)),
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
        taken(submit)


def test_bias_and_stop_tokens_are_of_text_and_not_too_many() -> None:
    submit = good_submit()
    submit.sampling.logit_bias.update(dict.fromkeys(range(1025), 1.0))
    with pytest.raises(ValueError, match=r"sampling.logit_bias: 1025 tokens are over 1024"):
        engine_request(submit, link=1, vocabulary_size=VOCABULARY_SIZE, now=0.0)
    for change in (
        lambda s: s.sampling.logit_bias.update({END: 1.0}),
        lambda s: s.channel_rules.stop_token_ids.append(FIRST_SPECIAL),
    ):
        submit = good_submit()
        change(submit)
        with pytest.raises(ValueError, match="is not a text token"):
            engine_request(submit, link=1, vocabulary_size=VOCABULARY_SIZE, now=0.0)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_message_that_parses_is_taken_or_refused(data: bytes) -> None:
    submit = good_submit()
    try:
        submit.MergeFromString(data)
    except Exception:
        return
    try:
        request = taken(submit)
    except ValueError:
        return
    assert request.prompt
    assert max(request.prompt) < 100
