"""A seeded request at temperature 1 gives the same tokens at 1 and 2 ranks: alone, in random
company, in small chunks, from the prefix cache and after preemption.

Its logits differ in their last bits from one of these to the next, and a draw must not follow them.
The small checkpoint's logits are flat, so every draw has hundreds of likely tokens to choose from.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moeray.worker.request import EngineRequest, SamplingParams
from tests.worker.engine_fakes import request
from tests.worker.paged_run import make_small
from tests.worker.rank_groups import SHAPE, Answers, Group, running_group

TOKENS = 40
OPTIONS = [
    SamplingParams(temperature=1.0, top_p=1.0, top_k=0, seed=1),
    SamplingParams(temperature=1.0, top_p=1.0, top_k=0, seed=2),
    SamplingParams(temperature=1.0, top_p=1.0, top_k=0, seed=2**64 - 1),
    SamplingParams(temperature=0.8, top_p=0.9, top_k=0, seed=3),
    SamplingParams(temperature=1.3, top_p=1.0, top_k=50, seed=4, min_p=0.01),
]


def text(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SHAPE.vocabulary_size, (length,), generator=generator).tolist()


def seeded() -> list[EngineRequest]:
    """Two that share a beginning, and others within the window and beyond it."""
    shared = text(40, 0)
    prompts = [text(9, 1), shared, [*shared, *text(13, 2)], text(33, 3), text(60, 4)]
    return [
        replace(request(key, prompt=prompt, max_output_tokens=TOKENS, rank=key), sampling=sampling)
        for key, (prompt, sampling) in enumerate(zip(prompts, OPTIONS, strict=True))
    ]


def companions() -> list[EngineRequest]:
    """Of other seeds and lengths, so that the batch changes from step to step."""
    return [
        replace(
            request(100 + i, prompt=text(5 + 11 * i, 20 + i), max_output_tokens=3 + 7 * i, rank=i),
            sampling=replace(OPTIONS[i % 5], seed=50 + i),
        )
        for i in range(6)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_small(tmp_path_factory.mktemp("seeded") / "made", SHAPE)


@pytest.fixture(scope="module", params=[1, 2])
def group(request: pytest.FixtureRequest, model: Path) -> Iterator[Group]:
    with running_group(model, request.param) as running:
        yield running


@pytest.fixture(scope="module")
def alone(model: Path) -> Answers:
    """The answers at one rank, each request with an engine to itself."""
    with running_group(model, 1) as running:
        return running.alone(seeded())


def test_answers_are_worth_comparing(alone: Answers) -> None:
    assert {len(answer) for answer in alone.values()} == {TOKENS}
    assert min(len(set(answer)) for answer in alone.values()) > TOKENS * 2 / 3


def test_alone(group: Group, alone: Answers) -> None:
    assert group.alone(seeded()) == alone


def with_company(group: Group, *requests: EngineRequest, **settings: int) -> Answers:
    """The answers of the seeded ones."""
    answers, _ = group.run(group.engine(**settings), requests)
    return {key: answer for key, answer in answers.items() if key < 100}


def test_in_random_company(group: Group, alone: Answers) -> None:
    few, many = companions()[:3], companions()
    assert with_company(group, *few, *seeded()) == alone
    assert with_company(group, *seeded()[::-1], *many) == alone


def test_in_small_chunks(group: Group, alone: Answers) -> None:
    sizes = {"step_tokens_per_rank": 9, "max_running_per_rank": 6}
    assert with_company(group, *companions()[:2], *seeded(), **sizes) == alone


def test_from_the_cache(group: Group, alone: Answers) -> None:
    engine = group.engine()
    assert group.run(engine, seeded())[0] == alone
    answers, cached = group.run(engine, seeded())
    assert answers == alone
    assert {key: found for key, (found,) in cached.items()} == {0: 8, 1: 32, 2: 48, 3: 32, 4: 56}


def test_after_preemption(group: Group, alone: Answers) -> None:
    requests = [replace(each, rank=0) for each in seeded()]
    engine = group.engine(kv_tokens_per_rank=160)
    assert group.run(engine, requests)[0] == alone
    assert engine.load().preemptions > 0
