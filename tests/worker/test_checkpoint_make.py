"""Made checkpoints: Hugging Face's layout, whole or not at all, the same for the same seed."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from moeray.vocabulary.o200k import ranks_from_tokenizer_json
from moeray.worker import checkpoint_make
from moeray.worker.checkpoint import Checkpoint, CheckpointError
from moeray.worker.checkpoint_layout import INDEX_FILE, TensorSpec, expected_tensors
from moeray.worker.checkpoint_make import make_checkpoint
from moeray.worker.checkpoint_shape import CheckpointSize, config_json
from moeray.worker.model_config import ModelConfig
from moeray.worker.random_weights import RandomWeights
from tests.worker.paged_run import CPU, SMALL, make_small

RANDOM = RandomWeights(SMALL, 0, CPU)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


def test_layout(tmp_path: Path) -> None:
    folder = make_small(tmp_path / "made", shard_bytes=150_000)
    shards = sorted(folder.glob("*.safetensors"))
    count = len(shards)
    assert count > 2
    assert [s.name for s in shards] == [
        f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)
    ]
    with safe_open(shards[0], framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    index = json.loads((folder / INDEX_FILE).read_text())
    tensors = _tensors(folder)
    assert set(index["weight_map"]) == set(tensors)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    for shard in shards:
        # The limit may be passed by one tensor alone, here a vocabulary.
        assert shard.stat().st_size < 150_000 + 4000 or len(load_file(shard)) == 1
    Checkpoint.open(folder)
    assert {p.name for p in folder.iterdir()} == {
        *(s.name for s in shards),
        INDEX_FILE,
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize(
    ("size", "gib", "parameters"),
    [(CheckpointSize.GPT_OSS_20B, 12.8, 20.9e9), (CheckpointSize.GPT_OSS_120B, 60.8, 116.8e9)],
)
def test_published_sizes(size: CheckpointSize, gib: float, parameters: float) -> None:
    config = ModelConfig.parse(config_json(size.shape), Path("config.json"))
    tensors = expected_tensors(config)
    assert sum(s.nbytes for s in tensors.values()) / 2**30 == pytest.approx(gib, abs=0.05)
    count = sum(_parameters(name, spec) for name, spec in tensors.items())
    assert count == pytest.approx(parameters, rel=0.003)


def test_the_tokenizer_is_the_whole_vocabulary(random_model: Path) -> None:
    assert len(ranks_from_tokenizer_json(random_model / "tokenizer.json").splitlines()) == 199998


def _parameters(name: str, spec: TensorSpec) -> int:
    if name.endswith("scales"):
        return 0
    return spec.nbytes * 2 if name.endswith("blocks") else spec.nbytes // 2


def test_seed_decides(tmp_path: Path) -> None:
    def made(name: str, seed: int) -> dict[str, torch.Tensor]:
        weights = RandomWeights(SMALL, seed, CPU)
        folder = make_checkpoint(tmp_path / name, weights, write_tokenizer=Path.touch)
        return _tensors(folder)

    first, same, other = made("a", 1), made("b", 1), made("c", 2)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert not torch.equal(first["lm_head.weight"], first["model.embed_tokens.weight"])


def test_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_checkpoint(tmp_path / "made", RANDOM, write_tokenizer=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_killed_run_leaves_nothing_that_looks_like_a_checkpoint(tmp_path: Path) -> None:
    seen: list[Path] = []

    def look(path: Path) -> None:
        seen.extend(p for p in tmp_path.iterdir())
        with pytest.raises(CheckpointError, match=r"config\.json"):
            Checkpoint.open(path.parent)
        path.write_text("{}")

    make_checkpoint(tmp_path / "made", RANDOM, write_tokenizer=look)
    assert [p.name[0] for p in seen] == ["."]
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_takes_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    Checkpoint.open(make_small(tmp_path / "made"))


@pytest.mark.parametrize("content", ["folder", "file", "dangling link"])
def test_refuses_what_is_there(tmp_path: Path, content: str) -> None:
    path = tmp_path / "made"
    if content == "folder":
        path.mkdir()
        (path / "mine.txt").write_text("keep")
    elif content == "file":
        path.write_text("keep")
    else:
        os.symlink("nowhere", path)
    with pytest.raises(CheckpointError, match="made: exists already"):
        make_small(path)
    assert len(list(tmp_path.iterdir())) == 1
    assert content != "folder" or (path / "mine.txt").read_text() == "keep"


def test_two_at_once(tmp_path: Path) -> None:
    """Both start before either ends; one wins whole, the other says so."""
    path = tmp_path / "made"

    def make(_: int) -> Path | CheckpointError:
        try:
            return make_small(path)
        except CheckpointError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(make, range(2)))
    assert path in results
    assert all(r == path or "made" in str(r) for r in results)
    Checkpoint.open(path)
    assert list(tmp_path.iterdir()) == [path]


def test_late_loser_does_not_touch_the_winner(tmp_path: Path) -> None:
    path = tmp_path / "made"
    with pytest.raises(CheckpointError, match="meanwhile"):
        make_checkpoint(
            path,
            RANDOM,
            write_tokenizer=lambda file: (make_small(path), file.touch())[1],
        )
    Checkpoint.open(path)
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(checkpoint_make.shutil, "disk_usage", lambda path: Usage())
    with pytest.raises(CheckpointError, match="free on its disk"):
        make_small(tmp_path / "made")
    assert list(tmp_path.iterdir()) == []
