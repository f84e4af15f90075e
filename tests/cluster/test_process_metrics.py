"""The metrics of router and engine, scraped over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from moeray.cluster.contracts import EngineInfo, PlacementRequest
from moeray.cluster.engine_metrics import EngineMetrics
from moeray.cluster.metrics_server import (
    MetricsOptions,
    MetricsPages,
    MetricsServer,
    MetricsTarget,
)
from moeray.cluster.placement import PlacementLimits
from moeray.cluster.router_process import RouterProcess, RouterProcessOptions

from .fake_engine import FakeEngine
from .free_port import free_port
from .scraping import Families, fetch, scrape, value


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """As the worker's EngineLoad."""

    running: tuple[int, ...] = (1, 0)
    waiting: tuple[int, ...] = (2, 3)
    waiting_tokens: tuple[int, ...] = (200, 300)
    free_blocks: tuple[int, ...] = (192, 256)
    used_blocks: tuple[int, ...] = (64, 0)
    steps: int = 7
    computed_tokens: int = 90
    prefix_queries_tokens: int = 80
    prefix_hit_tokens: int = 32
    preemptions: int = 1


def engine_info() -> EngineInfo:
    return FakeEngine("e1").info(ranks=2)


async def scraped_engine(metrics: EngineMetrics) -> Families:
    server = MetricsServer(
        MetricsOptions(host="127.0.0.1", port=free_port()),
        MetricsPages(metrics=metrics, unhealthy=str),
    )
    try:
        return await asyncio.to_thread(scrape, f"127.0.0.1:{server.port}")
    finally:
        await server.close()


async def test_an_engine_shows_its_load() -> None:
    state = State()
    metrics = EngineMetrics(engine_info(), lambda: state)
    metrics.step_s.observe(0.02)
    found = await scraped_engine(metrics)
    engine = {"model_name": "tiny", "engine": "e1"}
    by_rank = {
        "num_requests_running": state.running,
        "num_requests_waiting": state.waiting,
        "engine_waiting_tokens": state.waiting_tokens,
        "kv_cache_usage_perc": (0.25, 0.0),
    }
    for name, values in by_rank.items():
        assert found[f"moeray:{name}"].type == "gauge"
        for rank, wanted in enumerate(values):
            assert value(found, f"moeray:{name}", rank=str(rank), **engine) == wanted, name
    counts = {
        "prefix_cache_queries": 80,
        "prefix_cache_hits": 32,
        "num_preemptions": 1,
        "engine_computed_tokens": 90,
        "engine_steps": 7,
    }
    for name, count in counts.items():
        assert found[f"moeray:{name}"].type == "counter"
        assert value(found, f"moeray:{name}_total", **engine) == count, name
    assert found["moeray:engine_step_seconds"].type == "histogram"
    assert value(found, "moeray:engine_step_seconds_bucket", le="0.02") == 1
    state = replace(state, steps=8, running=(0, 0))
    again = await scraped_engine(metrics)
    assert value(again, "moeray:engine_steps_total") == 8
    assert value(again, "moeray:num_requests_running", rank="0") == 0


def asked(request_id: str, model: str = "tiny") -> PlacementRequest:
    return PlacementRequest(
        request_id=request_id,
        model=model,
        prompt_tokens=100,
        max_output_tokens=10,
        priority=0,
        conversation_id="",
        deadline=None,
    )


@pytest.fixture
async def router() -> AsyncIterator[RouterProcess]:
    process = RouterProcess(
        PlacementLimits(),
        RouterProcessOptions(
            metrics=MetricsOptions(host="127.0.0.1", port=free_port()), loopback=True
        ),
    )
    yield process
    # In the cluster it ends with its process.
    await process._metrics_server.close()


async def test_the_router_shows_its_queue_and_lists_everybody(router: RouterProcess) -> None:
    address = await router.metrics_address()
    assert "moeray:router_engines" not in await asyncio.to_thread(scrape, address)
    engine = MetricsTarget(component="engine", id="e1", address="127.0.0.1:9465")
    await router.report_metrics(engine)
    await router.register_engine(FakeEngine("e1").info(places=1))
    await router.place("g", [asked("a"), asked("b"), asked("c", model="other")])
    found = await asyncio.to_thread(scrape, address)
    gauges = {"waiting_requests": 1, "waiting_tokens": 100, "running_requests": 1, "engines": 1}
    for name, wanted in gauges.items():
        assert found[f"moeray:router_{name}"].type == "gauge"
        assert value(found, f"moeray:router_{name}") == wanted, name
    assert value(found, "moeray:router_placements_total") == 1
    assert value(found, "moeray:router_refusals_total", reason="model_not_found") == 1
    for name in ("prompt_blocks", "matched_blocks"):
        assert value(found, f"moeray:router_{name}_total") == 0
    _, listed = await asyncio.to_thread(fetch, address, "/sd")
    assert [group["targets"] for group in json.loads(listed)] == [[address], ["127.0.0.1:9465"]]
    assert await asyncio.to_thread(fetch, address, "/healthz") == (200, "ok\n")


async def test_who_is_silent_is_not_listed(
    router: RouterProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = await router.metrics_address()
    await router.report_metrics(MetricsTarget(component="gateway", id="g1", address="1.2.3.4:1"))
    monkeypatch.setattr("moeray.cluster.router_process.FORGET_S", 0.0)
    _, listed = await asyncio.to_thread(fetch, address, "/sd")
    assert [group["targets"] for group in json.loads(listed)] == [[address]]


async def test_without_metrics_the_router_serves_none() -> None:
    router = RouterProcess(PlacementLimits(), RouterProcessOptions())
    assert await router.metrics_address() == ""
