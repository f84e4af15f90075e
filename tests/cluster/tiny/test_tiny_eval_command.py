"""``moeray eval tiny``: its flags, its exit statuses, and what it prints and writes."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from moeray.cluster.cli import app
from moeray.cluster.client import Client
from moeray.cluster.tiny.eval_progress import display, seconds_left
from moeray.cluster.tiny.eval_run import EvalRun, Plan
from moeray.cluster.tiny.problem import Problem
from moeray.cluster.tiny.problems import problems
from moeray.cluster.tiny.splits import Split
from tests.cluster.started_cluster import replace_cluster

from .fake_inference import FakeInference, serving
from .problem_samples import mixed


def held_out(count: int, seed: int = 0) -> list[Problem]:
    return list(islice(problems(Split.HELD_OUT, seed), count))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["eval", "tiny", *arguments])


@pytest.fixture
def service() -> Iterator[FakeInference]:
    yield FakeInference(held_out(12))


def test_a_server_that_knows_everything_is_right_everywhere(
    service: FakeInference, tmp_path: Path
) -> None:
    path = tmp_path / "eval.json"
    with serving(service) as target:
        result = run("--target", target, "--problems", "12", "--json", str(path))
    assert result.exit_code == 0, result.output
    assert "What is asked of the embedded model" in result.stdout
    assert "this rests on: 12;" in result.stdout
    document = json.loads(path.read_text())
    assert {each["accuracy"] for each in document["efforts"].values()} == {1.0}
    assert document["failures"] == []
    assert document["settings"] == {
        "target": target,
        "ranks": None,
        "problems": 12,
        "seed": 0,
        "concurrency": 32,
    }
    assert document["environment"]["server"] == {"moeray": "9.9", "model": "fake"}


def test_without_a_target_it_starts_a_cluster_of_its_own(
    service: FakeInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(service) as target:
        asked = replace_cluster(monkeypatch, target, embedded=True)
        result = run("--problems", "2")
        more = run("--problems", "2", "--ranks", "4")
    assert (result.exit_code, more.exit_code) == (0, 0), result.output
    assert [settings.ranks for settings in asked] == [1, 4]
    assert [settings.port for settings in asked] == [0, 0]
    # The tables come before the end of the cluster, and progress is no part of them.
    assert "draining" in result.stderr and "draining" not in result.stdout
    assert result.output.index("this rests on: 2;") < result.output.index("draining")


def test_another_seed_asks_other_problems(service: FakeInference) -> None:
    with serving(service) as target:
        result = run("--target", target, "--problems", "12", "--seed", "1", "--concurrency", "2")
    # Held-out problems of another seed are not among those that this server knows.
    assert result.exit_code == 0, result.output
    assert service.peak <= 2
    asked = {tuple(m.content for m in request.messages) for request in service.requests}
    known = {tuple(m.content for m in problem.messages) for problem in service.problems}
    assert len(asked - known) >= 11


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--problems", "0"), "--problems"),
        (("--seed", "-1"), "--seed"),
        (("--concurrency", "0"), "--concurrency"),
        (("--target", "127.0.0.1:1", "--ranks", "2"), "--ranks"),
        (("--json", "/nowhere/at/all.json"), "--json"),
        (("--json", "/tmp"), "--json"),
        (("--efort", "low"), "--efort"),
    ],
)
def test_wrong_flags_are_named(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_ranks_that_cannot_be_are_refused_before_anything_starts() -> None:
    result = run("--ranks", "3")
    assert result.exit_code == 1
    assert "ranks" in result.stderr


def test_nobody_listens(tmp_path: Path) -> None:
    result = run("--target", "127.0.0.1:1", "--json", str(tmp_path / "out.json"))
    assert result.exit_code == 1
    assert "is `moeray serve` running at 127.0.0.1:1?" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_server_that_answers_nothing_is_told_at_once(service: FakeInference) -> None:
    service.refuse = "model: 2 models are served"
    with serving(service) as target:
        result = run("--target", target)
    assert result.exit_code == 1
    assert "2 models are served" in result.stderr
    assert len(service.requests) == 1


def test_a_server_that_fails_on_the_way_ends_the_run_with_what_there_is(
    service: FakeInference, tmp_path: Path
) -> None:
    def probe_only(problem: Problem, request: object, answer: object) -> None:
        service.refuse = "broken"

    service.fault = probe_only
    path = tmp_path / "out.json"
    with serving(service) as target:
        result = run(
            "--target", target, "--problems", "30", "--concurrency", "1", "--json", str(path)
        )
    assert result.exit_code == 1
    assert "requests in a row failed, the last: INVALID_ARGUMENT: broken" in result.stderr
    assert "Partial: " in result.stdout
    assert json.loads(path.read_text())["failures"]


def test_ctrl_c_prints_what_there_is(service: FakeInference, tmp_path: Path) -> None:
    def hold(problem: Problem, request: object, answer: object) -> None:
        if len(service.requests) > 8:
            service.gate.clear()
            os.kill(process.pid, signal.SIGINT)

    service.fault = hold
    path = tmp_path / "out.json"
    program = "from moeray.cluster.cli import main; main()"
    with serving(service) as target:
        flags = ["--target", target, "--problems", "12", "--concurrency", "1", "--json", str(path)]
        process = subprocess.Popen(
            [sys.executable, "-c", program, "eval", "tiny", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.endswith("moeray: interrupted: the figures are partial\n")
    assert "Partial: " in out and "of 36 answers, then: interrupted." in out
    assert json.loads(path.read_text())["ended_early"] == "interrupted"


def finished_run(service: FakeInference) -> EvalRun:
    with serving(service) as target, Client(target) as client:
        made = EvalRun(client, Plan(problems=service.problems, seed=0, concurrency=4))
        made.run(lambda run: None)
    return made


def test_progress_shows_answers_accuracy_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = finished_run(FakeInference(mixed(4)))
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)
    with display(console, made.plan.trials) as show:
        show(made)
    assert "12/12 answers, 100.0% right" in out.getvalue()
    assert "0:00:00" in out.getvalue()

    now_s = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    lines = io.StringIO()
    with display(Console(file=lines), made.plan.trials) as show:
        made.trials[6:] = []
        made.correct = 6
        for now_s[0] in (1.0, 6.0, 7.0, 12.0):
            show(made)
    assert lines.getvalue().splitlines() == [
        "     6 s  6/12 answers, 100.0% right, 6 s left",
        "    12 s  6/12 answers, 100.0% right, 12 s left",
    ]
    assert seconds_left(5.0, 0, 12) is None
