"""The figures of a run: percentiles, throughput, goodput. Pure functions over records.

Latencies are those of requests that ended well. Percentiles interpolate linearly between the two
closest ranks (Hyndman and Fan 1996, type 7; what numpy and most benchmarks do).
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moeray.cluster.bench.record import INTERRUPTED, RequestRecord
from moeray.cluster.client import EFFORTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Seconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLevel:
    """Limits in seconds that a request must keep; None is no limit. ``itl_s`` limits its mean
    inter-token latency."""

    ttft_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None

    def is_met(self, record: RequestRecord) -> bool:
        """Whether a request ended well and within the limits. An answer of one event has no
        inter-token latency to miss."""
        if not record.is_ok or record.ttft_s is None:
            return False
        return (
            _within(record.ttft_s, self.ttft_s)
            and _within(record.mean_inter_token_s or 0.0, self.itl_s)
            and _within(record.e2e_s, self.e2e_s)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Requests within the service level, of all but those that the user stopped."""

    requests: int
    share: float
    requests_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EffortSummary:
    """The requests of one effort that ended well. Token counts are means for each request."""

    requests: int
    prompt_tokens: float
    reasoning_tokens: float
    output_tokens: float
    ttft: Distribution | None
    itl: Distribution | None
    e2e: Distribution | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The whole run. Rates are over ``wall_s``: from the start to the end of the last request."""

    wall_s: float
    requests: int
    completed: int
    failed: int
    interrupted: int
    output_tokens: int
    """Received, also of requests that failed."""
    prompt_tokens: int
    cached_tokens: int
    cached_share: float
    """Of prompt tokens, those found in the prefix cache."""
    output_tokens_per_s: float
    total_tokens_per_s: float
    """Prompt and output."""
    requests_per_s: float
    """Completed."""
    ttft: Distribution | None
    itl: Distribution | None
    """Over all tokens of all requests: a token counts once."""
    e2e: Distribution | None
    start_lag: Distribution | None
    """How much later than due requests were started: the client's own fault."""
    errors: dict[str, int]
    """By status."""
    efforts: dict[str, EffortSummary]
    goodput: Goodput | None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of ``ordered`` lies: sorted, not empty."""
    rank = share * (len(ordered) - 1)
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def distribution(values: Iterable[float]) -> Distribution | None:
    """None where there are no values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Distribution(
        count=len(ordered),
        mean=math.fsum(ordered) / len(ordered),
        p50=percentile(ordered, 0.5),
        p90=percentile(ordered, 0.9),
        p95=percentile(ordered, 0.95),
        p99=percentile(ordered, 0.99),
        max=ordered[-1],
    )


def summarise(records: Sequence[RequestRecord], level: ServiceLevel | None) -> Summary:
    """The figures of a run."""
    wall_s = max((record.ended_s for record in records), default=0.0)
    per_s = 1 / wall_s if wall_s else 0.0
    completed = [record for record in records if record.is_ok]
    interrupted = sum(record.status == INTERRUPTED for record in records)
    output_tokens = sum(record.output_tokens for record in records)
    prompt_tokens = sum(record.prompt_tokens for record in records)
    cached_tokens = sum(record.cached_tokens for record in records)
    ttft, itl, e2e = _latencies(completed)
    errors = Counter(r.status for r in records if not r.is_ok and r.status != INTERRUPTED)
    return Summary(
        wall_s=wall_s,
        requests=len(records),
        completed=len(completed),
        failed=len(records) - len(completed) - interrupted,
        interrupted=interrupted,
        output_tokens=output_tokens,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        cached_share=cached_tokens / prompt_tokens if prompt_tokens else 0.0,
        output_tokens_per_s=output_tokens * per_s,
        total_tokens_per_s=(prompt_tokens + output_tokens) * per_s,
        requests_per_s=len(completed) * per_s,
        ttft=ttft,
        itl=itl,
        e2e=e2e,
        start_lag=distribution(record.started_s - record.due_s for record in records),
        errors=dict(errors.most_common()),
        efforts=_by_effort(completed),
        goodput=None if level is None else _goodput(records, level, per_s),
    )


def _latencies(records: Sequence[RequestRecord]) -> list[Distribution | None]:
    return [
        distribution(record.ttft_s for record in records if record.ttft_s is not None),
        distribution(latency for record in records for latency in record.inter_token_s),
        distribution(record.e2e_s for record in records),
    ]


def _by_effort(completed: Sequence[RequestRecord]) -> dict[str, EffortSummary]:
    found = {}
    for effort in EFFORTS:
        records = [record for record in completed if record.effort == effort]
        if not records:
            continue
        ttft, itl, e2e = _latencies(records)
        found[effort] = EffortSummary(
            requests=len(records),
            prompt_tokens=sum(r.prompt_tokens for r in records) / len(records),
            reasoning_tokens=sum(r.reasoning_tokens for r in records) / len(records),
            output_tokens=sum(r.output_tokens for r in records) / len(records),
            ttft=ttft,
            itl=itl,
            e2e=e2e,
        )
    return found


def _goodput(records: Sequence[RequestRecord], level: ServiceLevel, per_s: float) -> Goodput:
    judged = [record for record in records if record.status != INTERRUPTED]
    good = sum(level.is_met(record) for record in judged)
    return Goodput(
        requests=good, share=good / len(judged) if judged else 0.0, requests_per_s=good * per_s
    )


def _within(value: float, limit: float | None) -> bool:
    return limit is None or value <= limit
