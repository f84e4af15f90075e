"""The HTTP port of a process: what it serves, and that two processes never share it."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing

import pytest
from prometheus_client.core import Metric

from moeray.cluster.metrics import WeightedHistogram, counter, gauge, histogram
from moeray.cluster.metrics_server import (
    MetricsOptions,
    MetricsPages,
    MetricsPortNotBound,
    MetricsServer,
    MetricsTarget,
    on_node,
    reachable_host,
)
from moeray.cluster.port_lock import METRICS_PORTS

from .free_port import free_port
from .scraping import fetch, scrape, value


class Samples:
    """A collector of one metric of each kind."""

    def __init__(self) -> None:
        self.times = WeightedHistogram((0.1, 1.0))
        self.count = 0

    def collect(self) -> Iterator[Metric]:
        yield gauge("level", "A level.", ("rank",), [(("0",), 0.5), (("1",), 2)])
        yield counter("things", "A count.", (), [((), self.count)])
        yield histogram("times", "Times.", ("model_name",), [(("m",), self.times)])


@asynccontextmanager
async def serving(
    port: int, pages: MetricsPages | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[str]:
    server = MetricsServer(
        MetricsOptions(host=host, port=port),
        pages or MetricsPages(metrics=Samples(), unhealthy=lambda: ""),
    )
    try:
        yield f"{host}:{server.port}"
    finally:
        await server.close()


async def test_metrics_of_each_kind() -> None:
    samples = Samples()
    samples.times.observe(0.1, 3)
    samples.times.observe(0.5)
    samples.times.observe(7.0, 2)
    samples.count = 41
    async with serving(free_port(), MetricsPages(metrics=samples, unhealthy=str)) as address:
        found = await asyncio.to_thread(scrape, address)
        assert value(found, "moeray:level", rank="1") == 2
        assert value(found, "moeray:things_total") == 41
        assert [
            value(found, "moeray:times_bucket", le=le) for le in ("0.1", "1.0", "+Inf")
        ] == [3, 4, 6]  # fmt: skip
        assert value(found, "moeray:times_count", model_name="m") == 6
        assert value(found, "moeray:times_sum") == pytest.approx(0.3 + 0.5 + 14)
        assert [found[f"moeray:{name}"].type for name in ("level", "things", "times")] == [
            "gauge", "counter", "histogram",
        ]  # fmt: skip
        # The process's own: memory, CPU time, open files.
        assert value(found, "process_resident_memory_bytes") > 1e6


async def test_health_says_why_not() -> None:
    reasons = ["", "draining"]
    pages = MetricsPages(metrics=Samples(), unhealthy=lambda: reasons[0])
    async with serving(free_port(), pages) as address:
        assert await asyncio.to_thread(fetch, address, "/healthz") == (200, "ok\n")
        reasons.reverse()
        assert await asyncio.to_thread(fetch, address, "/healthz") == (503, "draining\n")
        assert (await asyncio.to_thread(fetch, address, "/"))[0] == 404
        assert (await asyncio.to_thread(fetch, address, "/sd"))[0] == 404


async def test_service_discovery_is_what_prometheus_reads() -> None:
    targets = [MetricsTarget(component="engine", id="engine-1", address="10.0.0.1:9465")]
    pages = MetricsPages(metrics=Samples(), unhealthy=str, targets=lambda: targets)
    async with serving(free_port(), pages) as address:
        status, text = await asyncio.to_thread(fetch, address, "/sd")
    assert status == 200
    assert json.loads(text) == [
        {
            "targets": ["10.0.0.1:9465"],
            "labels": {"moeray_component": "engine", "moeray_id": "engine-1"},
        }
    ]


async def test_a_page_that_cannot_be_made_says_so() -> None:
    def lost() -> list[MetricsTarget]:
        raise TimeoutError("the router is silent")

    pages = MetricsPages(metrics=Samples(), unhealthy=str, targets=lost)
    async with serving(free_port(), pages) as address:
        found = await asyncio.to_thread(fetch, address, "/sd")
        assert found == (503, "TimeoutError: the router is silent\n")
        assert (await asyncio.to_thread(fetch, address, "/metrics"))[0] == 200


async def test_each_process_takes_the_next_port_and_leaves_it_free() -> None:
    port = free_port()
    async with AsyncExitStack() as stack:
        taken = [await stack.enter_async_context(serving(port)) for _ in range(3)]
        ports = [int(address.rpartition(":")[2]) for address in taken]
        assert ports[0] == port and len(set(ports)) == 3
        assert all(port <= one < port + METRICS_PORTS for one in ports)
    async with serving(port) as address:
        assert address.endswith(f":{port}")


async def test_a_port_that_cannot_be_bound_names_the_setting() -> None:
    pages = MetricsPages(metrics=Samples(), unhealthy=str)
    with pytest.raises(MetricsPortNotBound, match=r"metrics_port: 203\.0\.113\.1:9464"):
        MetricsServer(MetricsOptions(host="203.0.113.1", port=9464), pages)
    with (
        closing(socket.create_server(("127.0.0.1", 65535))),
        pytest.raises(MetricsPortNotBound, match="metrics_port: no port from 65535 to 65535"),
    ):
        MetricsServer(MetricsOptions(host="127.0.0.1", port=65535), pages)


async def test_ipv6() -> None:
    async with serving(free_port(), host="::1") as address:
        port = address.rpartition(":")[2]
        assert (await asyncio.to_thread(fetch, f"[::1]:{port}", "/healthz"))[0] == 200


@pytest.mark.parametrize(
    ("host", "listens", "reached"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost", "localhost"),
        ("0.0.0.0", "0.0.0.0", "10.0.0.9"),
        ("::", "::", "10.0.0.9"),
        ("10.0.0.1", "10.0.0.9", "10.0.0.9"),
        ("gateway.example", "10.0.0.9", "10.0.0.9"),
    ],
)
def test_the_same_settings_on_another_node(host: str, listens: str, reached: str) -> None:
    options = on_node(MetricsOptions(host=host, port=1), "10.0.0.9")
    assert options.host == listens
    assert reachable_host(options.host, "10.0.0.9") == reached
