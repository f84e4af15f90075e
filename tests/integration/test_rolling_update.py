"""A rolling update under load: what runs ends whole, what comes is answered by the new gateway."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from moeray.cluster.client import Client, user_request
from moeray.cluster.whole_answer import WholeAnswer
from moeray.v1 import inference_pb2 as pb
from moeray.v1 import inference_pb2_grpc
from tests.cluster.scraping import fetch, scrape, value
from tests.integration.serving import environment, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

STREAMS = 4
TOKENS = 80
# Machines of tests are busy with other things: slow is not dead.
SETTINGS = {"port": 0, "ranks": 1, "drain_timeout_s": 120.0, "rank_silence_s": 60.0}


class UpdatableCluster:
    """Runs ``updatable_cluster.py``."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        said = json.loads(self.line())
        self.target: str = said["target"]
        self.metrics: str = said["metrics"]

    def line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "it ended"
        return line.strip()

    def start_update(self, **changes: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(changes) + "\n")
        self._process.stdin.flush()


@pytest.fixture(scope="module")
def cluster(random_model: Path) -> Iterator[UpdatableCluster]:
    program = str(Path(__file__).with_name("updatable_cluster.py"))
    settings = SETTINGS | {"model": str(random_model)}
    with subprocess.Popen(
        [sys.executable, program, json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        yield UpdatableCluster(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(90) == 0


@contextmanager
def stub_of(target: str) -> Iterator[Any]:
    # With a pool of its own each channel has a connection of its own.
    with grpc.insecure_channel(target, (("grpc.use_local_subchannel_pool", 1),)) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


def gateway_id(target: str) -> str:
    with stub_of(target) as stub:
        return str(stub.GetServerInfo(pb.GetServerInfoRequest()).gateway_id)


def long_answer(target: str, started: threading.Semaphore) -> pb.Answer:
    answer = WholeAnswer()
    request = user_request("hi", thinking_budget=20, max_output_tokens=TOKENS)
    with Client(target) as client:
        for event in client.generate(request, timeout_s=120):
            if event.WhichOneof("event") == "started":
                started.release()
            answer.add(event)
    return answer.response.answers[0]


def keep_asking(target: str, over: threading.Event, *, reconnect: bool) -> int:
    """Short requests one after the other; returns how many were answered. Raises RpcError."""
    request = user_request("hi", thinking_budget=2, max_output_tokens=16)
    answered = 0
    with stub_of(target) as kept:
        while not over.is_set():
            with stub_of(target) as fresh:
                stub = fresh if reconnect else kept
                response = stub.Complete(pb.CompleteRequest(generation=request), timeout=60)
            assert response.answers[0].usage.output_tokens == 16
            answered += 1
    return answered


def health_until_the_end(target: str) -> list[int]:
    """What a watcher of the gateway's health is told."""
    with grpc.insecure_channel(target, (("grpc.use_local_subchannel_pool", 1),)) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        told = []
        try:
            for response in watch:
                told.append(response.status)
        except grpc.RpcError:
            return told
    return told


def listed(cluster: UpdatableCluster) -> dict[str, str]:
    """Where metrics are served, by component."""
    _, text = fetch(cluster.metrics, "/sd")
    return {group["labels"]["moeray_component"]: group["targets"][0] for group in json.loads(text)}


def test_every_process_serves_its_metrics(cluster: UpdatableCluster) -> None:
    wait_until(lambda: len(listed(cluster)) == 3, 20, "router, engine and gateway are listed")
    addresses = listed(cluster)
    assert addresses["router"] == cluster.metrics
    assert fetch(addresses["gateway"], "/sd") == fetch(addresses["engine"], "/sd")
    for address in addresses.values():
        assert fetch(address, "/healthz") == (200, "ok\n")
    with stub_of(cluster.target) as stub:
        request = user_request("hi", thinking_budget=2, max_output_tokens=16)
        stub.Complete(pb.CompleteRequest(generation=request), timeout=60)
    gateway, engine, router = (
        scrape(addresses[component]) for component in ("gateway", "engine", "router")
    )
    assert value(gateway, "moeray:generation_tokens_total") == 16
    assert value(gateway, "moeray:time_to_first_token_seconds_count") == 1
    assert value(engine, "moeray:engine_steps_total") >= 4
    assert value(engine, "moeray:engine_step_seconds_count") >= 4
    assert value(engine, "moeray:num_requests_running", rank="0") == 0
    assert value(router, "moeray:router_engines") == 1
    assert value(router, "moeray:router_placements_total") == 1


def test_nothing_is_lost_in_a_rolling_update(cluster: UpdatableCluster) -> None:
    target = cluster.target
    old = gateway_id(target)
    over, started = threading.Event(), threading.Semaphore(0)
    with ThreadPoolExecutor(STREAMS + 3) as pool:
        health = pool.submit(health_until_the_end, target)
        streams = [pool.submit(long_answer, target, started) for _ in range(STREAMS)]
        for _ in streams:
            assert started.acquire(timeout=60)
        askers = [
            pool.submit(keep_asking, target, over, reconnect=reconnect)
            for reconnect in (True, False)
        ]
        cluster.start_update(default_max_output_tokens=77)
        assert cluster.line() == "updated"
        over.set()
        answers = [stream.result(90) for stream in streams]
        answered = [asker.result(90) for asker in askers]
        told = health.result(90)
    assert [answer.usage.output_tokens for answer in answers] == [TOKENS] * STREAMS
    assert all(answer.finished.reason == pb.FINISH_REASON_LENGTH for answer in answers)
    assert all(count > 0 for count in answered)
    assert told[-1] == health_pb2.HealthCheckResponse.NOT_SERVING
    assert gateway_id(target) != old
    with Client(target) as client:
        assert client.models()[0].default_max_output_tokens == 77
