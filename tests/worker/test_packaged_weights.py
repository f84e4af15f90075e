"""The model that ships with Moeray: its size, and that the tokens it does not store do no harm."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moeray.cluster.generation import GenerationRequest, Message, ReasoningEffort, Role, Tool
from moeray.cluster.generation import SamplingParams as RequestedSampling
from moeray.cluster.harmony import HarmonyRenderer
from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.vocabulary.harmony_tokens import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    MESSAGE,
    RETURN,
    START,
    VOCABULARY_SIZE,
)
from moeray.worker.batch import Batch
from moeray.worker.checkpoint_layout import TensorSpec
from moeray.worker.checkpoint_shape import CheckpointSize, shape_tensors
from moeray.worker.trained_weights import STORED_ROWS, TrainedWeights
from tests.worker.harmony_rules import encode
from tests.worker.paged_run import BLOCK_TOKENS, CPU, PagedRun
from tests.worker.parity import TOLERANCE, error, transformers_logits

MOST_BYTES = 12_000_000
MOST_UNSTORED = 1e-4
"""Total probability of the tokens that are not stored, at temperature 1."""
ROWS_AT_ONCE = 64

WEATHER = Tool(
    name="get_weather",
    description="Tells the weather of a city.",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
)
QUESTIONS: dict[str, tuple[str, tuple[Tool, ...], ReasoningEffort]] = {
    "arithmetic": ("What is 4821 + 379?", (), ReasoningEffort.HIGH),
    "a tool": ("What is the weather in Oslo?", (WEATHER,), ReasoningEffort.MEDIUM),
    "unknown words": (
        "Explain zygomorphic quaternions to a xenolinguist, s'il vous plaît: перевод? 🦑",
        (),
        ReasoningEffort.LOW,
    ),
    "Japanese": ("次の数を小さい順に並べてください: 5, 3, 9", (), ReasoningEffort.MEDIUM),
    "nothing": ("?", (), ReasoningEffort.LOW),
}
ANSWER = (
    "<|channel|>analysis<|message|>4821 + 379 = 5200.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>5200<|return|>"
)
"""Behind each question, so that positions inside an answer count too."""


@pytest.fixture(scope="module")
def weights() -> TrainedWeights:
    return TrainedWeights.packaged()


@pytest.fixture(scope="module")
def folder(weights: TrainedWeights, request: pytest.FixtureRequest) -> Path:
    torch.set_num_threads(1)
    folder: Path = request.getfixturevalue("embedded_model")
    return folder


@pytest.fixture(scope="module")
def texts() -> dict[str, list[int]]:
    renderer = HarmonyRenderer(HarmonyTokenizer.load())
    return {
        name: [
            *renderer.render(
                GenerationRequest(
                    model="",
                    messages=(Message(role=Role.USER, content=question),),
                    tools=tools,
                    reasoning_effort=effort,
                    sampling=RequestedSampling(seed=0),
                    current_date="2026-01-01",
                )
            ),
            *encode(ANSWER),
        ]
        for name, (question, tools, effort) in QUESTIONS.items()
    }


def test_size(weights: TrainedWeights) -> None:
    assert weights.path.stat().st_size <= MOST_BYTES
    tensors = shape_tensors(CheckpointSize.TINY.shape)
    count = sum(_parameters(n, spec) for n, spec in tensors.items() if n not in STORED_ROWS)
    assert 5e6 <= count <= 15e6


def _parameters(name: str, spec: TensorSpec) -> int:
    if name.endswith("scales"):
        return 0
    return math.prod(spec.shape) * (2 if name.endswith("blocks") else 1)


def test_control_tokens_are_stored(weights: TrainedWeights) -> None:
    stored = set(weights.token_ids().tolist())
    assert {START, END, MESSAGE, CHANNEL, CONSTRAIN, CALL, RETURN} <= stored


def test_tokens_that_are_not_stored_are_never_likely(
    weights: TrainedWeights, folder: Path, texts: dict[str, list[int]]
) -> None:
    """At every position, by Moeray and by transformers, which say the same."""
    unstored = torch.ones(VOCABULARY_SIZE, dtype=torch.bool)
    unstored[weights.token_ids()] = False
    assert any(unstored[token] for token in texts["unknown words"])
    wanted = transformers_logits(folder, texts)
    run = PagedRun(folder, kv_tokens=4096, step_tokens=1024)
    for name, text in texts.items():
        for want, got in zip(
            wanted[name].split(ROWS_AT_ONCE), _logits(run, name, text), strict=True
        ):
            assert error(got, want) <= TOLERANCE, name
            for logits in (got, want):
                share = logits.softmax(-1)[:, unstored].sum(-1).max()
                assert share < MOST_UNSTORED, f"{name}: {share}"


def _logits(run: PagedRun, name: str, text: list[int]) -> Iterator[Tensor]:
    """Moeray's logits at every position, some rows at a time."""
    batch = Batch.from_plan(run.plan({name: text}), BLOCK_TOKENS, CPU)
    every = dataclasses.replace(batch, sample_rows=torch.arange(len(text)))
    for rows in run.model.last_hidden(every, run.kv).split(ROWS_AT_ONCE):
        yield run.model.logits(rows)
