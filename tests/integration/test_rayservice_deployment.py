"""The serveConfigV2 of k8s/base runs, may be applied again without effect, and changed in place."""

import copy
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from moeray.cluster.client import Client, user_request
from moeray.v1 import inference_pb2 as pb
from moeray.v1 import inference_pb2_grpc
from tests.integration.deployed_cluster import ANSWER
from tests.integration.serving import ray_environment, wait_until
from tests.k8s.manifests import render, serve_config

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


class Deployed:
    """Runs ``deployed_cluster.py``."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def deploy(self, config: dict[str, Any]) -> str:
        """Why Serve does not run it; empty where it does."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(config) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                problem: str = json.loads(line.removeprefix(ANSWER))["problem"]
                return problem
        raise AssertionError("it ended")


@pytest.fixture
def deployed() -> Iterator[Deployed]:
    program = str(Path(__file__).with_name("deployed_cluster.py"))
    with subprocess.Popen(
        [sys.executable, program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ray_environment(MOERAY_CLUSTER_TOKEN="t" * 40),
    ) as process:
        yield Deployed(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(90) == 0


def small_config() -> dict[str, Any]:
    """As in k8s/base, but on this machine's loopback and of a size that it bears."""
    config = serve_config(render("base"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config["applications"][0]["args"] |= {
        "host": "127.0.0.1", "port": port, "metrics_port": 0,
        "ranks": 1, "engines": 1, "gateways": 1,
    }  # fmt: skip
    return config


def with_args(config: dict[str, Any], **args: object) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    changed["applications"][0]["args"] |= args
    return changed


def gateway_id(target: str) -> str:
    with grpc.insecure_channel(target, (("grpc.use_local_subchannel_pool", 1),)) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        return str(stub.GetServerInfo(pb.GetServerInfoRequest()).gateway_id)


def default_limit(target: str) -> int:
    with Client(target) as client:
        models = client.models()
    return models[0].default_max_output_tokens if models else 0


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_deployed_applied_again_and_changed(deployed: Deployed) -> None:
    config = small_config()
    assert "device" in deployed.deploy(with_args(config, device="auto"))
    assert deployed.deploy(config) == ""
    target = f"127.0.0.1:{config['applications'][0]['args']['port']}"
    with Client(target) as client:
        wait_until(client.is_serving, 60, "the gateway serves")
        request = user_request("hi", thinking_budget=2, max_output_tokens=16)
        events = list(client.generate(request, timeout_s=60))
    assert events[-1].WhichOneof("event") == "finished"
    first = gateway_id(target)
    assert deployed.deploy(config) == ""
    assert gateway_id(target) == first, "what did not change was replaced"
    assert deployed.deploy(with_args(config, default_max_output_tokens=77)) == ""
    wait_until(lambda: default_limit(target) == 77, 60, "the change is served")
