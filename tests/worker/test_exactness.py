"""Greedy tokens in float32 are equal at 1, 2 and 4 ranks: alone, batched, chunked, from cache and
after preemption.

A small checkpoint on real ranks, which are processes of their own where there are several. Each
case has a scheduler of its own over the same ranks; what an earlier one left in their caches is
unknown to it.
"""

import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moeray.worker.communicator import SingleRank, host_store
from moeray.worker.config import EngineConfig
from moeray.worker.engine import Engine
from moeray.worker.kv_plan import KvPlan
from moeray.worker.rank import Rank
from moeray.worker.ranks import LocalRanks, RankGroup, SocketRanks
from moeray.worker.request import ChannelRules, EngineRequest, FinishReason
from moeray.worker.scheduler import Scheduler
from tests.worker.engine_fakes import FakeLegal, request
from tests.worker.paged_run import SMALL, make_small

WINDOW = 20
SHAPE = replace(SMALL, sliding_window=WINDOW)
SETTINGS = {
    "block_tokens": 8, "kv_tokens_per_rank": 1024, "max_running_per_rank": 8,
    "step_tokens_per_rank": 64,
}  # fmt: skip
RANK = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path
    import torch
    from moeray.worker.communicator import connect
    from moeray.worker.config import EngineConfig
    from moeray.worker.rank import Rank

    model, rank, ranks, path, secret, port, settings = sys.argv[1:]
    device = torch.device("cpu")
    config = EngineConfig(model=Path(model), ranks=int(ranks), **json.loads(settings))
    communicator = connect(
        rank=int(rank), size=int(ranks), host="127.0.0.1", port=int(port), prefix="exact",
        device=device, timeout_s=120,
    )
    loaded = Rank.load(config, device=device, communicator=communicator)
    loaded.serve(path=path, secret=bytes.fromhex(secret))
    """
)

Answers = dict[int, tuple[int, ...]]


class TextOnly:
    """Any token may follow, until the limit."""

    def __init__(self, rules: ChannelRules, *, max_output_tokens: int) -> None:
        self._left = max_output_tokens

    @property
    def finish_reason(self) -> FinishReason | None:
        return None if self._left else FinishReason.LENGTH

    def legal(self) -> FakeLegal:
        return FakeLegal(True, ())

    def forced(self) -> tuple[int, ...]:
        return ()

    def accept(self, token: int) -> bool:
        self._left -= 1
        return self._left > 0


def _requests() -> list[EngineRequest]:
    """Within the window and far beyond it, on block borders and off; two share a beginning."""
    generator = torch.Generator().manual_seed(5)
    long = torch.randint(SHAPE.vocabulary_size, (70,), generator=generator).tolist()
    prompts = [long[60:], long[:33], long, [*long[:40], 7]]
    return [
        request(key, prompt=prompt, max_output_tokens=16, rank=key)
        for key, prompt in enumerate(prompts)
    ]


class Group:
    """Ranks that stay, and an engine over them for each case."""

    def __init__(self, model: Path, ranks: int, group: RankGroup) -> None:
        self.ranks = ranks
        self._model = model
        self._group = group

    def engine(self, **settings: int) -> Engine:
        config = EngineConfig(model=self._model, ranks=self.ranks, **{**SETTINGS, **settings})  # type: ignore[arg-type]
        kv = KvPlan.of(config, 4096, WINDOW)
        scheduler = Scheduler(config, kv, context_length=4096, new_automaton=TextOnly)
        return Engine(scheduler, self._group)

    def run(self, engine: Engine, requests: Sequence[EngineRequest]) -> tuple[Answers, Answers]:
        """The answers, and the tokens found in the cache, by the requests' numbers."""
        answers: Answers = {}
        cached: Answers = {}
        for each in requests:
            engine.submit(replace(each, rank=each.rank % self.ranks))
        while engine.busy:
            for row in engine.step():
                answers[row.key.key] = answers.get(row.key.key, ()) + row.token_ids
                if row.cached_tokens is not None:
                    cached[row.key.key] = (row.cached_tokens,)
            engine.scheduler.check_integrity()
        return answers, cached


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_small(tmp_path_factory.mktemp("exact") / "made", SHAPE)


def _local(model: Path) -> RankGroup:
    config = EngineConfig(model=model, **SETTINGS)  # type: ignore[arg-type]
    rank = Rank.load(config, device=torch.device("cpu"), communicator=SingleRank())
    return LocalRanks(rank)


@pytest.fixture(scope="module", params=[1, 2, 4])
def group(request: pytest.FixtureRequest, model: Path) -> Iterator[Group]:
    ranks: int = request.param
    if ranks == 1:
        yield Group(model, 1, _local(model))
        return
    store = host_store()
    sockets = SocketRanks(ranks, step_timeout_s=120)
    settings = str(SETTINGS).replace("'", '"')
    arguments = [str(ranks), sockets.path, sockets.secret.hex(), str(store.port), settings]
    processes = [
        subprocess.Popen([sys.executable, "-c", RANK, str(model), str(rank), *arguments])
        for rank in range(ranks)
    ]
    try:
        sockets.accept(timeout_s=120)
        yield Group(model, ranks, sockets)
    finally:
        sockets.close()
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def alone(model: Path) -> Answers:
    """The answers at one rank, each request with an engine to itself."""
    return _alone(Group(model, 1, _local(model)))


def _alone(group: Group) -> Answers:
    answers: Answers = {}
    for each in _requests():
        answers |= group.run(group.engine(), [each])[0]
    return answers


def test_answers_are_worth_comparing(alone: Answers) -> None:
    assert {len(answer) for answer in alone.values()} == {16}
    assert len(set(alone.values())) == len(_requests())
    assert min(len(set(answer)) for answer in alone.values()) > 3


def test_alone(group: Group, alone: Answers) -> None:
    assert _alone(group) == alone


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
