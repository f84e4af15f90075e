"""From a gateway's Submit message to an EngineRequest, or the reason why not.

The gateway has validated the client's request; this is the engine's own guard, so that no message,
however wrong, reaches the scheduler or the model.
"""

from collections.abc import Sequence

from moeray.engine.v1 import engine_pb2
from moeray.worker.request import (
    BodyKind,
    ChannelRules,
    EngineRequest,
    Header,
    RequestKey,
    SamplingParams,
)

MAX_TEMPERATURE = 2.0

_BODY_KINDS = {
    engine_pb2.BODY_KIND_ANALYSIS: BodyKind.ANALYSIS,
    engine_pb2.BODY_KIND_COMMENTARY: BodyKind.COMMENTARY,
    engine_pb2.BODY_KIND_TOOL_CALL: BodyKind.TOOL_CALL,
    engine_pb2.BODY_KIND_FINAL: BodyKind.FINAL,
}


def engine_request(submit: engine_pb2.Submit, *, link: int, vocabulary_size: int) -> EngineRequest:
    """Raises ValueError that names the field and what is wrong with it."""
    if submit.max_output_tokens < 1:
        raise ValueError("max_output_tokens: 0 is below 1")
    return EngineRequest(
        key=RequestKey(link, submit.request_key),
        epoch=submit.epoch,
        rank=submit.rank,
        prompt=_tokens("prompt_token_ids", submit.prompt_token_ids, vocabulary_size),
        max_output_tokens=submit.max_output_tokens,
        sampling=_sampling(submit, vocabulary_size),
        channel_rules=_channel_rules(submit, vocabulary_size),
        priority=submit.priority,
    )


def _sampling(submit: engine_pb2.Submit, vocabulary_size: int) -> SamplingParams:
    if not submit.HasField("sampling"):
        raise ValueError("sampling: missing")
    sampling = submit.sampling
    # Written so that NaN fails too.
    if not 0 <= sampling.temperature <= MAX_TEMPERATURE:
        raise ValueError(
            f"sampling.temperature: {sampling.temperature} is not in 0 to {MAX_TEMPERATURE}"
        )
    if not 0 < sampling.top_p <= 1:
        raise ValueError(f"sampling.top_p: {sampling.top_p} is not above 0 and at most 1")
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        # More than the vocabulary means the same as the vocabulary, and fits an int32.
        top_k=min(sampling.top_k, vocabulary_size),
        seed=sampling.seed,
    )


def _channel_rules(submit: engine_pb2.Submit, vocabulary_size: int) -> ChannelRules:
    if not submit.HasField("channel_rules"):
        raise ValueError("channel_rules: missing")
    rules = submit.channel_rules
    if not rules.headers:
        raise ValueError("channel_rules.headers: empty")
    return ChannelRules(
        turn_opening=_tokens("channel_rules.turn_opening", rules.turn_opening, vocabulary_size),
        headers=tuple(
            _header(f"channel_rules.headers[{index}]", header, vocabulary_size)
            for index, header in enumerate(rules.headers)
        ),
        thinking_budget=rules.thinking_budget if rules.HasField("thinking_budget") else None,
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
