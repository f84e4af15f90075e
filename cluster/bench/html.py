"""The page of ``moeray bench``: one file with its styles and plots inside, nothing loaded from
anywhere. Every text is escaped; names and errors come from a server that may write anything."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

from moeray.cluster.bench import plots
from moeray.cluster.bench.report import (
    DEFINITIONS,
    PERCENTILES,
    BenchReport,
    effort_table,
    latency_rows,
    run_rows,
)

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2430; --page: #f6f7f9; --card: #fff; --line: #d9dee5;
  --soft: #5c6876; --warn: #fff3d6; --warn-line: #d99a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9f0; --page: #12161c; --card: #1b212a;
  --line: #323b47; --soft: #9aa7b5; --warn: #3a2f12; --warn-line: #c08a10; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.2rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.05rem; margin: 0 0 .6rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); font-size: .9rem; }
.grid { display: grid; gap: 1rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.figures { grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: 1rem; min-width: 0; }
.figure b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.warning { background: var(--warn); border-left: .3rem solid var(--warn-line);
  padding: .6rem .9rem; margin: .6rem 0; border-radius: .3rem; }
.scroll { overflow-x: auto; } svg { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .5rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
.pairs td { text-align: left; } th { color: var(--soft); font-weight: 600; }
"""


def page(report: BenchReport) -> str:
    """The whole page."""
    target = escape(str(report.settings["target"]))
    sections = [
        f"<h1>moeray bench: {target}</h1>",
        f'<p class="soft">{escape(_subtitle(report))}</p>',
        *(f'<p class="warning">{escape(warning)}</p>' for warning in report.warnings),
        f'<div class="grid figures">{"".join(_figures(report))}</div>',
        f'<div class="grid">{"".join(_plots(report))}</div>',
        _card("Latency in ms", _table(("", *PERCENTILES), latency_rows(report.summary))),
        _card("By effort: means; TTFT, ITL and E2E p50 in ms", _table(*effort_table(report))),
        _card("Run", _pairs(run_rows(report))),
        _card("Settings", _pairs(_flat(report.settings))),
        _card("Client and server", _pairs(_flat(report.environment))),
        *(f'<p class="soft">{escape(line)}</p>' for line in DEFINITIONS),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>moeray bench: {target}</title><style>{_STYLE}</style></head>\n"
        f"<body>{chr(10).join(sections)}</body></html>\n"
    )


def _subtitle(report: BenchReport) -> str:
    environment = report.environment
    models = ", ".join(str(model["name"]) for model in environment["server"]["models"])
    return f"{environment['started_at']}, {models}"


def _figures(report: BenchReport) -> Iterable[str]:
    """The few numbers that a reader looks for first."""
    summary = report.summary
    shown = {
        "output tok/s": f"{summary.output_tokens_per_s:,.0f}",
        "requests/s": f"{summary.requests_per_s:.2f}",
        "TTFT p50": _milliseconds(summary.ttft.p50 if summary.ttft else None),
        "TTFT p99": _milliseconds(summary.ttft.p99 if summary.ttft else None),
        "ITL p50": _milliseconds(summary.itl.p50 if summary.itl else None),
        "ITL p99": _milliseconds(summary.itl.p99 if summary.itl else None),
    }
    if summary.goodput is not None:
        shown["goodput"] = f"{summary.goodput.share:.1%}"
    for name, value in shown.items():
        yield f'<div class="card figure"><b>{escape(value)}</b>{escape(name)}</div>'


def _plots(report: BenchReport) -> Iterable[str]:
    completed = [record for record in report.records if record.is_ok]
    yield _card("Time to first token", plots.ttft_curve(completed))
    yield _card("Inter-token latency", plots.inter_token_curve(completed))
    yield _card("Throughput and requests in flight", plots.over_time(report.records))
    yield _card("End-to-end latency by effort", plots.by_effort(completed))


def _card(title: str, body: str) -> str:
    return f'<section class="card"><h2>{escape(title)}</h2>{body}</section>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(_row(row) for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(_row(row) for row in rows)
    return f'<div class="scroll"><table class="pairs">{body}</table></div>'


def _row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested names joined with dots."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", "-" if value is None else str(value)))
    return rows


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:,.1f} ms"
