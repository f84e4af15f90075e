"""The validator's rules for how tokens are drawn, and for what ends an answer."""

from collections.abc import Callable
from typing import Final

from moeray.cluster.generation import SamplingParams
from moeray.cluster.violations import Violations
from moeray.v1 import inference_pb2
from moeray.vocabulary.harmony_tokens import FIRST_SPECIAL, VOCABULARY_SIZE

MAX_TEMPERATURE: Final = 2.0
MAX_PENALTY: Final = 2.0
MAX_LOGIT_BIAS: Final = 100.0
MAX_BIASED_TOKENS: Final = 1024
MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARACTERS: Final = 256
MAX_STOP_TOKENS: Final = 64
MAX_TOP_LOGPROBS: Final = 20
MAX_ANSWERS: Final = 16

_NO_TEXT_TOKEN: Final = f"not the id of a text token, 0 to {FIRST_SPECIAL - 1}"


def read_sampling(
    sampling: inference_pb2.Sampling, seed_source: Callable[[], int], found: Violations
) -> SamplingParams:
    """The sampling parameters, checked, with defaults where a field is not set."""
    temperature = sampling.temperature if sampling.HasField("temperature") else 1.0
    top_p = sampling.top_p if sampling.HasField("top_p") else 1.0
    repetition = sampling.repetition_penalty if sampling.HasField("repetition_penalty") else 1.0
    found.between("sampling.temperature", temperature, 0.0, MAX_TEMPERATURE)
    found.above("sampling.top_p", top_p, 0.0, 1.0)
    found.limit("sampling.top_k", sampling.top_k, VOCABULARY_SIZE, "tokens")
    found.between("sampling.min_p", sampling.min_p, 0.0, 1.0)
    found.above("sampling.repetition_penalty", repetition, 0.0, MAX_PENALTY)
    for name in ("presence_penalty", "frequency_penalty"):
        found.between(f"sampling.{name}", getattr(sampling, name), -MAX_PENALTY, MAX_PENALTY)
    return SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=sampling.top_k,
        seed=sampling.seed if sampling.HasField("seed") else seed_source(),
        min_p=sampling.min_p,
        repetition_penalty=repetition,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=_logit_bias(sampling, found),
    )


def check_endings(request: inference_pb2.GenerateRequest, found: Violations) -> None:
    """Check what may end an answer early, or late."""
    found.limit("stop", len(request.stop), MAX_STOP_STRINGS, "strings")
    for index, string in enumerate(request.stop[:MAX_STOP_STRINGS]):
        if not string:
            found.add(f"stop[{index}]", "must not be empty")
        found.limit(f"stop[{index}]", len(string), MAX_STOP_CHARACTERS, "characters")
    found.limit("stop_token_ids", len(request.stop_token_ids), MAX_STOP_TOKENS, "tokens")
    for index, token in enumerate(request.stop_token_ids[:MAX_STOP_TOKENS]):
        if token >= FIRST_SPECIAL:
            found.add(f"stop_token_ids[{index}]", f"{token} is {_NO_TEXT_TOKEN}")
    if request.HasField("max_output_tokens"):
        check_least_output(request.min_output_tokens, request.max_output_tokens, found)


def check_least_output(min_output_tokens: int, max_output_tokens: int, found: Violations) -> None:
    """Check that an answer may become as long as it must."""
    if min_output_tokens > max_output_tokens:
        found.add(
            "min_output_tokens",
            f"{min_output_tokens} tokens, above the limit of {max_output_tokens} output tokens",
        )


def check_alternatives(request: inference_pb2.GenerateRequest, found: Violations) -> None:
    """Check how many answers, and how many likeliest tokens, are asked for."""
    found.limit("top_logprobs", request.top_logprobs, MAX_TOP_LOGPROBS, "tokens")
    if request.HasField("n"):
        found.between("n", request.n, 1, MAX_ANSWERS)


def _logit_bias(
    sampling: inference_pb2.Sampling, found: Violations
) -> tuple[tuple[int, float], ...]:
    if not found.limit(
        "sampling.logit_bias", len(sampling.logit_bias), MAX_BIASED_TOKENS, "tokens"
    ):
        return ()
    biases = tuple(sorted(sampling.logit_bias.items()))
    for token, bias in biases:
        path = f"sampling.logit_bias[{token}]"
        if token >= FIRST_SPECIAL:
            found.add(path, f"{token} is {_NO_TEXT_TOKEN}")
        found.between(path, bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)
    return biases
