"""What happened to one request of ``moeray bench``. Times are in seconds on the run's own clock,
which is ``time.perf_counter`` from the start of the measured part."""

from dataclasses import dataclass, field
from typing import Final

from moeray.cluster.bench.load import PlannedRequest
from moeray.v1 import inference_pb2 as pb

OK: Final = "OK"
INTERRUPTED: Final = "INTERRUPTED"
"""Stopped by the user; neither good nor bad."""
CUT_OFF: Final = "CUT_OFF"
"""The stream ended well, but before ``finished``: the server lost tokens in silence."""
MISCOUNTED: Final = "MISCOUNTED"
"""The tokens that came are not as many as the server's usage says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    index: int
    effort: str
    planned_prompt_tokens: int
    max_output_tokens: int
    due_s: float
    """When it was to start; every latency counts from here."""
    started_s: float
    ended_s: float
    status: str
    """A gRPC status name, or one of this module's."""
    error: str
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    """Received: also of a request that failed later."""
    reasoning_tokens: int
    event_times_s: tuple[float, ...]
    """When each event with tokens came."""
    event_tokens: tuple[int, ...]
    """How many tokens each had."""

    @property
    def is_ok(self) -> bool:
        return self.status == OK

    @property
    def ttft_s(self) -> float | None:
        """Time to first token: to the first event that holds any."""
        return self.event_times_s[0] - self.due_s if self.event_times_s else None

    @property
    def e2e_s(self) -> float:
        return self.ended_s - self.due_s

    @property
    def inter_token_s(self) -> list[float]:
        """One latency for each token behind the first event: the time between two events over the
        tokens of the later one, as often as it has tokens."""
        latencies: list[float] = []
        for before, now, tokens in zip(
            self.event_times_s, self.event_times_s[1:], self.event_tokens[1:], strict=False
        ):
            latencies += [(now - before) / tokens] * tokens
        return latencies

    @property
    def mean_inter_token_s(self) -> float | None:
        """From the first event to the last, over the tokens behind the first."""
        tokens = sum(self.event_tokens[1:])
        return (self.event_times_s[-1] - self.event_times_s[0]) / tokens if tokens else None


@dataclass(slots=True, kw_only=True)
class Observer:
    """Takes the events of one answer as they come."""

    planned: PlannedRequest
    due_s: float
    started_s: float
    times_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    _prompt_tokens: int = 0
    _cached_tokens: int = 0
    _reasoning_tokens: int = 0
    _counted_tokens: int | None = None
    _finish_reason: str = ""

    def add(self, event: pb.GenerateResponse, now_s: float) -> int:
        """Take an event; returns how many tokens it brought."""
        brought = 0
        match event.WhichOneof("event"):
            case "started":
                self._prompt_tokens = event.started.prompt_tokens
                self._cached_tokens = event.started.cached_tokens
            case "delta":
                brought = len(event.delta.token_ids)
            case "tool_call":
                brought = len(event.tool_call.token_ids)
            case "usage":
                self._cached_tokens = event.usage.cached_tokens
                self._reasoning_tokens = event.usage.reasoning_tokens
                self._counted_tokens = event.usage.output_tokens
            case "finished":
                name = pb.FinishReason.Name(event.finished.reason)
                self._finish_reason = name.removeprefix("FINISH_REASON_").lower()
        if brought:
            self.times_s.append(now_s)
            self.tokens.append(brought)
        return brought

    def end_of_stream(self) -> str:
        """The status of a stream that ended without an error."""
        if not self._finish_reason:
            return CUT_OFF
        return OK if self._counted_tokens == sum(self.tokens) else MISCOUNTED

    def record(self, status: str, error: str, ended_s: float) -> RequestRecord:
        return RequestRecord(
            index=self.planned.index,
            effort=self.planned.effort,
            planned_prompt_tokens=self.planned.prompt_tokens,
            max_output_tokens=self.planned.message.max_output_tokens,
            due_s=self.due_s,
            started_s=self.started_s,
            ended_s=ended_s,
            status=status,
            error=error,
            finish_reason=self._finish_reason,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            output_tokens=sum(self.tokens),
            reasoning_tokens=self._reasoning_tokens,
            event_times_s=tuple(self.times_s),
            event_tokens=tuple(self.tokens),
        )
