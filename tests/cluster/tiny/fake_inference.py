"""An InferenceService that knows the worked solutions, and breaks them where it is told to."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from moeray.cluster.generation import ReasoningEffort
from moeray.cluster.tiny.eval_requests import json_text, problem_request
from moeray.cluster.tiny.problem import Problem
from moeray.v1 import inference_pb2 as pb
from moeray.v1 import inference_pb2_grpc

EFFORTS = {
    pb.REASONING_EFFORT_LOW: ReasoningEffort.LOW,
    pb.REASONING_EFFORT_MEDIUM: ReasoningEffort.MEDIUM,
    pb.REASONING_EFFORT_HIGH: ReasoningEffort.HIGH,
}
Fault = Callable[[Problem, pb.GenerateRequest, pb.Answer], None]
"""Breaks an answer in place."""


def in_words(answer: pb.Answer) -> None:
    """Count the answer's tokens: one for each word, two for the headers."""
    usage = answer.usage
    usage.Clear()
    usage.prompt_tokens = 10
    usage.reasoning_tokens = len(answer.analysis.split())
    usage.final_tokens = len(answer.final.split())
    usage.tool_call_tokens = sum(len(call.arguments.split()) for call in answer.tool_calls)
    usage.control_tokens = 2
    usage.output_tokens = (
        usage.reasoning_tokens + usage.final_tokens + usage.tool_call_tokens + usage.control_tokens
    )


def answer_of(problem: Problem, request: pb.GenerateRequest) -> pb.Answer:
    """The worked solution's next turn, its analysis within the thinking budget."""
    answer = pb.Answer()
    after_call = request.messages[-1].role == pb.ROLE_TOOL
    turn = problem.reply if after_call or problem.call is None else problem.call
    words = turn.thinking.at(EFFORTS[request.reasoning_effort]).split()
    if request.HasField("thinking_budget"):
        words = words[: request.thinking_budget]
    answer.analysis = " ".join(words)
    if problem.call is not None and not after_call:
        answer.tool_calls.add(
            id="call-1", name=problem.call.name, arguments=json_text(problem.call.arguments)
        )
        answer.finished.reason = pb.FINISH_REASON_TOOL_CALL
    else:
        answer.final = problem.reply.final
        answer.finished.reason = pb.FINISH_REASON_STOP
    return answer


@dataclass(slots=True)
class FakeInference(inference_pb2_grpc.InferenceServiceServicer):
    problems: Sequence[Problem]
    fault: Fault = lambda problem, request, answer: None
    busy: int = 0
    """So many more calls end with ``busy_code`` and, unless it is 0, that retry delay."""
    busy_code: "code_pb2.Code.ValueType" = code_pb2.UNAVAILABLE
    retry_ms: int = 10
    refuse: str = ""
    """Set: every Complete ends with INVALID_ARGUMENT."""
    requests: list[pb.GenerateRequest] = field(default_factory=list)
    running: int = 0
    peak: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    """Cleared: calls wait."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.gate.set()

    def Complete(
        self, request: pb.CompleteRequest, context: grpc.ServicerContext
    ) -> pb.CompleteResponse:
        with self.lock:
            self.requests.append(request.generation)
            self.running += 1
            self.peak = max(self.peak, self.running)
            busy, self.busy = self.busy, max(0, self.busy - 1)
        try:
            while not self.gate.wait(0.05) and context.is_active():
                pass
            if self.refuse:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refuse)
            if busy:
                context.abort_with_status(rpc_status.to_status(self._busy_status()))
            return pb.CompleteResponse(model="fake", answers=[self._answer(request.generation)])
        finally:
            with self.lock:
                self.running -= 1

    def Generate(
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateResponse]:
        with self.lock:
            self.requests.append(request)
        yield from events(self._answer(request))

    def CountTokens(
        self, request: pb.CountTokensRequest, context: grpc.ServicerContext
    ) -> pb.CountTokensResponse:
        effort = EFFORTS[request.generation.reasoning_effort].value
        return pb.CountTokensResponse(prompt_tokens=10, prompt=f"...\nReasoning: {effort}\n...")

    def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[pb.Model(name="fake")])

    def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> pb.GetServerInfoResponse:
        return pb.GetServerInfoResponse(version="9.9", engines=1)

    def _busy_status(self) -> status_pb2.Status:
        status = status_pb2.Status(code=self.busy_code, message="no engine")
        if self.retry_ms:
            delay = Duration(nanos=1_000_000 * self.retry_ms)
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        return status

    def _answer(self, request: pb.GenerateRequest) -> pb.Answer:
        problem = next((each for each in self.problems if asks(each, request)), None)
        if problem is None:
            answer = pb.Answer(final="?")
            answer.finished.reason = pb.FINISH_REASON_STOP
        else:
            answer = answer_of(problem, request)
            self.fault(problem, request, answer)
        in_words(answer)
        return answer


def asks(problem: Problem, request: pb.GenerateRequest) -> bool:
    """Whether ``request`` begins with the problem's messages."""
    messages = problem_request(problem, ReasoningEffort.LOW).messages
    return list(request.messages[: len(messages)]) == list(messages)


def events(answer: pb.Answer) -> Iterator[pb.GenerateResponse]:
    """The answer as a stream, word by word."""
    yield pb.GenerateResponse(started=pb.Started(request_id="r", model="fake"))
    for channel, text in (
        (pb.CHANNEL_ANALYSIS, answer.analysis),
        (pb.CHANNEL_FINAL, answer.final),
    ):
        for number, word in enumerate(text.split(" ") if text else ()):
            said = f" {word}" if number else word
            yield pb.GenerateResponse(delta=pb.Delta(channel=channel, text=said))
    for index, call in enumerate(answer.tool_calls):
        start = pb.ToolCallStart(id=call.id, name=call.name)
        for part in (
            pb.ToolCallDelta(index=index, start=start),
            pb.ToolCallDelta(index=index, arguments=call.arguments),
            pb.ToolCallDelta(index=index, end=pb.ToolCallEnd()),
        ):
            yield pb.GenerateResponse(tool_call=part)
    yield pb.GenerateResponse(usage=answer.usage)
    yield pb.GenerateResponse(finished=answer.finished)


@contextmanager
def serving(service: FakeInference) -> Iterator[str]:
    """Serve on loopback; yields the target."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        service.gate.set()
        server.stop(None).wait()
