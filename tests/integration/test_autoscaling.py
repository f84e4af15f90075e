"""Engines come and go with the load, on two nodes that have room for one engine each."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from moeray.cluster.client import Client, user_request
from moeray.v1 import inference_pb2 as pb
from moeray.v1 import inference_pb2_grpc
from tests.integration.serving import Server, ray_environment, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

HANG_S = 90.0
LONG = 16_000


@pytest.fixture
def ray_address() -> Iterator[str]:
    """An engine of one rank takes 0.2 CPUs, the gateway 0.1."""
    program = [sys.executable, str(Path(__file__).with_name("fake_nodes.py")), "2", "0.3"]
    with subprocess.Popen(
        program,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ray_environment(),
    ) as nodes:
        assert nodes.stdout is not None and nodes.stdin is not None
        seen = []
        for line in nodes.stdout:
            seen.append(line)
            if line.startswith("ready "):
                break
        else:
            raise RuntimeError("".join(seen))
        reader = threading.Thread(target=nodes.stdout.read, daemon=True)
        reader.start()
        yield line.split()[1]
        nodes.stdin.close()
        nodes.wait(HANG_S)
        reader.join(HANG_S)


class Stream:
    """One answer that is read in the background. ``engine_id`` is empty while it waits."""

    def __init__(self, stub: inference_pb2_grpc.InferenceServiceStub) -> None:
        self.engine_id = ""
        self.deltas = 0
        self.ended = ""
        self._call = stub.Generate(user_request("hi", max_output_tokens=LONG))
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def cancel(self) -> None:
        self._call.cancel()
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()

    def _read(self) -> None:
        try:
            for event in self._call:
                self.engine_id = self.engine_id or event.started.engine_id
                self.deltas += event.WhichOneof("event") == "delta"
            self.ended = "it was answered"
        except grpc.RpcError as error:
            self.ended = str(error.details())


def engines(stub: inference_pb2_grpc.InferenceServiceStub) -> int:
    return stub.GetServerInfo(pb.GetServerInfoRequest()).engines


def answer(target: str) -> str:
    """Ask a short question; returns the engine that answered it whole."""
    with Client(target) as client:
        request = user_request("hi", thinking_budget=2, max_output_tokens=16)
        events = list(client.generate(request, timeout_s=HANG_S))
    assert events[-1].WhichOneof("event") == "finished"
    return events[0].started.engine_id


def test_from_none_to_two_and_back(ray_address: str, random_model: Path) -> None:
    settings = {
        "MOERAY_MIN_ENGINES": "0",
        "MOERAY_MAX_ENGINES": "2",
        "MOERAY_MAX_RUNNING_PER_RANK": "4",
        "MOERAY_SCALE_UP_DELAY_S": "1",
        "MOERAY_SCALE_DOWN_DELAY_S": "2",
        "MOERAY_SCALE_TO_ZERO_DELAY_S": "4",
        "MOERAY_NO_ENGINE_TIMEOUT_S": "90",
        "MOERAY_DRAIN_TIMEOUT_S": "60",
    }
    arguments = ("--model", str(random_model), "--ranks", "1")
    with (
        Server(*arguments, RAY_ADDRESS=ray_address, **settings) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        # It serves, and says what, before there is any engine.
        (model,) = stub.ListModels(pb.ListModelsRequest()).models
        assert (model.engines, model.name) == (0, random_model.name)
        first = answer(server.target)
        (with_engine,) = stub.ListModels(pb.ListModelsRequest()).models
        model.engines = 1
        assert with_engine == model

        streams = [Stream(stub) for _ in range(6)]
        try:
            wait_until(lambda: all(s.engine_id for s in streams), HANG_S, "all find a place")
            used = {stream.engine_id: stream for stream in streams}
            assert first in used and len(used) == 2
            for stream in streams:
                if stream not in used.values():
                    stream.cancel()
            # One engine is enough for one stream each: the other goes, but not its stream.
            wait_until(lambda: engines(stub) == 1, HANG_S, "one engine is taken away")
            for stream in used.values():
                deltas = stream.deltas
                wait_until(lambda s=stream, d=deltas: s.deltas > d + 20, HANG_S, "it goes on")
                assert not stream.ended
        finally:
            for stream in streams:
                stream.cancel()
        wait_until(lambda: engines(stub) == 0, HANG_S, "the last engine is taken away")
        assert answer(server.target) not in used
        assert server.stop() == 0, server.output
