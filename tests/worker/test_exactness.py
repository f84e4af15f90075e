"""Greedy tokens in float32 are equal at 1, 2 and 4 ranks: alone, batched, chunked, from cache and
after preemption.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moeray.worker.request import EngineRequest
from tests.worker.engine_fakes import request
from tests.worker.paged_run import make_small
from tests.worker.rank_groups import SHAPE, Answers, Group, running_group


def _requests() -> list[EngineRequest]:
    """Within the window and far beyond it, on block borders and off; two share a beginning."""
    generator = torch.Generator().manual_seed(5)
    long = torch.randint(SHAPE.vocabulary_size, (70,), generator=generator).tolist()
    prompts = [long[60:], long[:33], long, [*long[:40], 7]]
    return [
        request(key, prompt=prompt, max_output_tokens=16, rank=key)
        for key, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_small(tmp_path_factory.mktemp("exact") / "made", SHAPE)


@pytest.fixture(scope="module", params=[1, 2, 4])
def group(request: pytest.FixtureRequest, model: Path) -> Iterator[Group]:
    with running_group(model, request.param) as running:
        yield running


@pytest.fixture(scope="module")
def alone(model: Path) -> Answers:
    """The answers at one rank, each request with an engine to itself."""
    with running_group(model, 1) as running:
        return running.alone(_requests())


def test_answers_are_worth_comparing(alone: Answers) -> None:
    assert {len(answer) for answer in alone.values()} == {16}
    assert len(set(alone.values())) == len(_requests())
    assert min(len(set(answer)) for answer in alone.values()) > 3


def test_alone(group: Group, alone: Answers) -> None:
    assert group.alone(_requests()) == alone


def test_batched(group: Group, alone: Answers) -> None:
    assert group.run(group.engine(), _requests())[0] == alone


def test_chunked(group: Group, alone: Answers) -> None:
    engine = group.engine(step_tokens_per_rank=9, max_running_per_rank=4)
    assert group.run(engine, _requests())[0] == alone


def test_from_cache(group: Group, alone: Answers) -> None:
    engine = group.engine()
    assert group.run(engine, _requests())[0] == alone
    answers, cached = group.run(engine, _requests())
    assert answers == alone
    assert {key: found for key, (found,) in cached.items()} == {0: 8, 1: 32, 2: 64, 3: 40}


def test_after_preemption(group: Group, alone: Answers) -> None:
    # On each rank its longest request fits, and not two of them as they grow.
    requests = [replace(each, rank=0) for each in _requests()]
    engine = group.engine(kv_tokens_per_rank=96)
    assert group.run(engine, requests)[0] == alone
    assert engine.load().preemptions > 0
