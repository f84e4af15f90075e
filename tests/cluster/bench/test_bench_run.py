"""`moeray bench` against a server that says what the test wants: loads, limits, interruption."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from moeray.cluster.bench.load import (
    Calibration,
    ClosedLoop,
    FixedLength,
    Load,
    Poisson,
    Ramp,
    Shape,
    Workload,
)
from moeray.cluster.bench.record import CUT_OFF, INTERRUPTED, MISCOUNTED, OK
from moeray.cluster.bench.run import Limits, LoadRun
from moeray.v1 import inference_pb2 as pb
from moeray.v1 import inference_pb2_grpc
from tests.integration.serving import environment, moeray

CALIBRATION = Calibration(overhead=10.0, prefix_overhead=5.0, tokens_per_word=1.0)
SHAPE = Shape(
    seed=1,
    prompt_tokens=FixedLength(40),
    output_tokens=FixedLength(16),
    efforts={"low": 1.0},
    prefix_tokens=0,
    prefixes=1,
    temperature=None,
    natural=False,
    model="",
)


class FakeServer(inference_pb2_grpc.InferenceServiceServicer):
    """Answers each request with four tokens; ``fault`` names what goes wrong."""

    def __init__(self) -> None:
        self.requests: list[pb.GenerateRequest] = []
        self.fault = ""
        self.gate = asyncio.Event()
        """Answers end only when it is set."""
        self.gate.set()
        self.hold_after: int | None = None
        """From this request on no answer ends."""
        self.cancelled = 0
        self.peers: set[str] = set()

    async def Generate(
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.requests.append(request)
        self.peers.add(context.peer())
        if len(self.requests) == self.hold_after:
            self.gate.clear()
        if self.fault == "refused":
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        words = sum(len(message.content.split()) for message in request.messages)
        yield pb.GenerateResponse(started=pb.Started(prompt_tokens=10 + words, cached_tokens=4))
        yield pb.GenerateResponse(delta=pb.Delta(text="a", token_ids=[1, 2, 3]))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        yield pb.GenerateResponse(delta=pb.Delta(text="b", token_ids=[4]))
        counted = 5 if self.fault == "miscounted" else 4
        yield pb.GenerateResponse(usage=pb.Usage(output_tokens=counted, cached_tokens=4))
        if self.fault != "cut off":
            yield pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_LENGTH))

    async def CountTokens(self, request: pb.CountTokensRequest, context: Any) -> Any:
        messages = request.generation.messages
        words = sum(len(message.content.split()) for message in messages)
        return pb.CountTokensResponse(prompt_tokens=10 + 5 * (len(messages) - 1) + words)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> Any:
        return pb.GetServerInfoResponse(version="0.0.1", gateway_id="gateway-1", engines=1)

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> Any:
        return pb.ListModelsResponse(models=[pb.Model(name="<b>tiny</b>", engines=1)])


@asynccontextmanager
async def serving(server: FakeServer) -> AsyncIterator[str]:
    listening = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(server, listening)
    port = listening.add_insecure_port("127.0.0.1:0")
    await listening.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await listening.stop(None)


@asynccontextmanager
async def load_run(
    server: FakeServer,
    load: Load,
    requests: int | None = None,
    duration_s: float | None = None,
    timeout_s: float | None = None,
) -> AsyncIterator[LoadRun]:
    limits = Limits(requests=requests, duration_s=duration_s, timeout_s=timeout_s)
    async with serving(server) as target, grpc.aio.insecure_channel(target) as channel:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        workload = Workload(SHAPE, CALIBRATION, "measured")
        yield LoadRun([stub], target, workload, load, limits, seed=1)


def ignore(run: LoadRun) -> None:
    pass


async def test_a_closed_loop_keeps_its_concurrency() -> None:
    server = FakeServer()
    async with load_run(server, ClosedLoop(3), requests=10) as run:
        health = await run.run(asyncio.Event(), ignore)
    assert [record.index for record in run.records] == list(range(10))
    assert {record.status for record in run.records} == {OK}
    assert {record.event_tokens for record in run.records} == {(3, 1)}
    assert {record.prompt_tokens for record in run.records} == {40}
    assert health.peak_running == 3
    assert not run.interrupted
    workload = Workload(SHAPE, CALIBRATION, "measured")
    expected = [workload.request(index).message.SerializeToString() for index in range(10)]
    assert sorted(r.SerializeToString() for r in server.requests) == sorted(expected)


async def test_an_open_loop_starts_requests_whatever_still_runs() -> None:
    server = FakeServer()
    server.gate.clear()
    async with load_run(server, Poisson(200.0), requests=30) as run:
        running = asyncio.create_task(run.run(asyncio.Event(), ignore))
        async with asyncio.timeout(20):
            while run.running < 30:
                await asyncio.sleep(0.01)
        server.gate.set()
        health = await running
    assert health.peak_running == 30
    due = [record.due_s for record in run.records]
    arrivals = Poisson(200.0).arrivals(1)
    assert due == [next(arrivals) for _ in range(30)]
    assert all(record.started_s >= record.due_s for record in run.records)


async def test_a_ramp_ends_by_itself() -> None:
    async with load_run(FakeServer(), Ramp(100.0, 300.0, 0.2)) as run:
        await run.run(asyncio.Event(), ignore)
    assert len(run.records) == len(list(Ramp(100.0, 300.0, 0.2).arrivals(1)))


async def test_no_request_is_started_after_the_duration() -> None:
    async with load_run(FakeServer(), ClosedLoop(2), duration_s=0.3) as run:
        await run.run(asyncio.Event(), ignore)
    assert run.records
    assert all(record.due_s < 0.3 for record in run.records)
    async with load_run(FakeServer(), Poisson(50.0), duration_s=0.3) as run:
        await run.run(asyncio.Event(), ignore)
    assert all(record.due_s < 0.3 for record in run.records)


async def test_stopping_cancels_what_runs_and_keeps_what_was_measured() -> None:
    server, stop = FakeServer(), asyncio.Event()
    server.hold_after = 10
    async with load_run(server, ClosedLoop(4), requests=100) as run:

        def show(run: LoadRun) -> None:
            if run.tokens == 4 * len(run.records) + 3 * 4:
                stop.set()

        await run.run(stop, show)
        async with asyncio.timeout(5):
            while server.cancelled < 4:
                await asyncio.sleep(0.01)
    assert run.interrupted
    cancelled = [record for record in run.records if record.status == INTERRUPTED]
    assert len(cancelled) == 4
    assert all(record.output_tokens == 3 for record in cancelled)
    assert run.running == run.failed == 0


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ("refused", "RESOURCE_EXHAUSTED", "full"),
        ("cut off", CUT_OFF, "before the answer did"),
        ("miscounted", MISCOUNTED, "not as many"),
    ],
)
async def test_failures_are_recorded_by_status(fault: str, status: str, said: str) -> None:
    server = FakeServer()
    server.fault = fault
    async with load_run(server, ClosedLoop(2), requests=4) as run:
        await run.run(asyncio.Event(), ignore)
    assert [record.status for record in run.records] == [status] * 4
    assert all(said in record.error for record in run.records)
    assert run.failed == 4


async def test_a_request_has_its_deadline() -> None:
    server = FakeServer()
    server.gate.clear()
    async with load_run(server, ClosedLoop(1), requests=1, timeout_s=0.2) as run:
        await run.run(asyncio.Event(), ignore)
    assert [record.status for record in run.records] == ["DEADLINE_EXCEEDED"]
    assert run.records[0].output_tokens == 3


async def bench(target: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *moeray("bench", "--target", target, "--prompt-tokens", "40", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )


async def test_the_command_measures_prints_and_writes(tmp_path: Path) -> None:
    server = FakeServer()
    async with serving(server) as target:
        flags = f"--requests 12 --concurrency 4 --warmup 3 --slo ttft=60s --json {tmp_path}/j"
        process = await bench(target, *flags.split(), "--html", f"{tmp_path}/h")
        out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert "12 completed" in out.decode()
    assert "warming up with 3 requests" in errors.decode()
    assert len(server.requests) == 15
    assert len(server.peers) == 4
    written = json.loads((tmp_path / "j").read_text())
    assert written["summary"]["completed"] == len(written["records"]) == 12
    assert written["summary"]["goodput"]["share"] == 1.0
    assert written["environment"]["server"]["gateway_id"] == "gateway-1"
    assert written["environment"]["calibration"]["overhead"] == 10.0
    assert written["settings"]["requests"] == 12
    page = (tmp_path / "h").read_text()
    assert "&lt;b&gt;tiny&lt;/b&gt;" in page


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_command_reports_what_it_measured(
    number: signal.Signals, tmp_path: Path
) -> None:
    server = FakeServer()
    server.hold_after = 20
    async with serving(server) as target:
        flags = f"--requests 100000 --concurrency 4 --json {tmp_path}/j"
        process = await bench(target, *flags.split())
        async with asyncio.timeout(30):
            while len(server.requests) < 20:
                await asyncio.sleep(0.01)
        process.send_signal(number)
        out, errors = await process.communicate()
    assert process.returncode == 130, errors.decode()
    assert "Interrupted" in out.decode()
    written = json.loads((tmp_path / "j").read_text())
    assert written["interrupted"] is True
    assert written["summary"]["completed"] >= 10
    assert 1 <= written["summary"]["interrupted"] <= 4


async def test_a_command_whose_requests_all_fail_fails() -> None:
    server = FakeServer()
    server.fault = "refused"
    async with serving(server) as target:
        process = await bench(target, "--requests", "4")
        out, errors = await process.communicate()
    assert process.returncode == 1
    assert "4 requests failed with RESOURCE_EXHAUSTED" in out.decode().replace("\n", " ")
    assert errors.decode().endswith("moeray: no request ended well\n")


async def test_nobody_listens() -> None:
    process = await bench("127.0.0.1:1")
    out, errors = await process.communicate()
    assert process.returncode == 1
    assert out == b""
    assert "is `moeray serve` running at 127.0.0.1:1?" in errors.decode()


def test_the_command_line_starts_without_numpy_and_matplotlib() -> None:
    program = (
        "import sys, moeray.cluster.bench.command;"
        "print(*{'numpy', 'matplotlib', 'torch'} & set(sys.modules))"
    )
    imported = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert imported.stdout == "\n"
