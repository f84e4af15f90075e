"""From a gateway's Submit message to an EngineRequest, or the reason why not.

The gateway has validated the client's request; this is the engine's own guard, so that no message,
however wrong, reaches the scheduler or the model.
"""

from collections.abc import Iterable, Sequence

from moeray.engine.v1 import engine_pb2
from moeray.vocabulary.harmony_tokens import FIRST_SPECIAL
from moeray.worker.request import (
    BodyKind,
    ChannelRules,
    EngineRequest,
    Header,
    RequestKey,
    SamplingParams,
)

MAX_TEMPERATURE = 2.0
MAX_REPETITION_PENALTY = 2.0
MAX_PENALTY = 2.0
MAX_BIAS = 100.0
MAX_BIASED_TOKENS = 1024
MAX_TOP_LOGPROBS = 20
MAX_STOP_TOKENS = 64
MAX_CACHE_SALT = 128
"""Characters."""

_BODY_KINDS = {
    engine_pb2.BODY_KIND_ANALYSIS: BodyKind.ANALYSIS,
    engine_pb2.BODY_KIND_COMMENTARY: BodyKind.COMMENTARY,
    engine_pb2.BODY_KIND_TOOL_CALL: BodyKind.TOOL_CALL,
    engine_pb2.BODY_KIND_FINAL: BodyKind.FINAL,
}


def engine_request(
    submit: engine_pb2.Submit, *, link: int, vocabulary_size: int, now: float
) -> EngineRequest:
    """Raises ValueError that names the field and what is wrong with it.

    ``now`` is time.monotonic(): the deadline is reckoned from it.
    """
    if submit.max_output_tokens < 1:
        raise ValueError("max_output_tokens: 0 is below 1")
    if len(submit.cache_salt) > MAX_CACHE_SALT:
        raise ValueError(f"cache_salt: longer than {MAX_CACHE_SALT} characters")
    has_deadline = submit.HasField("time_left_ms")
    return EngineRequest(
        key=RequestKey(link, submit.request_key),
        epoch=submit.epoch,
        rank=submit.rank,
        prompt=_tokens("prompt_token_ids", submit.prompt_token_ids, vocabulary_size),
        max_output_tokens=submit.max_output_tokens,
        sampling=_sampling(submit, vocabulary_size),
        channel_rules=_channel_rules(submit, vocabulary_size),
        priority=submit.priority,
        cache_salt=submit.cache_salt,
        deadline=now + submit.time_left_ms / 1000 if has_deadline else None,
    )


def _sampling(submit: engine_pb2.Submit, vocabulary_size: int) -> SamplingParams:
    if not submit.HasField("sampling"):
        raise ValueError("sampling: missing")
    sampling = submit.sampling
    _check_within("sampling.temperature", sampling.temperature, 0, MAX_TEMPERATURE)
    _check_above_zero("sampling.top_p", sampling.top_p, 1)
    _check_within("sampling.min_p", sampling.min_p, 0, 1)
    _check_above_zero(
        "sampling.repetition_penalty", sampling.repetition_penalty, MAX_REPETITION_PENALTY
    )
    for name in ("presence_penalty", "frequency_penalty"):
        _check_within(f"sampling.{name}", getattr(sampling, name), -MAX_PENALTY, MAX_PENALTY)
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        # More than the vocabulary means the same as the vocabulary, and fits an int32.
        top_k=min(sampling.top_k, vocabulary_size),
        seed=sampling.seed,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=_logit_bias(sampling, vocabulary_size),
        top_logprobs=_top_logprobs(sampling, vocabulary_size),
    )


def _logit_bias(
    sampling: engine_pb2.Sampling, vocabulary_size: int
) -> tuple[tuple[int, float], ...]:
    bias = sampling.logit_bias
    if len(bias) > MAX_BIASED_TOKENS:
        raise ValueError(f"sampling.logit_bias: {len(bias)} tokens are over {MAX_BIASED_TOKENS}")
    _check_text("sampling.logit_bias", bias, vocabulary_size)
    for token, value in bias.items():
        _check_within(f"sampling.logit_bias[{token}]", value, -MAX_BIAS, MAX_BIAS)
    return tuple(sorted(bias.items()))


def _top_logprobs(sampling: engine_pb2.Sampling, vocabulary_size: int) -> int | None:
    if not sampling.HasField("top_logprobs"):
        return None
    if sampling.top_logprobs > MAX_TOP_LOGPROBS:
        raise ValueError(
            f"sampling.top_logprobs: {sampling.top_logprobs} is above {MAX_TOP_LOGPROBS}"
        )
    return min(sampling.top_logprobs, vocabulary_size)


def _channel_rules(submit: engine_pb2.Submit, vocabulary_size: int) -> ChannelRules:
    if not submit.HasField("channel_rules"):
        raise ValueError("channel_rules: missing")
    rules = submit.channel_rules
    if not rules.headers:
        raise ValueError("channel_rules.headers: empty")
    if len(rules.stop_token_ids) > MAX_STOP_TOKENS:
        count = len(rules.stop_token_ids)
        raise ValueError(f"channel_rules.stop_token_ids: {count} are over {MAX_STOP_TOKENS}")
    _check_text("channel_rules.stop_token_ids", rules.stop_token_ids, vocabulary_size)
    if rules.min_output_tokens > submit.max_output_tokens:
        raise ValueError(
            f"channel_rules.min_output_tokens: {rules.min_output_tokens} is above"
            f" max_output_tokens {submit.max_output_tokens}"
        )
    return ChannelRules(
        turn_opening=_tokens("channel_rules.turn_opening", rules.turn_opening, vocabulary_size),
        headers=tuple(
            _header(f"channel_rules.headers[{index}]", header, vocabulary_size)
            for index, header in enumerate(rules.headers)
        ),
        thinking_budget=rules.thinking_budget if rules.HasField("thinking_budget") else None,
        stop_token_ids=frozenset(rules.stop_token_ids),
        ignore_eos=rules.ignore_eos,
        min_output_tokens=rules.min_output_tokens,
    )


def _header(field: str, header: engine_pb2.Header, vocabulary_size: int) -> Header:
    kind = _BODY_KINDS.get(header.kind)
    if kind is None:
        raise ValueError(f"{field}.kind: {header.kind} is no kind of body")
    return Header(_tokens(f"{field}.token_ids", header.token_ids, vocabulary_size), kind)


def _tokens(field: str, token_ids: Sequence[int], vocabulary_size: int) -> tuple[int, ...]:
    if not token_ids:
        raise ValueError(f"{field}: empty")
    if (largest := max(token_ids)) >= vocabulary_size:
        raise ValueError(f"{field}: {largest} is beyond the vocabulary of {vocabulary_size}")
    return tuple(token_ids)


def _check_text(field: str, token_ids: Iterable[int], vocabulary_size: int) -> None:
    limit = min(FIRST_SPECIAL, vocabulary_size)
    if (largest := max(token_ids, default=0)) >= limit:
        raise ValueError(f"{field}: {largest} is not a text token, which are below {limit}")


# Both are written so that NaN fails too.
def _check_within(field: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{field}: {value} is not in {least} to {most}")


def _check_above_zero(field: str, value: float, most: float) -> None:
    if not 0 < value <= most:
        raise ValueError(f"{field}: {value} is not above 0 and at most {most}")
