"""What the flags of `moeray bench` take, and how they refuse the rest."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moeray.cluster.bench.flags import (
    parse_efforts,
    parse_lengths,
    parse_ramp,
    parse_service_level,
)
from moeray.cluster.bench.load import FixedLength, LognormalLength, Ramp, UniformLength
from moeray.cluster.bench.stats import ServiceLevel
from moeray.cluster.cli import app


def test_lengths() -> None:
    assert parse_lengths("512", 1) == FixedLength(512)
    assert parse_lengths("16:99", 16) == UniformLength(16, 99)
    assert parse_lengths("lognormal:300:0.5", 16) == LognormalLength(300.0, 0.5)


def test_efforts_and_ramps() -> None:
    assert parse_efforts("low=0.5, high=2") == {"low": 0.5, "high": 2.0}
    assert parse_ramp("0:20:60") == Ramp(0.0, 20.0, 60.0)


def test_service_level() -> None:
    assert parse_service_level("ttft=500ms,e2e=10s") == ServiceLevel(ttft_s=0.5, e2e_s=10.0)
    assert parse_service_level("itl=0.05s") == ServiceLevel(itl_s=0.05)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (lambda text: parse_lengths(text, 16), "15"),
        (lambda text: parse_lengths(text, 16), "20:17"),
        (lambda text: parse_lengths(text, 16), "lognormal:8:1"),
        (lambda text: parse_lengths(text, 16), "lognormal:80:0"),
        (lambda text: parse_lengths(text, 1), "normal:1:2"),
        (lambda text: parse_lengths(text, 1), "-3"),
        (lambda text: parse_lengths(text, 1), "1e3"),
        (parse_efforts, "low"),
        (parse_efforts, "extreme=1"),
        (parse_efforts, "low=1,low=2"),
        (parse_efforts, "low=nan"),
        (parse_ramp, "1:2"),
        (parse_ramp, "0:0:5"),
        (parse_ramp, "1:inf:5"),
        (parse_service_level, "ttft=500"),
        (parse_service_level, "latency=5s"),
        (parse_service_level, "ttft=-1s"),
    ],
)
def test_what_is_refused(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("--concurrency", "0"), "--concurrency"),
        (("--rate", "0"), "--rate"),
        (("--rate", "1", "--concurrency", "2"), "--concurrency"),
        (("--rate", "1", "--ramp", "1:2:3"), "--ramp"),
        (("--ramp", "1:2:3", "--duration", "4"), "--duration"),
        (("--ramp", "fast"), "--ramp"),
        (("--duration", "-1"), "--duration"),
        (("--timeout", "0"), "--timeout"),
        (("--requests", "0"), "--requests"),
        (("--prompt-tokens", "many"), "--prompt-tokens"),
        (("--output-tokens", "8"), "--output-tokens"),
        (("--effort", "low=x"), "--effort"),
        (("--prefixes", "3"), "--prefixes"),
        (("--slo", "ttft"), "--slo"),
        (("--json", "/nowhere/at/all.json"), "--json"),
        (("--html", "/"), "--html"),
        (("--temperature", "7"), "--temperature"),
    ],
)
def test_usage_errors_name_the_flag(arguments: tuple[str, ...], flag: str) -> None:
    refused = CliRunner().invoke(app, ["bench", "--target", "127.0.0.1:1", *arguments])
    assert refused.exit_code == 2
    assert flag in refused.stderr


def test_html_without_matplotlib_is_refused_before_any_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moeray.cluster.bench.command.find_spec", lambda name: None)
    page = tmp_path / "page.html"
    refused = CliRunner().invoke(app, ["bench", "--target", "127.0.0.1:1", "--html", str(page)])
    assert refused.exit_code == 1
    assert not page.exists()
