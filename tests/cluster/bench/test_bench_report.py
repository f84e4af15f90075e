"""What `moeray bench` prints and writes: complete JSON, and a page that stands alone."""

import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from moeray.cluster.bench.html import page
from moeray.cluster.bench.record import INTERRUPTED, RequestRecord
from moeray.cluster.bench.report import SCHEMA, BenchReport, print_report
from moeray.cluster.bench.run import ClientHealth

from .bench_samples import record, report

HOSTILE = "<script>alert(1)</script>&\"'\x1b[31m $x^2$"


def printed(shown: BenchReport) -> str:
    out = io.StringIO()
    print_report(shown, Console(file=out, width=100))
    return out.getvalue()


def some_records() -> list[RequestRecord]:
    return [record(index=i, effort=effort) for i, effort in enumerate(("low", "low", "high"))]


class Page(HTMLParser):
    """Checks that elements nest, and gathers what a browser would act on."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_json_holds_everything() -> None:
    shown = report(*some_records())
    written = json.loads(shown.to_json())
    assert written["schema"] == SCHEMA == "moeray.bench/1"
    assert set(written) == {
        "schema", "definitions", "warnings", "settings", "environment", "interrupted", "client",
        "summary", "records",
    }  # fmt: skip
    assert written["records"][2]["event_times_s"] == [1.5, 1.6, 1.8]
    assert written["records"][2]["effort"] == "high"
    assert written["summary"]["ttft"]["p99"] == 0.5
    assert written["summary"]["goodput"]["share"] == 1.0


def test_tables_name_the_figures() -> None:
    text = printed(report(*some_records()))
    for part in ("3 completed", "goodput (ttft=1s)", "TTFT", "500.0", "25.0%", "high", "p99"):
        assert part in text
    assert "Interrupted" not in text


def test_an_interrupted_run_says_so() -> None:
    records = [*some_records(), record(index=3, status=INTERRUPTED)]
    shown = report(*records, interrupted=True)
    assert "Interrupted" in printed(shown)
    assert "1 running requests were cancelled" in page(shown)
    assert json.loads(shown.to_json())["interrupted"] is True


def test_a_client_that_fell_behind_says_so() -> None:
    late = report(*(record(started_s=1.3) for _ in range(3)))
    assert any("fell behind" in warning for warning in late.warnings)
    busy = ClientHealth(cpu_share=0.97, max_loop_lag_s=0.0, peak_running=1)
    assert any("97% of a core" in warning for warning in report(record(), client=busy).warnings)
    assert report(record()).warnings == []


def test_prompts_of_another_length_are_reported() -> None:
    short = report(record(planned_prompt_tokens=20))
    assert any("not the 20 asked for" in warning for warning in short.warnings)


def test_errors_are_shown_without_their_escape_sequences() -> None:
    text = printed(report(record(), record(status="INTERNAL", error=HOSTILE)))
    assert "1 requests failed with INTERNAL" in text
    assert "\x1b" not in text


def test_the_page_stands_alone() -> None:
    html = page(report(*some_records()))
    parsed = Page(html)
    assert {"svg", "table", "style"} <= parsed.tags
    assert not parsed.tags & {"script", "link", "img", "iframe", "object"}
    assert all(link.startswith("#") for link in parsed.links)
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "width=device-width" in html
    assert "prefers-color-scheme: dark" in html
    assert html.count("<svg") == 4


def test_ids_of_the_plots_are_their_own() -> None:
    parsed = Page(page(report(*some_records())))
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {link.removeprefix("#") for link in parsed.links} <= set(parsed.ids)


def test_plots_take_the_pages_colours() -> None:
    html = page(report(*some_records()))
    assert "currentColor" in html
    assert "#010203" not in html
    assert "time to first token, ms" in html


def test_what_others_wrote_is_escaped() -> None:
    shown = report(
        record(),
        record(status="INTERNAL", error=HOSTILE),
        settings={"target": HOSTILE, "slo": HOSTILE},
        environment={
            "started_at": HOSTILE,
            "server": {"models": [{"name": HOSTILE}]},
            "calibration": {"overhead": 70.0},
        },
    )
    html = page(shown)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    Page(html)


@pytest.mark.parametrize("records", [[], [record(status="UNAVAILABLE", error="x")]])
def test_a_run_without_answers_has_a_page_too(records: list[RequestRecord]) -> None:
    shown = report(*records)
    Page(page(shown))
    assert "TTFT" in printed(shown)
