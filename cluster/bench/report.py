"""The results of ``moeray bench``: everything that is known of a run, as JSON and as tables."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from moeray.cluster.bench.record import RequestRecord
from moeray.cluster.bench.run import ClientHealth
from moeray.cluster.bench.stats import Distribution, Summary
from moeray.cluster.terminal import printable

SCHEMA: Final = "moeray.bench/1"
"""Of the JSON file; the number grows when a field changes its meaning or goes away."""
DEFINITIONS: Final = (
    "TTFT: from the moment a request was due to the first event that holds tokens.",
    "ITL: the time between two events over the tokens of the later one, counted once for each"
    " of these tokens; an event may hold several.",
    "E2E: from the moment a request was due to the end of its stream.",
    "Latencies are those of requests that ended well; percentiles interpolate linearly between"
    " the closest ranks. Rates are over the whole run, its tail included.",
)
PERCENTILES: Final = ("mean", "p50", "p90", "p95", "p99", "max")
START_LAG_LIMIT_S: Final = 0.02
LOOP_LAG_LIMIT_S: Final = 0.1
CPU_LIMIT: Final = 0.9
LENGTH_LIMIT: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    settings: dict[str, Any]
    """As given on the command line, defaults filled in."""
    environment: dict[str, Any]
    """Client, server, calibration."""
    interrupted: bool
    client: ClientHealth
    summary: Summary
    records: list[RequestRecord]

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before believing the figures."""
        found = []
        if self.interrupted:
            found.append(
                "Interrupted: this is what was measured until then;"
                f" {self.summary.interrupted} running requests were cancelled."
            )
        lag = self.summary.start_lag
        if lag is not None and lag.p99 > START_LAG_LIMIT_S:
            found.append(
                "This client fell behind its own schedule: requests were started"
                f" {1e3 * lag.p99:.0f} ms late (p99), at most {1e3 * lag.max:.0f} ms."
            )
        if self.client.cpu_share > CPU_LIMIT or self.client.max_loop_lag_s > LOOP_LAG_LIMIT_S:
            found.append(
                f"This client was busy ({self.client.cpu_share:.0%} of a core, its event loop up to"
                f" {1e3 * self.client.max_loop_lag_s:.0f} ms late): it may have measured itself."
            )
        completed = [record for record in self.records if record.is_ok]
        planned = sum(record.planned_prompt_tokens for record in completed)
        came = sum(record.prompt_tokens for record in completed)
        if abs(came - planned) > LENGTH_LIMIT * planned:
            found.append(
                f"Prompts have {came / len(completed):.0f} tokens on average, not the"
                f" {planned / len(completed):.0f} asked for: the template alone has"
                f" {self.environment['calibration']['overhead']:.0f}."
            )
        for status, count in self.summary.errors.items():
            example = next(r.error for r in self.records if r.status == status)
            found.append(f"{count} requests failed with {status}, such as: {example}")
        return found

    def to_json(self) -> str:
        """Everything, the requests one by one."""
        document = {
            "schema": SCHEMA,
            "definitions": DEFINITIONS,
            "warnings": self.warnings,
            **asdict(self),
        }
        return json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n"


def print_report(report: BenchReport, console: Console) -> None:
    """The tables, and what they mean."""
    parts: list[RenderableType] = [
        _pairs("Run", run_rows(report)),
        _table("Latency in ms", ("", *PERCENTILES), latency_rows(report.summary)),
    ]
    if report.summary.efforts:
        parts.append(_table("By effort: means; TTFT, ITL and E2E p50 in ms", *effort_table(report)))
    parts += [Text(line, style="dim") for line in DEFINITIONS]
    parts += [Text(printable(line), style="bold yellow") for line in report.warnings]
    console.print(Group(*parts))


def run_rows(report: BenchReport) -> list[tuple[str, str]]:
    """Name and value of what is no distribution."""
    summary = report.summary
    rows = [
        ("requests", _requests(summary)),
        ("time", f"{summary.wall_s:.2f} s"),
        ("requests/s", f"{summary.requests_per_s:.2f}"),
        ("output tok/s", f"{summary.output_tokens_per_s:,.1f}"),
        ("total tok/s", f"{summary.total_tokens_per_s:,.1f}"),
        ("output tokens", f"{summary.output_tokens:,}"),
        (
            "prompt tokens",
            f"{summary.prompt_tokens:,}, of these cached: {summary.cached_share:.1%}",
        ),
        ("peak in flight", f"{report.client.peak_running}"),
    ]
    if summary.goodput is not None:
        good = summary.goodput
        rows.append(
            (
                f"goodput ({report.settings['slo']})",
                f"{good.share:.1%}: {good.requests} requests, {good.requests_per_s:.2f}/s",
            )
        )
    return rows


def latency_rows(summary: Summary) -> list[tuple[str, ...]]:
    """TTFT, ITL, E2E in milliseconds."""
    rows = []
    for name, found in (("TTFT", summary.ttft), ("ITL", summary.itl), ("E2E", summary.e2e)):
        values = [_ms(None if found is None else getattr(found, key)) for key in PERCENTILES]
        rows.append((name, *values))
    return rows


def effort_table(report: BenchReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the breakdown by effort."""
    header: tuple[str, ...] = (
        "effort",
        "requests",
        "prompt",
        "reasoning",
        "output",
        "TTFT",
        "ITL",
        "E2E",
    )
    rows: list[tuple[str, ...]] = [
        (
            effort,
            f"{found.requests}",
            f"{found.prompt_tokens:.0f}",
            f"{found.reasoning_tokens:.0f}",
            f"{found.output_tokens:.0f}",
            _p50(found.ttft),
            _p50(found.itl),
            _p50(found.e2e),
        )
        for effort, found in report.summary.efforts.items()
    ]
    return header, rows


def _requests(summary: Summary) -> str:
    others = {"failed": summary.failed, "interrupted": summary.interrupted}
    return ", ".join(
        [f"{summary.completed} completed", *(f"{n} {name}" for name, n in others.items() if n)]
    )


def _p50(found: Distribution | None) -> str:
    return _ms(None if found is None else found.p50)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:,.1f}"


def _pairs(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, show_header=False)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
