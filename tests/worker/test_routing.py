"""The measurement of routing tells even from uneven."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moeray.worker.checkpoint import Checkpoint
from moeray.worker.routing import Routing, measure_routing, uniform_expectation
from tests.worker.paged_run import CPU, SMALL, make_small


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _measured(folder: Path) -> Routing:
    return measure_routing(
        Checkpoint.open(folder), device=CPU, dtype=torch.float32, sequences=24, steps=20
    )


def test_uniform_expectation() -> None:
    assert uniform_expectation(32, 4, 1) == pytest.approx(4)
    assert uniform_expectation(32, 4, 2) == pytest.approx(7.5)
    assert uniform_expectation(128, 4, 64) == pytest.approx(111.2, abs=0.05)


def test_made_checkpoint_routes_evenly(tmp_path: Path) -> None:
    routing = _measured(make_small(tmp_path / "made"))
    assert len(routing.layers) == SMALL.layers
    assert routing.expected == pytest.approx(uniform_expectation(16, 4, 24))
    assert routing.lowest_share >= 0.9


def test_biased_router_shows_in_its_layer(tmp_path: Path) -> None:
    folder = make_small(tmp_path / "made")
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        if (bias := tensors.get("model.layers.1.mlp.router.bias")) is not None:
            bias[:5] += 100
            save_file(tensors, shard)
    routing = _measured(folder)
    assert max(routing.layers[1].first, routing.layers[1].last) <= 5
    assert routing.layers[0].first > 10
    assert routing.lowest_share < 0.4
