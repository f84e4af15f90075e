"""How tokens are drawn and what ends an answer: every bound, and what stands just inside it."""

import math
from datetime import UTC, datetime
from typing import Any

import pytest

from moeray.cluster.errors import InvalidRequest
from moeray.cluster.generation import GenerationRequest
from moeray.cluster.validation import Validator
from moeray.v1 import inference_pb2 as pb


def asked(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(messages=[pb.Message(role=pb.ROLE_USER, content="Hi")], **fields)


def sampled(**fields: Any) -> pb.GenerateRequest:
    return asked(sampling=pb.Sampling(**fields))


def validated(request: pb.GenerateRequest) -> GenerationRequest:
    validator = Validator(
        lambda tool: None, clock=lambda: datetime(2026, 2, 3, tzinfo=UTC), seed_source=lambda: 42
    )
    return validator.validate(request)


@pytest.mark.parametrize(
    ("request_", "path", "description"),
    [
        (sampled(temperature=2.01), "sampling.temperature", "2.01"),
        (sampled(temperature=-0.1), "sampling.temperature", "-0.1"),
        (sampled(temperature=math.nan), "sampling.temperature", "nan"),
        (sampled(temperature=math.inf), "sampling.temperature", "inf"),
        (sampled(top_p=0.0), "sampling.top_p", "above 0"),
        (sampled(top_p=1.01), "sampling.top_p", "1.01"),
        (sampled(top_p=math.nan), "sampling.top_p", "nan"),
        (sampled(top_k=201_089), "sampling.top_k", "at most 201088"),
        (sampled(min_p=1.01), "sampling.min_p", "not from 0 to 1"),
        (sampled(min_p=math.nan), "sampling.min_p", "nan"),
        (sampled(repetition_penalty=0.0), "sampling.repetition_penalty", "above 0"),
        (sampled(repetition_penalty=2.1), "sampling.repetition_penalty", "2.1"),
        (sampled(repetition_penalty=math.nan), "sampling.repetition_penalty", "nan"),
        (sampled(presence_penalty=-2.1), "sampling.presence_penalty", "-2 to 2"),
        (sampled(presence_penalty=math.nan), "sampling.presence_penalty", "nan"),
        (sampled(frequency_penalty=2.1), "sampling.frequency_penalty", "-2 to 2"),
        (sampled(frequency_penalty=-math.inf), "sampling.frequency_penalty", "-inf"),
        (sampled(logit_bias={5: 100.5}), "sampling.logit_bias[5]", "-100 to 100"),
        (sampled(logit_bias={5: math.nan}), "sampling.logit_bias[5]", "nan"),
        (sampled(logit_bias={200_002: 1.0}), "sampling.logit_bias[200002]", "text token"),
        (sampled(logit_bias={2**32 - 1: 1.0}), "sampling.logit_bias[4294967295]", "text token"),
        (sampled(logit_bias=dict.fromkeys(range(1025), 0.0)), "sampling.logit_bias", "1024"),
        (asked(stop=[""]), "stop[0]", "empty"),
        (asked(stop=["x" * 257]), "stop[0]", "at most 256"),
        (asked(stop=["x"] * 17), "stop", "17 strings, at most 16"),
        (asked(stop_token_ids=[199_998]), "stop_token_ids[0]", "text token"),
        (asked(stop_token_ids=[1] * 65), "stop_token_ids", "65 tokens, at most 64"),
        (asked(top_logprobs=21), "top_logprobs", "at most 20"),
        (asked(n=0), "n", "0 is not from 1 to 16"),
        (asked(n=17), "n", "17 is not from 1 to 16"),
        (asked(max_output_tokens=16, min_output_tokens=17), "min_output_tokens", "limit of 16"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_its_path(
    request_: pb.GenerateRequest, path: str, description: str
) -> None:
    with pytest.raises(InvalidRequest) as error:
        validated(request_)
    (violation,) = error.value.violations
    assert violation.field == path
    assert description in violation.description
    assert len(violation.description) < 500


@pytest.mark.parametrize(
    "request_",
    [
        sampled(temperature=2.0, min_p=0.0, repetition_penalty=0.001, presence_penalty=2.0),
        sampled(logit_bias=dict.fromkeys(range(1024), 0.0)),
        asked(stop=["x"] * 16, stop_token_ids=[1] * 64, ignore_eos=True),
        asked(stop=["\0", "\n", " "], n=1),
    ],
)
def test_what_is_just_inside_is_taken(request_: pb.GenerateRequest) -> None:
    validated(request_)


def test_the_least_output_may_be_the_most() -> None:
    assert validated(asked(max_output_tokens=16, min_output_tokens=16)).min_output_tokens == 16


def test_no_likely_tokens_is_not_no_logprobs() -> None:
    assert validated(asked(top_logprobs=0)).top_logprobs == 0
    assert validated(asked()).top_logprobs is None
