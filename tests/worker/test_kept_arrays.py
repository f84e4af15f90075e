"""Arrays that a planner keeps from step to step are those that a new one would make."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from random import Random
from typing import Any

import numpy as np
import pytest

from moeray.worker.blocks import BlockTable, KvBlocks
from moeray.worker.plan import RankPlan
from moeray.worker.planner import Planner
from moeray.worker.request import EngineRequest
from moeray.worker.sample_columns import SampleColumns
from moeray.worker.sequence import StepPlan
from tests.worker.engine_fakes import FakeAutomaton, FakeLegal
from tests.worker.scheduler_model import Sizes, Traffic


def _legal(self: FakeAutomaton) -> FakeLegal:
    """The same for some steps, with now and then a step outside bodies, or with a ban."""
    produced = len(self.accepted)
    if produced % 7 == 0:
        return FakeLegal(False, (produced, produced + 1))
    return FakeLegal(True, (), (2, 9)) if produced % 5 == 0 else FakeLegal(True, (1,))


class PlannedTraffic(Traffic):
    """Random traffic whose every plan becomes arrays, by a planner that stays and by a new one."""

    def __init__(self, sizes: Sizes, random: Random) -> None:
        super().__init__(sizes, random)
        self.planner = Planner(sizes.ranks)
        self._held: list[RankPlan] = []
        self._held_bytes: list[list[bytes]] = []
        self._submit = self.scheduler.submit
        self.scheduler.submit = self._submit_shifted  # type: ignore[method-assign]

    def _submit_shifted(self, request: EngineRequest) -> None:
        """Some requests have a bias, some penalties, some both."""
        key, sampling = request.key.key, request.sampling
        if key % 3 == 0:
            sampling = replace(sampling, logit_bias=((9, 1.5), (key, -2.0)), top_logprobs=key % 5)
        if key % 4 == 0:
            sampling = replace(sampling, repetition_penalty=1.5, presence_penalty=key / 8)
        self._submit(replace(request, sampling=sampling))

    def _check_plan(self, plan: StepPlan) -> None:
        super()._check_plan(plan)
        kept = self.planner.rank_plans(plan)
        anew = Planner(len(plan.ranks)).rank_plans(plan)
        for one, other in zip(kept, anew, strict=True):
            _check_equal(one, other)
            self.seen["shifted"] += len(one.samples.bias) > 0
        # Plans do not change behind the back of who holds them.
        assert [_bytes(p) for p in self._held] == self._held_bytes
        self._held, self._held_bytes = kept, [_bytes(p) for p in kept]
        self.seen["arrays"] += 1


def _columns(plan: Any) -> dict[str, Any]:
    return {field.name: getattr(plan, field.name) for field in fields(plan)}


def _bytes(plan: Any) -> list[bytes]:
    values = (_columns(plan) | _columns(plan.samples)).values()
    return [value.tobytes() for value in values if isinstance(value, np.ndarray)]


def _check_equal(one: Any, other: Any) -> None:
    for name, value in _columns(one).items():
        expected = getattr(other, name)
        if name == "samples":
            _check_equal(value, expected)
        elif isinstance(value, np.ndarray):
            assert (value.dtype, value.shape) == (expected.dtype, expected.shape), name
            assert value.tolist() == expected.tolist(), name
            assert value.flags.c_contiguous and value.flags.writeable, name
        else:
            assert value == expected, name


def _run(seeds: Sequence[int], steps: int) -> Counter[str]:
    totals: Counter[str] = Counter()
    for seed in seeds:
        random = Random(seed)
        sizes = Sizes(ranks=1 + seed % 2, block_tokens=1 + seed % 4, max_running=3 + seed % 3)
        traffic = PlannedTraffic(sizes, random)
        traffic.run(random, steps, busy=0.5)
        traffic.finish(random, max_steps=4000)
        totals.update(traffic.seen)
    return totals


def test_kept_arrays_are_those_that_a_new_planner_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeAutomaton, "legal", _legal)
    seen = _run(range(8), 200)
    for event in ("arrays", "shifted", "hits", "shared", "chunked", "preempted", "cancelled"):
        assert seen[event], event


def _miss_what_settles(monkeypatch: pytest.MonkeyPatch) -> None:
    settle = KvBlocks.settle

    def silent(self: KvBlocks, table: BlockTable, hashes: Sequence[bytes], computed: int) -> None:
        version = table.version
        settle(self, table, hashes, computed)
        table.version = version

    monkeypatch.setattr(KvBlocks, "settle", silent)


def _miss_what_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    add_block = KvBlocks.add_block

    def silent(self: KvBlocks, table: BlockTable) -> bool:
        version = table.version
        added = add_block(self, table)
        table.version = version
        return added

    monkeypatch.setattr(KvBlocks, "add_block", silent)


def _keep_what_was_legal(monkeypatch: pytest.MonkeyPatch) -> None:
    use_legal = SampleColumns._use_legal

    def once(self: SampleColumns, legal: list[Any]) -> None:
        if len(legal) != len(getattr(self, "_legal", ())) or not legal:
            use_legal(self, legal)

    monkeypatch.setattr(SampleColumns, "_use_legal", once)


@pytest.mark.parametrize("plant", (_miss_what_settles, _miss_what_grows, _keep_what_was_legal))
def test_what_is_kept_too_long_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeAutomaton, "legal", _legal)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        _run(range(8), 200)
