"""What a streamed token costs a gateway: tokens per second and core, and the time it adds.

Run as `python -m tests.bench.gateway [--streams 128] [--steps 1000] [--step-ms 5 10 0]
[--flush-ms 20 0]`. A whole gateway (real gRPC on both sides), an engine without a model, and a
client, each in a process of its own. The engine sends one step batch with a token for every stream
each step; a step of 0 ms floods. Tokens per core are tokens that reached the client over the CPU
seconds (user and system) that the gateway's process used meanwhile. Latency is from the engine's
write to the client's read, of each text token; which token came is known from the length of the
text, so that nothing but text travels.
"""

import argparse
import asyncio
import logging
import multiprocessing
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from itertools import accumulate, product
from multiprocessing.connection import Connection
from typing import Any

import grpc
import psutil
import structlog
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from moeray.engine.v1 import engine_pb2, engine_pb2_grpc
from moeray.v1 import inference_pb2 as pb
from moeray.vocabulary.cluster_token import NONCE_METADATA, PROOF_METADATA, engine_proof
from tests.cluster.fake_engine import TOKEN, FakeEngine
from tests.cluster.running_gateway import ask, running_gateway, said, tokenizer

TEXT = (
    "A gateway takes what every engine says in one step and gives each client its own part of it. "
    "The words of this answer are plain English, so that most tokens are whole words; numbers such "
    "as 3.14 and names such as Saint-Saëns take more than one. "
)
CHANNELS = 8
GENERATE = "/moeray.v1.InferenceService/Generate"
START_S = 60.0
COLUMNS = ("tok/s", "CPU", "tok/s/core", "tok/event", "us/event", "p50", "p99")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    streams: int
    steps: int
    """Tokens of each stream, headers included."""
    step_s: float
    flush_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    wall_s: float
    cpu_s: float
    """Of the gateway's process."""
    tokens: int
    events: int
    latencies_s: list[float]
    """Sorted."""

    def latency_ms(self, share: float) -> float:
        return 1e3 * self.latencies_s[round(share * (len(self.latencies_s) - 1))]


def answer_tokens(count: int) -> list[int]:
    """The first ``count`` tokens of a long final message."""
    once = len(tokenizer().encode(TEXT))
    return said(("final", TEXT * (count // once + 1)))[:count]


def text_ends(tokens: list[int]) -> list[int]:
    """Characters of text that are whole after each token; a header has none."""
    header = len(said(("final", ""))) - 1
    text = b"".join(tokenizer().token_bytes(token) for token in tokens[header:])
    sizes = [0] * header + [len(tokenizer().token_bytes(token)) for token in tokens[header:]]
    return [len(text[:end].decode("utf-8", "ignore")) for end in accumulate(sizes)]


class Engine(engine_pb2_grpc.EngineServiceServicer):
    """Takes every stream of the load, then says a token of each in every step."""

    def __init__(self, load: Load, started: Callable[[], None]) -> None:
        self._load = load
        self._started = started
        self._batches = 0
        self.step_times: list[float] = []

    async def Connect(
        self, request_iterator: AsyncIterator[engine_pb2.ConnectRequest], context: Any
    ) -> None:
        nonce = dict(context.invocation_metadata())[NONCE_METADATA]
        await context.send_initial_metadata(((PROOF_METADATA, engine_proof(TOKEN, nonce)),))
        submits: list[engine_pb2.Submit] = []
        async for message in request_iterator:
            if message.WhichOneof("message") != "submit":
                continue
            submits.append(message.submit)
            await self._accept(message.submit, context)
            if len(submits) == self._load.streams:
                speaking = asyncio.create_task(self._speak(submits, context))
        await speaking

    async def _accept(self, submit: engine_pb2.Submit, context: Any) -> None:
        result = engine_pb2.SubmitResult(request_key=submit.request_key, epoch=submit.epoch)
        await context.write(engine_pb2.ConnectResponse(submit_result=result))
        row = engine_pb2.StepRow(
            request_key=submit.request_key, epoch=submit.epoch, cached_tokens=0
        )
        await self._write([row], context)

    async def _write(self, rows: list[engine_pb2.StepRow], context: Any) -> None:
        self._batches += 1
        batch = engine_pb2.StepBatch(sequence_number=self._batches, rows=rows)
        await context.write(engine_pb2.ConnectResponse(step_batch=batch))

    async def _speak(self, submits: list[engine_pb2.Submit], context: Any) -> None:
        tokens = answer_tokens(self._load.steps)
        await asyncio.sleep(1.0)  # the clients' streams open first
        self._started()
        begin = time.perf_counter()
        for step, token in enumerate(tokens):
            last = step == len(tokens) - 1
            reason = engine_pb2.FINISH_REASON_LENGTH if last else None
            rows = [
                engine_pb2.StepRow(
                    request_key=submit.request_key,
                    epoch=submit.epoch,
                    first_index=step,
                    token_ids=[token],
                    finish_reason=reason,
                )
                for submit in submits
            ]
            await asyncio.sleep(max(0.0, begin + step * self._load.step_s - time.perf_counter()))
            self.step_times.append(time.perf_counter())
            await self._write(rows, context)


async def serve_engine(pipe: Connection, load: Load) -> None:
    engine = Engine(load, lambda: pipe.send("started"))
    server = grpc.aio.server()
    engine_pb2_grpc.add_EngineServiceServicer_to_server(engine, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    tokenizer()
    pipe.send(port)
    await asyncio.to_thread(pipe.recv)
    await server.stop(None)
    pipe.send(engine.step_times)


async def serve_gateway(pipe: Connection, load: Load, engine_port: int) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    async with running_gateway(flush_s=load.flush_s) as gateway:
        engine = FakeEngine("engine-1", port=engine_port)
        await gateway.register(
            engine.info(places=load.streams, max_sequence_tokens=load.steps + 4096)
        )
        pipe.send(gateway.target)
        await asyncio.to_thread(pipe.recv)


async def run_client(pipe: Connection, load: Load, target: str) -> None:
    options = (("grpc.use_local_subchannel_pool", 1),)
    channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(CHANNELS)]
    streams = await asyncio.gather(
        *(_read_stream(channels[i % CHANNELS], load) for i in range(load.streams))
    )
    pipe.send((time.perf_counter(), [_arrivals(stream) for stream in streams]))
    await asyncio.gather(*(channel.close() for channel in channels))


async def _read_stream(channel: grpc.aio.Channel, load: Load) -> list[tuple[float, bytes]]:
    """(time, message) of each event; parsed later, so that this client keeps up."""
    request = ask(max_output_tokens=load.steps, ignore_eos=True).SerializeToString()
    call: Any = channel.unary_stream(GENERATE)(request)
    return [(time.perf_counter(), data) async for data in call]


def _arrivals(stream: list[tuple[float, bytes]]) -> list[tuple[float, int]]:
    """(time, characters so far) of each delta."""
    arrivals: list[tuple[float, int]] = []
    characters, finished = 0, False
    for moment, data in stream:
        event = pb.GenerateResponse.FromString(data)
        match event.WhichOneof("event"):
            case "delta":
                characters += len(event.delta.text)
                arrivals.append((moment, characters))
            case "finished":
                finished = event.finished.reason == pb.FINISH_REASON_LENGTH
    if not finished:
        raise RuntimeError("an answer was cut off")
    return arrivals


def _in_process(run: Callable[..., Awaitable[None]], *arguments: object) -> None:
    asyncio.run(run(*arguments))  # type: ignore[arg-type]


def measure(load: Load) -> Result:
    """Run one load in three fresh processes."""
    spawn = multiprocessing.get_context("spawn")
    processes = []

    def start(run: Callable[..., Awaitable[None]], *arguments: object) -> tuple[Connection, Any]:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_in_process, args=(run, theirs, load, *arguments))
        process.start()
        theirs.close()
        processes.append(process)
        return ours, process

    try:
        engine, _ = start(serve_engine)
        gateway, gateway_process = start(serve_gateway, _receive(engine))
        client, _ = start(run_client, _receive(gateway))
        _receive(engine)
        watched = psutil.Process(gateway_process.pid)
        begin, before = time.perf_counter(), watched.cpu_times()
        end, arrivals = _receive(client, load.steps * max(load.step_s, 0.02) * 4 + START_S)
        after = watched.cpu_times()
        gateway.send("end")
        gateway_process.join(START_S)
        engine.send("end")
        step_times = _receive(engine)
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return Result(
        wall_s=end - begin,
        cpu_s=after.user - before.user + after.system - before.system,
        tokens=load.streams * load.steps,
        events=sum(map(len, arrivals)),
        latencies_s=_latencies(text_ends(answer_tokens(load.steps)), step_times, arrivals),
    )


def _receive(pipe: Connection, timeout_s: float = START_S) -> Any:
    if not pipe.poll(timeout_s):
        raise TimeoutError("a process of the benchmark does not answer")
    return pipe.recv()


def _latencies(
    ends: list[int], step_times: list[float], arrivals: list[list[tuple[float, int]]]
) -> list[float]:
    """Of each text token, from the engine's write to the client's read; sorted."""
    first = bisect_right(ends, 0)
    found = []
    for stream in arrivals:
        token = first
        for moment, characters in stream:
            arrived = bisect_right(ends, characters)
            found += [moment - step_times[index] for index in range(token, arrived)]
            token = arrived
        if token != len(ends):
            raise RuntimeError(f"{len(ends) - token} tokens of an answer did not come")
    return sorted(found)


def _cells(result: Result) -> list[str]:
    return [
        f"{result.tokens / result.wall_s:,.0f}",
        f"{100 * result.cpu_s / result.wall_s:.0f} %",
        f"{result.tokens / result.cpu_s:,.0f}",
        f"{result.tokens / result.events:.2f}",
        f"{1e6 * result.cpu_s / result.events:.0f}",
        f"{result.latency_ms(0.5):.1f} ms",
        f"{result.latency_ms(0.99):.1f} ms",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--step-ms", type=float, nargs="+", default=[5.0, 10.0, 0.0])
    parser.add_argument("--flush-ms", type=float, nargs="+", default=[20.0, 0.0])
    options = parser.parse_args()
    title = f"one gateway, {options.streams} streams of {options.steps} tokens"
    table = Table(title=title, box=SIMPLE)
    for name in (
        "step",
        "flush",
        "tok/s",
        "CPU",
        "tok/s/core",
        "tok/event",
        "us/event",
        "p50",
        "p99",
    ):
        table.add_column(name, justify="right")
    for step_ms, flush_ms in product(options.step_ms, options.flush_ms):
        load = Load(
            streams=options.streams,
            steps=options.steps,
            step_s=step_ms / 1e3,
            flush_s=flush_ms / 1e3,
        )
        table.add_row(
            f"{step_ms:g} ms" if step_ms else "flood",
            f"{flush_ms:g} ms" if flush_ms else "none",
            *_cells(measure(load)),
        )
    console = Console(highlight=False, width=100)
    console.print(table)
    console.print("CPU, cores and us: the gateway's process. p50, p99: from engine to client.")


if __name__ == "__main__":
    main()
