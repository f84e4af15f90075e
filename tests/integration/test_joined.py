"""A Ray cluster that somebody else runs: joined, not owned."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moeray.cluster.client import Client, user_request
from moeray.cluster.whole_answer import WholeAnswer
from tests.integration.serving import Server, ray_environment, run, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture
def ray_address() -> Iterator[str]:
    """A Ray head node of its own, in the foreground of a process that is ended by its id."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    start = ("start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--dashboard-port=0")
    with subprocess.Popen(
        [str(Path(sys.executable).parent / "ray"), *start, "--include-dashboard=false"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ray_environment(),
    ) as head:
        assert head.stdout is not None
        seen = []
        for line in head.stdout:
            seen.append(line)
            if "Ray runtime started" in line:
                break
        else:
            raise RuntimeError("".join(seen))
        yield f"127.0.0.1:{port}"
        head.terminate()


def answers(target: str) -> bool:
    answer = WholeAnswer()
    with Client(target) as client:
        request = user_request("hi", thinking_budget=2, max_output_tokens=16)
        for event in client.generate(request, timeout_s=60):
            answer.add(event)
    return bool(answer.first.final)


def test_a_joined_ray_cluster(ray_address: str) -> None:
    with Server("--ranks", "1", RAY_ADDRESS=ray_address) as server:
        assert answers(server.target)
        second = run("serve", "--port", "0", RAY_ADDRESS=ray_address)
        assert second.returncode == 1
        assert "already runs on this Ray cluster" in second.stderr
        # Serve keeps the application when the command that deployed it is lost.
        server.process.kill()
        server.process.wait()
        assert answers(server.target)
    assert run("stop", RAY_ADDRESS=ray_address).stdout == "stopped\n"
    with Client(server.target) as client:
        wait_until(lambda: not client.is_serving(), 20, "the port is closed")
    with Server("--ranks", "1", RAY_ADDRESS=ray_address) as again:
        assert answers(again.target)
        assert again.stop() == 0
    # Ray itself goes on.
    assert run("stop", RAY_ADDRESS=ray_address).stdout == "nothing was running\n"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:10001"])
def test_an_address_without_a_ray_cluster_is_refused(address: str) -> None:
    refused = run("serve", "--port", "0", RAY_ADDRESS=address)
    assert refused.returncode == 1
    assert refused.stderr.startswith("moeray: RAY_ADDRESS: ")
