"""Random weights at temperature 2: a thousand answers, and not one malformed header or empty final.

The real path but for Ray and gRPC: rendered by the gateway's code, run by the engine on a
small random model, parsed by the gateway's parser, and by openai-harmony's strict one.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import openai_harmony as oh
import pytest
import torch

from moeray.cluster.generation import (
    GenerationRequest,
    Message,
    ReasoningEffort,
    Role,
    Tool,
)
from moeray.cluster.generation import SamplingParams as RequestedSampling
from moeray.cluster.harmony import HarmonyRenderer
from moeray.cluster.harmony_parser import HarmonyParser
from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.engine.v1 import engine_pb2
from moeray.vocabulary.harmony_tokens import VOCABULARY_SIZE
from moeray.worker.communicator import SingleRank
from moeray.worker.config import EngineConfig
from moeray.worker.engine import Engine
from moeray.worker.model_config import ModelConfig
from moeray.worker.rank import Rank
from moeray.worker.ranks import LocalRanks
from moeray.worker.request import EngineRequest, FinishReason
from moeray.worker.submit import engine_request

ANSWERS = 1000
LIMITS = (16, 17, 19, 22, 26, 32)
BUDGETS = (0, 1, 5, 12, None)
TOOL = Tool(name="get_weather", description="", parameters=None)
WITHOUT_TOOLS = 5
"""Of six requests, this many declare no tool."""


@pytest.fixture(scope="module")
def tokenizer() -> HarmonyTokenizer:
    return HarmonyTokenizer.load()


@pytest.fixture(scope="module")
def engine(random_model: Path) -> Engine:
    config = EngineConfig(model=random_model, step_tokens_per_rank=1024)
    rank = Rank.load(config, device=torch.device("cpu"), communicator=SingleRank())
    return Engine.of(config, ModelConfig.read(config.model / "config.json"), LocalRanks(rank))


def requests(renderer: HarmonyRenderer) -> Iterator[EngineRequest]:
    combinations = itertools.cycle(itertools.product(LIMITS, BUDGETS))
    for number, (limit, budget) in zip(range(ANSWERS), combinations, strict=False):
        asked = GenerationRequest(
            model="",
            messages=(Message(role=Role.USER, content=f"question {number}"),),
            tools=(TOOL,) if number % (WITHOUT_TOOLS + 1) == WITHOUT_TOOLS else (),
            reasoning_effort=tuple(ReasoningEffort)[number % 3],
            thinking_budget=budget,
            sampling=RequestedSampling(temperature=2.0, seed=number),
            current_date="2026-01-01",
        )
        submit = engine_pb2.Submit(
            request_key=number,
            prompt_token_ids=renderer.render(asked),
            max_output_tokens=limit,
            sampling=engine_pb2.Sampling(
                temperature=2.0, top_p=1.0, repetition_penalty=1.0, seed=number
            ),
            channel_rules=renderer.channel_rules(asked),
        )
        yield engine_request(submit, link=1, vocabulary_size=VOCABULARY_SIZE, now=0.0)


@pytest.mark.timeout(300)
def test_a_thousand_answers(engine: Engine, tokenizer: HarmonyTokenizer) -> None:
    asked = {request.key: request for request in requests(HarmonyRenderer(tokenizer))}
    for request in asked.values():
        engine.submit(request)
    tokens: dict[object, tuple[int, ...]] = dict.fromkeys(asked, ())
    reasons: dict[object, FinishReason] = {}
    while engine.busy:
        for row in engine.step():
            tokens[row.key] += row.token_ids
            if row.finish_reason is not None:
                reasons[row.key] = row.finish_reason
    engine.scheduler.check_integrity()
    assert len(reasons) == ANSWERS
    calls = 0
    for key, request in asked.items():
        calls += check(request, list(tokens[key]), reasons[key], tokenizer)
    # The declared tool is called now and then: its headers were legal, and drawn.
    assert 0 < calls < ANSWERS / WITHOUT_TOOLS


def check(
    request: EngineRequest,
    tokens: list[int],
    reason: FinishReason,
    tokenizer: HarmonyTokenizer,
) -> bool:
    """Checks one answer; returns whether it was a tool call."""
    parser = HarmonyParser(tokenizer.token_bytes)
    for token in tokens:
        parser.feed(token)
    ends_open = reason is FinishReason.LENGTH
    parser.finish()
    assert not parser.recoveries, (parser.recoveries, tokens)
    usage = parser.usage
    assert usage.total == len(tokens) <= request.max_output_tokens
    budget = request.channel_rules.thinking_budget
    assert budget is None or usage.analysis <= budget
    strict = oh.StreamableParser(tokenizer.harmony, role=oh.Role.ASSISTANT)
    for token in tokens:
        strict.process(token)  # raises where a header is malformed
    assert ends_open or strict.state is oh.StreamState.EXPECT_START
    if usage.final:
        return False
    assert usage.tool_call or reason is FinishReason.TOOL_CALL, tokens
    assert len(request.channel_rules.headers) > 2
    return True
