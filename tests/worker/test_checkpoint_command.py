"""``moeray checkpoint make`` as a user runs it, and the embedded checkpoint: its default size."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

from moeray.vocabulary.o200k import ranks_from_tokenizer_json
from moeray.worker import checkpoint_command, checkpoint_make
from moeray.worker.checkpoint import Checkpoint
from moeray.worker.checkpoint_command import app
from moeray.worker.checkpoint_make import make_checkpoint
from moeray.worker.checkpoint_shape import CheckpointShape, CheckpointSize
from moeray.worker.embedded import ensure_embedded
from moeray.worker.routing import LayerRouting, Routing
from tests.worker.paged_run import SMALL


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> CheckpointShape:
    """Every named size is small, and the tokenizer, which takes seconds, is left empty."""
    monkeypatch.setattr(CheckpointSize, "shape", property(lambda size: SMALL))
    _leave_tokenizer_empty(checkpoint_command, monkeypatch)
    return SMALL


def _leave_tokenizer_empty(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = partial(make_checkpoint, write_tokenizer=lambda path: path.write_text("{}"))
    monkeypatch.setattr(module, "make_checkpoint", quick)


def _run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["make", *args])
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="draws on the GPU")
def test_tiny_is_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = _run(str(tmp_path / "made"))
    assert code == 0, output
    assert "Lowest share: 1.000" in output
    assert "After 64 greedy steps" in output
    made = Checkpoint.open(tmp_path / "made")
    assert made.config.vocabulary_size == 201088
    assert len(ranks_from_tokenizer_json(made.folder / "tokenizer.json").splitlines()) == 199998
    _leave_tokenizer_empty(checkpoint_make, monkeypatch)
    embedded = ensure_embedded(tmp_path / "cache")
    assert _weights(embedded) == _weights(made.folder)
    before = (embedded / "config.json").stat()
    assert ensure_embedded(tmp_path / "cache") == embedded
    assert (embedded / "config.json").stat() == before, "made once"


def _weights(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]


def test_refuses_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    code, output = _run(str(tmp_path))
    assert code == 1
    assert "exists already" in output


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures on the GPU")
def test_says_when_routing_is_not_measured(tmp_path: Path, small: CheckpointShape) -> None:
    code, output = _run(str(tmp_path / "made"), "--size", "20b")
    assert code == 0
    assert "Routing was not measured" in output
    assert "needs a GPU" in output


def test_uneven_routing_is_an_error(
    tmp_path: Path, small: CheckpointShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    uneven = Routing(sequences=128, steps=64, expected=32.0, layers=(LayerRouting(32, 28),))
    monkeypatch.setattr(checkpoint_command, "measure_routing", lambda *a, **k: uneven)
    code, output = _run(str(tmp_path / "made"))
    assert code == 1
    assert "0.875" in output
    assert "less even" in output


@pytest.mark.parametrize("args", [["--size", "7b"], ["--seed", "-1"], ["--sise", "tiny"]])
def test_wrong_flags(tmp_path: Path, args: list[str]) -> None:
    code, _ = _run(str(tmp_path / "made"), *args)
    assert code == 2
    assert not (tmp_path / "made").exists()
