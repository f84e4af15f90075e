"""Records and reports of made-up runs."""

from typing import Any

from moeray.cluster.bench.record import OK, RequestRecord
from moeray.cluster.bench.report import BenchReport
from moeray.cluster.bench.run import ClientHealth
from moeray.cluster.bench.stats import ServiceLevel, summarise


def record(**changes: Any) -> RequestRecord:
    """Due at 1 s, started 0.01 s late, 4 tokens at 1.5 s, 1 at 1.6 s, 2 at 1.8 s, ended at 2 s."""
    fields: dict[str, Any] = {
        "index": 0,
        "effort": "low",
        "planned_prompt_tokens": 100,
        "max_output_tokens": 16,
        "due_s": 1.0,
        "started_s": 1.01,
        "ended_s": 2.0,
        "status": OK,
        "error": "",
        "finish_reason": "length",
        "prompt_tokens": 100,
        "cached_tokens": 25,
        "output_tokens": 7,
        "reasoning_tokens": 3,
        "event_times_s": (1.5, 1.6, 1.8),
        "event_tokens": (4, 1, 2),
    }
    return RequestRecord(**fields | changes)


def report(*records: RequestRecord, **changes: Any) -> BenchReport:
    fields: dict[str, Any] = {
        "settings": {"target": "127.0.0.1:1", "slo": "ttft=1s", "rate": None},
        "environment": {
            "started_at": "2026-01-01T00:00:00+00:00",
            "server": {"moeray": "0.1.0", "models": [{"name": "tiny"}]},
            "calibration": {"overhead": 70.0},
        },
        "interrupted": False,
        "client": ClientHealth(cpu_share=0.1, max_loop_lag_s=0.001, peak_running=3),
        "summary": summarise(records, ServiceLevel(ttft_s=1.0)),
        "records": list(records),
    }
    return BenchReport(**fields | changes)
