"""What settings mean for the engines of one cluster, and what gateways know of engines to come."""

from pathlib import Path

import pytest

from moeray.cluster.autoscaling import AutoscalingRules
from moeray.cluster.config import Settings
from moeray.cluster.engine_spec import EngineSpec, ModelFacts
from moeray.cluster.replica import configured_model
from moeray.worker.config import EngineConfig
from moeray.worker.kv_plan import KvPlan
from moeray.worker.scheduler import Scheduler
from tests.worker.engine_fakes import FakeAutomaton

FACTS = ModelFacts(
    name="tiny",
    path=Path("/nowhere"),
    embedded=False,
    context_length=131072,
    vocabulary_size=201088,
    sliding_window=128,
)


def resolve(gpus: int = 0, **settings: object) -> EngineSpec:
    return EngineSpec.resolve(
        Settings(**settings),  # type: ignore[arg-type]
        FACTS,
        gpus_per_node=gpus,
        cluster_token=b"t" * 32,
        loopback=True,
    )


def test_without_max_engines_the_number_is_fixed() -> None:
    assert resolve(engines=3).autoscaling is None


def test_scaling_settings_become_the_policys_rules() -> None:
    given = {
        "min_engines": 0,
        "max_engines": 7,
        "target_kv_usage": 0.5,
        "target_waiting_tokens": 100,
        "scale_up_delay_s": 1.0,
        "scale_down_delay_s": 2.0,
        "scale_to_zero_delay_s": 3.0,
    }
    assert resolve(**given).autoscaling == AutoscalingRules(**given)  # type: ignore[arg-type]
    defaults = resolve(max_engines=2).autoscaling
    assert defaults is not None and defaults.min_engines == 1


def test_an_engine_asks_for_its_leader_and_its_ranks() -> None:
    assert resolve(ranks=2).placement_bundles == [{"CPU": 0.1}] * 3
    on_gpus = resolve(gpus=2, ranks=2).placement_bundles
    assert on_gpus == [{"CPU": 0.1}, {"CPU": 0.1, "GPU": 1.0}, {"CPU": 0.1, "GPU": 1.0}]


@pytest.mark.parametrize("kv_tokens", [512, 5000, 131072, 1 << 20])
@pytest.mark.parametrize("running", [1, 64])
def test_the_length_that_gateways_take_is_the_engines_own(kv_tokens: int, running: int) -> None:
    spec = resolve(kv_tokens_per_rank=kv_tokens, max_running_per_rank=running)
    config = EngineConfig(
        model=FACTS.path, kv_tokens_per_rank=kv_tokens, max_running_per_rank=running
    )
    scheduler = Scheduler(
        config,
        KvPlan.of(config, FACTS.context_length, FACTS.sliding_window),
        context_length=FACTS.context_length,
        new_automaton=FakeAutomaton,
    )
    model = configured_model(spec)
    assert model.max_sequence_tokens == scheduler.max_sequence_tokens
    assert (model.name, model.engines, model.ranks) == ("tiny", 0, 2)
