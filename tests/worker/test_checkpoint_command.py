"""``moeray checkpoint make`` as a user runs it, and the embedded checkpoint: its default."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

from moeray.worker import checkpoint_command, checkpoint_make, trained_weights
from moeray.worker.checkpoint import Checkpoint
from moeray.worker.checkpoint_command import app
from moeray.worker.checkpoint_make import make_checkpoint
from moeray.worker.checkpoint_shape import CheckpointShape, CheckpointSize, shape_tensors
from moeray.worker.embedded import ensure_embedded
from moeray.worker.random_weights import RandomWeights
from moeray.worker.routing import LayerRouting, Routing, measure_routing
from tests.worker.paged_run import CPU, SMALL
from tests.worker.trained_file import write_trained


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> CheckpointShape:
    """Every named size is small, and what takes seconds is left out: the tokenizer, and most of
    measuring the routing.
    """
    monkeypatch.setattr(CheckpointSize, "shape", property(lambda size: SMALL))
    _leave_tokenizer_empty(checkpoint_command, monkeypatch)
    _measure_briefly(monkeypatch)
    return SMALL


def _measure_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    brief = partial(measure_routing, sequences=32, steps=4)
    monkeypatch.setattr(checkpoint_command, "measure_routing", brief)


def _leave_tokenizer_empty(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = partial(make_checkpoint, write_tokenizer=lambda path: path.write_text("{}"))
    monkeypatch.setattr(module, "make_checkpoint", quick)


def _run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["make", *args])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def packaged(tmp_path: Path, small: CheckpointShape, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of package data: trained weights of the small shape, and a card."""
    folder = tmp_path / "package" / "tiny"
    folder.mkdir(parents=True)
    _write_packaged(folder, seed=1)
    (folder / "MODEL_CARD.md").write_text("# A card\n")
    monkeypatch.setattr(trained_weights, "files", lambda package: folder.parent)
    _leave_tokenizer_empty(checkpoint_make, monkeypatch)
    return folder


def _write_packaged(folder: Path, seed: int) -> None:
    weights = RandomWeights(SMALL, seed, CPU)
    whole = {name: weights.tensor(name) for name in shape_tensors(SMALL)}
    write_trained(folder / "weights.safetensors", whole, range(10, 100))


def test_tiny_is_the_trained_model(tmp_path: Path, packaged: Path) -> None:
    code, output = _run(str(tmp_path / "made"))
    assert code == 0, output
    assert "trained tiny checkpoint" in output
    assert "Distinct experts that 32 sequences hit" in output
    assert "After 8 greedy steps" in output
    assert "bound" not in output
    made = Checkpoint.open(tmp_path / "made")
    head = made.tensor("lm_head.weight", torch.float32, CPU)
    assert (head[:10] == head[100]).all() and not (head[10:100] == head[100]).all(1).any()
    assert (made.folder / "MODEL_CARD.md").read_text() == "# A card\n"


@pytest.mark.parametrize("file", ["weights.safetensors", "MODEL_CARD.md"])
def test_missing_package_data_is_named(tmp_path: Path, packaged: Path, file: str) -> None:
    (packaged / file).unlink()
    code, output = _run(str(tmp_path / "made"))
    assert code == 1
    assert f"package data tiny/{file} of moeray.worker is missing" in output
    assert not (tmp_path / "made").exists()
    assert _run(str(tmp_path / "made"), "--random")[0] == 0


def test_the_trained_model_has_no_seed(tmp_path: Path, packaged: Path) -> None:
    code, output = _run(str(tmp_path / "made"), "--seed", "0")
    assert code == 2
    assert "add --random" in output
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("flags", [["--random"], ["--size", "20b"], ["--size", "20b", "--random"]])
def test_random_weights_are_those_of_the_seed(
    tmp_path: Path, small: CheckpointShape, flags: list[str]
) -> None:
    assert _run(str(tmp_path / "default"), *flags)[0] == 0
    assert _run(str(tmp_path / "zero"), *flags, "--seed", "0")[0] == 0
    assert _run(str(tmp_path / "one"), *flags, "--seed", "1")[0] == 0
    default, zero, one = (_weights(tmp_path / name) for name in ("default", "zero", "one"))
    assert default == zero != one
    assert not (tmp_path / "one" / "MODEL_CARD.md").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures on the GPU")
def test_random_weights_of_the_tiny_shape_route_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _leave_tokenizer_empty(checkpoint_command, monkeypatch)
    _measure_briefly(monkeypatch)
    code, output = _run(str(tmp_path / "made"), "--random")
    assert code == 0, output
    assert "Lowest share: 1.000" in output
    assert "After 4 greedy steps" in output
    config = Checkpoint.open(tmp_path / "made").config
    assert (config.layers, config.experts, config.vocabulary_size) == (6, 16, 201088)


def test_the_embedded_model_is_the_trained_one(tmp_path: Path, packaged: Path) -> None:
    embedded = ensure_embedded(tmp_path / "cache")
    assert _run(str(tmp_path / "made"))[0] == 0
    assert _weights(embedded) == _weights(tmp_path / "made")
    assert (embedded / "MODEL_CARD.md").exists()
    before = (embedded / "config.json").stat()
    assert ensure_embedded(tmp_path / "cache") == embedded
    assert (embedded / "config.json").stat() == before, "made once"


def test_other_package_data_is_another_embedded_model(tmp_path: Path, packaged: Path) -> None:
    first = ensure_embedded(tmp_path / "cache")
    _write_packaged(packaged, seed=2)
    second = ensure_embedded(tmp_path / "cache")
    assert first != second
    assert _weights(first) != _weights(second)


def _weights(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]


def test_refuses_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    code, output = _run(str(tmp_path), "--random")
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
    code, output = _run(str(tmp_path / "made"), "--random")
    assert code == 1
    assert "0.875" in output
    assert "less even" in output


@pytest.mark.parametrize("args", [["--size", "7b"], ["--seed", "-1"], ["--sise", "tiny"]])
def test_wrong_flags(tmp_path: Path, args: list[str]) -> None:
    code, _ = _run(str(tmp_path / "made"), "--random", *args)
    assert code == 2
    assert not (tmp_path / "made").exists()
