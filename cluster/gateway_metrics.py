"""A gateway's metrics: what its clients see, counted answer by answer.

Time to first token runs from the call's arrival to the first event of text or tool call, and
inter-token latency from event to event, shared among the tokens of an event. Everything is written
in the event loop and read by the scraping thread.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from prometheus_client.core import Metric

from moeray.cluster.answer_observer import AnswerObserver
from moeray.cluster.generation import ReasoningEffort
from moeray.cluster.interceptors import Call
from moeray.cluster.metrics import TOKEN_BUCKETS, WeightedHistogram, counter, gauge, histogram
from moeray.v1 import inference_pb2 as pb

MODEL = ("model_name",)


@dataclass(slots=True)
class _ModelCounts:
    """What one model's answers took, through this gateway."""

    first_token_s: WeightedHistogram = field(default_factory=WeightedHistogram)
    inter_token_s: WeightedHistogram = field(default_factory=WeightedHistogram)
    whole_s: WeightedHistogram = field(default_factory=WeightedHistogram)
    queued_s: WeightedHistogram = field(default_factory=WeightedHistogram)
    prompt: WeightedHistogram = field(default_factory=partial(WeightedHistogram, TOKEN_BUCKETS))
    generation: WeightedHistogram = field(default_factory=partial(WeightedHistogram, TOKEN_BUCKETS))
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    retries: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    reasoning_tokens: Counter[str] = field(default_factory=Counter)
    recovered: Counter[str] = field(default_factory=Counter)


class _ObservedAnswer:
    """An AnswerObserver that counts, and tells the call's log line what became of it."""

    __slots__ = ("_call", "_counts", "_effort", "_last_s", "_tokens", "_waiting_since_s")

    def __init__(self, counts: _ModelCounts, call: Call, effort: ReasoningEffort) -> None:
        self._counts = counts
        self._call = call
        self._effort = effort.value
        self._tokens = 0
        self._last_s: float | None = None
        self._waiting_since_s = time.perf_counter()
        call.facts["effort"] = self._effort

    def placed(self, engine_id: str) -> None:
        self._counts.queued_s.observe(time.perf_counter() - self._waiting_since_s)
        self._call.facts["engine_id"] = engine_id

    def retried(self) -> None:
        self._counts.retries += 1
        self._waiting_since_s = time.perf_counter()
        self._call.add("retries", 1)

    def progress(self, tokens: int) -> None:
        now_s = time.perf_counter()
        new, self._tokens = tokens - self._tokens, tokens
        counts = self._counts
        counts.generation_tokens += new
        if self._last_s is None:
            counts.first_token_s.observe(now_s - self._call.arrived_s)
        elif new:
            counts.inter_token_s.observe((now_s - self._last_s) / new, new)
        self._last_s = now_s

    def finished(
        self, usage: pb.Usage, reason: "pb.FinishReason.ValueType", recovered: Mapping[str, int]
    ) -> None:
        counts, call = self._counts, self._call
        counts.whole_s.observe(time.perf_counter() - call.arrived_s)
        counts.prompt.observe(usage.prompt_tokens)
        counts.generation.observe(usage.output_tokens)
        counts.prompt_tokens += usage.prompt_tokens
        counts.cached_tokens += usage.cached_tokens
        counts.generation_tokens += usage.output_tokens - self._tokens
        counts.reasoning_tokens[self._effort] += usage.reasoning_tokens
        counts.recovered.update(recovered)
        name = pb.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()
        counts.finished[name] += 1
        call.facts["prompt_tokens"] = usage.prompt_tokens
        call.facts["cached_tokens"] = usage.cached_tokens
        call.add("output_tokens", usage.output_tokens)
        call.facts["finish_reason"] = name


class GatewayMetrics:
    """Watches a gateway's answers and calls, and is what its /metrics shows.

    ``running`` says how many answers are being made; ``link_breaks`` how often a stream to an
    engine broke.
    """

    def __init__(self, *, running: Callable[[], int], link_breaks: Callable[[], int]) -> None:
        self._running = running
        self._link_breaks = link_breaks
        self._models: dict[str, _ModelCounts] = {}
        self._calls: Counter[tuple[str, str]] = Counter()

    def observe_answer(self, call: Call, model: str, effort: ReasoningEffort) -> AnswerObserver:
        counts = self._models.get(model)
        if counts is None:
            counts = self._models[model] = _ModelCounts()
        return _ObservedAnswer(counts, call, effort)

    def call_ended(self, method: str, code: str) -> None:
        self._calls[method.rpartition("/")[2], code] += 1

    def collect(self) -> Iterator[Metric]:
        models = dict(self._models)
        yield from _histograms(models)
        yield from _token_counters(models)
        yield from _outcomes(models)
        yield gauge(
            "gateway_requests_running", "Answers being made, waiting ones included.", (),
            [((), self._running())],
        )  # fmt: skip
        yield counter(
            "engine_link_breaks", "Streams to engines that broke.", (), [((), self._link_breaks())]
        )
        calls = self._calls.copy().items()
        yield counter("rpcs", "Calls that ended, by gRPC status.", ("method", "code"), calls)


def _histograms(models: Mapping[str, _ModelCounts]) -> Iterator[Metric]:
    def of(name: str, help_text: str, pick: Callable[[_ModelCounts], WeightedHistogram]) -> Metric:
        return histogram(name, help_text, MODEL, [((m,), pick(c)) for m, c in models.items()])

    yield of(
        "time_to_first_token_seconds", "From a call's arrival to the first event with text.",
        lambda counts: counts.first_token_s,
    )  # fmt: skip
    yield of(
        "inter_token_latency_seconds", "Between tokens after the first, as events leave.",
        lambda counts: counts.inter_token_s,
    )  # fmt: skip
    yield of(
        "e2e_request_latency_seconds", "From arrival to the end of whole answers.",
        lambda counts: counts.whole_s,
    )  # fmt: skip
    yield of(
        "request_queue_time_seconds", "Until the router found a place, for each try.",
        lambda counts: counts.queued_s,
    )  # fmt: skip
    yield of("request_prompt_tokens", "Prompt tokens of whole answers.", lambda c: c.prompt)
    yield of("request_generation_tokens", "Output tokens of whole answers.", lambda c: c.generation)


def _token_counters(models: Mapping[str, _ModelCounts]) -> Iterator[Metric]:
    def of(name: str, help_text: str, pick: Callable[[_ModelCounts], float]) -> Metric:
        return counter(name, help_text, MODEL, [((m,), pick(c)) for m, c in models.items()])

    yield of("prompt_tokens", "Prompt tokens of whole answers.", lambda c: c.prompt_tokens)
    yield of(
        "prompt_tokens_cached", "Prompt tokens that came from the prefix cache.",
        lambda counts: counts.cached_tokens,
    )  # fmt: skip
    yield of("generation_tokens", "Tokens sent to clients.", lambda c: c.generation_tokens)
    yield of(
        "request_retries", "Tries that failed on an engine, followed by another.",
        lambda counts: counts.retries,
    )  # fmt: skip


def _outcomes(models: Mapping[str, _ModelCounts]) -> Iterator[Metric]:
    def of(
        name: str, help_text: str, label: str, pick: Callable[[_ModelCounts], Counter[str]]
    ) -> Metric:
        samples = [
            ((model, value), count)
            for model, counts in models.items()
            for value, count in pick(counts).copy().items()
        ]
        return counter(name, help_text, (*MODEL, label), samples)

    yield of("request_success", "Whole answers.", "finished_reason", lambda c: c.finished)
    yield of(
        "reasoning_tokens", "Tokens of analysis in whole answers.", "effort",
        lambda counts: counts.reasoning_tokens,
    )  # fmt: skip
    yield of(
        "harmony_recovered", "Repairs of malformed Harmony output.", "kind",
        lambda counts: counts.recovered,
    )  # fmt: skip
