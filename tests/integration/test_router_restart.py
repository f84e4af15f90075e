"""A router that is killed or stands still, under two engines: streams go on, and it comes back
with what it knew.
"""

import concurrent.futures
import math
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from moeray.cluster.client import Client, user_request
from moeray.v1 import inference_pb2 as pb
from moeray.v1 import inference_pb2_grpc
from tests.chaos.processes import metrics_of
from tests.integration.serving import Server, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ROUTER = "ray::Router"
OUTPUT = 200
SHARED_BLOCKS = 4
"""Of any two prompts, at most: those of the system message."""


@pytest.fixture(scope="module")
def server(random_model: Path) -> Iterator[Server]:
    with Server("--model", str(random_model), MOERAY_ENGINES="2") as running:
        with Client(running.target) as client:
            wait_until(lambda: client.models()[0].engines == 2, 60, "both engines serve")
        yield running
        assert running.stop() == 0, running.output


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.target) as connected:
        yield connected


def ask(
    client: Client, prompt: str, *, output_tokens: int = 16, seed: int = 1
) -> tuple[pb.Started, list[int]]:
    """Where a request ran, and its tokens, which must be all that it asked for."""
    request = user_request(
        prompt,
        thinking_budget=8,
        max_output_tokens=output_tokens,
        seed=seed,
        current_date="2026-01-01",
    )
    request.include_token_ids = request.ignore_eos = True
    started, tokens = None, list[int]()
    for event in client.generate(request, timeout_s=120):
        match event.WhichOneof("event"):
            case "started":
                started = event.started
            case "delta":
                tokens += event.delta.token_ids
            case "usage":
                assert event.usage.output_tokens == output_tokens
    assert started is not None
    return started, tokens


def router_process(server: Server) -> psutil.Process:
    (process,) = server.children(ROUTER)
    return process


def another_router(server: Server, pid: int) -> bool:
    return [p.pid for p in server.children(ROUTER)] not in ([], [pid])


def long_prompt(topic: str) -> str:
    return f"Say something about {topic}. " + " ".join(f"{topic} {n}" for n in range(120))


def cached_on(client: Client, prompt: str) -> pb.Started:
    """Where a prompt runs when its blocks are known to be cached."""
    found: list[pb.Started] = []

    def is_known() -> bool:
        found.append(ask(client, prompt)[0])
        return found[-1].cached_tokens > 0

    wait_until(is_known, 30, "the prompt is found in a cache")
    return found[-1]


def test_a_second_turn_goes_to_the_engine_that_has_the_first(client: Client) -> None:
    for topic in ("rivers", "bridges", "lamps"):
        home = ask(client, long_prompt(topic))[0]
        for turn in range(3):
            again = ask(client, long_prompt(topic) + f" And now turn {turn}.")[0]
            assert again.engine_id == home.engine_id
            assert again.cached_tokens > 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_router_disturbs_no_stream_and_comes_back(
    server: Server, client: Client, number: signal.Signals
) -> None:
    prompts = [long_prompt(f"signal {number} {n}") for n in range(6)]
    for prompt in prompts:
        cached_on(client, prompt)
    undisturbed = ask(client, "streams", output_tokens=OUTPUT, seed=7)[1]
    victim = router_process(server)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        streams = [
            pool.submit(ask, client, "streams", output_tokens=OUTPUT, seed=7) for _ in range(4)
        ]
        wait_until(lambda: running_requests(server) == 4, 60, "four streams run")
        victim.send_signal(number)
        late = [pool.submit(ask, client, f"late {n}") for n in range(4)]
        wait_until(lambda: another_router(server, victim.pid), 60, "a new router")
        for stream in streams:
            assert stream.result()[1] == undisturbed
        for asked in late:
            asked.result()
    wait_until(lambda: told(server, "router_engines") == 2, 60, "both engines are registered again")
    # With the engines, but not at once, the ledger is back. Each prompt only once: answering it
    # caches it where it ran.
    wait_until(
        lambda: is_matched(server, client, prompts.pop()), 60, "prompts are known to be cached"
    )


def is_matched(server: Server, client: Client, prompt: str) -> bool:
    """Whether the router places a prompt where it knows most of its blocks to be."""
    matched_before, before = matched_blocks(server)
    started = ask(client, prompt + " And now?")[0]
    matched, blocks = matched_blocks(server)
    assert blocks - before > 2 * SHARED_BLOCKS
    if matched - matched_before < (blocks - before) / 2:
        return False
    assert started.cached_tokens > 0
    return True


def matched_blocks(server: Server) -> tuple[float, float]:
    """Of all blocks that the router has placed, those that it knew to be cached there; and all."""
    matched = told(server, "router_matched_blocks_total")
    return matched, told(server, "router_prompt_blocks_total")


def told(server: Server, metric: str) -> float:
    """What the router says of itself; not a number before it says anything."""
    samples = metrics_of(router_process(server).pid)
    return next((s.value for s in samples if s.name == f"moeray:{metric}"), math.nan)


def running_requests(server: Server) -> int:
    with grpc.insecure_channel(server.target) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        return int(stub.GetServerInfo(pb.GetServerInfoRequest()).running_requests)
