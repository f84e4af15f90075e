"""Answers of the embedded model as whole texts, from the engine itself, with their margins.

The path is the real one but for Ray and gRPC: the gateway's renderer, the engine with its channel
automaton, greedy in float32. A margin is how far, in logits, the token that was taken stood above
the next one: where it is small, another machine's rounding may take another token.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from moeray.cluster.generation import (
    GenerationRequest,
    ReasoningEffort,
    SamplingParams,
)
from moeray.cluster.harmony import HarmonyRenderer
from moeray.cluster.tiny.problem import Problem
from moeray.cluster.tiny.problems import problems
from moeray.cluster.tiny.splits import Split
from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.engine.v1 import engine_pb2
from moeray.vocabulary.harmony_tokens import VOCABULARY_SIZE
from moeray.worker.batch import Batch
from moeray.worker.communicator import SingleRank
from moeray.worker.config import EngineConfig
from moeray.worker.engine import Engine
from moeray.worker.model_config import ModelConfig
from moeray.worker.rank import Rank
from moeray.worker.ranks import LocalRanks
from moeray.worker.submit import engine_request
from tests.worker.paged_run import BLOCK_TOKENS, CPU, PagedRun

GOLDEN = Path(__file__).parent.parent / "golden" / "tiny_transcripts.json"
MARGIN = 0.1
MAX_OUTPUT_TOKENS = 448


def held_out(count: int) -> list[Problem]:
    """The first held-out problems of seed 0."""
    return list(islice(problems(Split.HELD_OUT, 0), count))


def request_of(problem: Problem, effort: ReasoningEffort) -> GenerationRequest:
    """The first request of a problem, greedy."""
    return GenerationRequest(
        model="",
        messages=problem.messages,
        tools=problem.tools,
        reasoning_effort=effort,
        sampling=SamplingParams(temperature=0.0, seed=0),
        current_date=problem.current_date,
    )


class Transcriber:
    """The embedded model in an engine of its own, and the tokenizer to read it by."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._tokenizer = HarmonyTokenizer.load()
        self._renderer = HarmonyRenderer(self._tokenizer)
        self._prefill = PagedRun(model, kv_tokens=65536, step_tokens=1024, sequences=128)
        self._measured = 0

    def prompt(self, request: GenerationRequest) -> list[int]:
        return self._renderer.render(request)

    def text(self, tokens: Sequence[int]) -> str:
        """With control tokens spelled out."""
        return self._tokenizer.encoding.decode(list(tokens))

    def answers(self, requests: Sequence[GenerationRequest]) -> list[list[int]]:
        """The tokens of each request's answer, all of them run at once."""
        config = EngineConfig(model=self._model, max_running_per_rank=len(requests))
        rank = Rank.load(config, device=CPU, communicator=SingleRank())
        engine = Engine.of(config, ModelConfig.read(self._model / "config.json"), LocalRanks(rank))
        for number, request in enumerate(requests):
            engine.submit(
                engine_request(
                    self._submit(number, request), link=1, vocabulary_size=VOCABULARY_SIZE, now=0.0
                )
            )
        answers: list[list[int]] = [[] for _ in requests]
        while engine.busy:
            for row in engine.step():
                answers[row.key.key].extend(row.token_ids)
        return answers

    def least_margin(self, prompt: Sequence[int], answer: Sequence[int]) -> float:
        """The least margin of the answer's tokens, as one prefill of the model has them."""
        run = self._prefill
        text = [*prompt, *answer[:-1]]
        self._measured += 1
        batch = Batch.from_plan(run.plan({f"text {self._measured}": text}), BLOCK_TOKENS, CPU)
        places = torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)
        logits = run.model.forward(replace(batch, sample_rows=places), run.kv)
        taken = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        others = logits.scatter(1, torch.tensor(answer)[:, None], -torch.inf).amax(1)
        return float((taken - others).min())

    def _submit(self, number: int, request: GenerationRequest) -> engine_pb2.Submit:
        return engine_pb2.Submit(
            request_key=number,
            prompt_token_ids=self._renderer.render(request),
            max_output_tokens=MAX_OUTPUT_TOKENS,
            sampling=engine_pb2.Sampling(temperature=0.0, top_p=1.0, repetition_penalty=1.0),
            channel_rules=self._renderer.channel_rules(request),
        )


def read_golden() -> list[dict[str, str]]:
    return list(json.loads(GOLDEN.read_text(encoding="utf-8")))
