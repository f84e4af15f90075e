"""``moeray drain-node``: which processes it waits for, and what it says where there is no Ray."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from moeray.cluster.cli import app
from moeray.cluster.drain_command import replicas


def test_waits_for_replicas_alone(tmp_path: Path) -> None:
    for pid, title in {
        "7": b"ray::ServeReplica:moeray:Gateway\0\0",
        "8": b"ray::ServeReplica:moeray:Engine.check_health\0",
        "9": b"ray::RankActor.run\0",
        "10": b"/usr/bin/python\0ray::ServeReplica:\0",
    }.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_bytes(title)
    (tmp_path / "11").mkdir()  # a process that is gone
    assert replicas(tmp_path) == ["moeray:Engine.check_health", "moeray:Gateway"]


@pytest.mark.parametrize(
    ("address", "said"), [("", "RAY_ADDRESS is not set"), ("127.0.0.1:1", "nobody listens")]
)
def test_says_that_there_is_no_ray(
    address: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    result = CliRunner().invoke(app, ["drain-node", "--timeout", "1"])
    assert result.exit_code == 1
    assert said in result.output
