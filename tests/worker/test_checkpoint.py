"""A checkpoint folder is checked whole before a tensor is loaded; errors name file and tensor."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moeray.worker.checkpoint import Checkpoint, CheckpointError
from moeray.worker.checkpoint_layout import INDEX_FILE, SINGLE_FILE
from tests.worker.paged_run import CPU, SMALL, make_small

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
BLOCKS = "model.layers.2.mlp.experts.down_proj_blocks"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small(tmp_path_factory.mktemp("checkpoint") / "pristine")


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


def _shard_of(folder: Path, tensor: str) -> Path:
    return folder / json.loads((folder / INDEX_FILE).read_text())["weight_map"][tensor]


def _refused(folder: Path, *names: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    for name in names:
        assert name in str(caught.value)
    return str(caught.value)


def test_opens_and_reads(pristine: Path) -> None:
    checkpoint = Checkpoint.open(pristine)
    assert checkpoint.config.hidden_size == SMALL.hidden_size
    stored = load_file(_shard_of(pristine, Q_PROJ))[Q_PROJ]
    read = checkpoint.tensor(Q_PROJ, torch.float32, CPU)
    assert read.dtype == torch.float32
    assert torch.equal(read, stored.float())


def test_reads_only_the_rows_asked_for(pristine: Path) -> None:
    checkpoint = Checkpoint.open(pristine)
    stored = load_file(_shard_of(pristine, BLOCKS))[BLOCKS]
    rows = checkpoint.rows(BLOCKS, 4, 12, torch.uint8, CPU)
    assert torch.equal(rows, stored[4:12])
    assert rows.untyped_storage().nbytes() == rows.numel()


def test_opens_a_single_file(folder: Path) -> None:
    tensors = {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}
    for shard in [*folder.glob("*.safetensors"), folder / INDEX_FILE]:
        shard.unlink()
    save_file(tensors, folder / SINGLE_FILE)
    read = Checkpoint.open(folder).tensor(Q_PROJ, torch.bfloat16, CPU)
    assert torch.equal(read, tensors[Q_PROJ])


def test_no_folder(tmp_path: Path) -> None:
    assert "expected a folder" in _refused(tmp_path / "nowhere", "nowhere")


def test_missing_shard(folder: Path) -> None:
    shard = _shard_of(folder, Q_PROJ)
    shard.unlink()
    assert "shard is missing" in _refused(folder, shard.name)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_shard(folder: Path, keep: int) -> None:
    shard = _shard_of(folder, BLOCKS)
    shard.write_bytes(shard.read_bytes()[:keep])
    assert "truncated" in _refused(folder, shard.name)


def test_shard_with_bytes_too_many(folder: Path) -> None:
    shard = _shard_of(folder, BLOCKS)
    shard.write_bytes(shard.read_bytes() + b"x")
    assert "too long" in _refused(folder, shard.name)


@pytest.mark.parametrize(
    "content", [b"<html>" * 100, b"\x02\0\0\0\0\0\0\0[]", b"\x02" + b"\0" * 7 + b"{{"]
)
def test_shard_that_is_no_safetensors(folder: Path, content: bytes) -> None:
    shard = _shard_of(folder, BLOCKS)
    shard.write_bytes(content)
    assert "safetensors" in _refused(folder, shard.name)


def _change(folder: Path, tensor: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    shard = _shard_of(folder, tensor)
    tensors = load_file(shard)
    tensors[tensor] = change(tensors[tensor]).contiguous()
    save_file(tensors, shard)
    return shard


def test_wrong_shape(folder: Path) -> None:
    shard = _change(folder, Q_PROJ, lambda t: t[:, :-32])
    message = _refused(folder, shard.name, Q_PROJ)
    assert message.endswith("is BF16 [96, 64], expected BF16 [96, 96]")


def test_wrong_dtype(folder: Path) -> None:
    shard = _change(folder, Q_PROJ, lambda t: t.float())
    assert "F32" in _refused(folder, shard.name, Q_PROJ)


def test_experts_that_are_not_packed(folder: Path) -> None:
    shard = _change(folder, BLOCKS, lambda t: t.bfloat16())
    assert "expected U8 [16, 96, 2, 16]" in _refused(folder, shard.name, BLOCKS)


def test_tensor_missing_from_its_shard(folder: Path) -> None:
    shard = _shard_of(folder, Q_PROJ)
    tensors = load_file(shard)
    del tensors[Q_PROJ]
    save_file(tensors, shard)
    assert "is missing" in _refused(folder, shard.name, Q_PROJ)


def test_tensor_missing_from_the_index(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    del index["weight_map"][Q_PROJ]
    (folder / INDEX_FILE).write_text(json.dumps(index))
    assert "is missing" in _refused(folder, INDEX_FILE, Q_PROJ)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "model.bin", 3])
def test_index_that_leaves_the_folder(folder: Path, name: object) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    index["weight_map"][Q_PROJ] = name
    (folder / INDEX_FILE).write_text(json.dumps(index))
    assert "expected a .safetensors file of this folder" in _refused(folder, INDEX_FILE, Q_PROJ)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}'])
def test_broken_index(folder: Path, content: str) -> None:
    (folder / INDEX_FILE).write_text(content)
    _refused(folder, INDEX_FILE)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_no_tokenizer(folder: Path, content: str | None) -> None:
    tokenizer = folder / "tokenizer.json"
    if content is None:
        tokenizer.unlink()
    else:
        tokenizer.write_text(content)
    _refused(folder, "tokenizer.json")


def test_other_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["MixtralForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    _refused(folder, "config.json", "MixtralForCausalLM", "GptOssForCausalLM")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights(folder: Path, name: str) -> None:
    for path in [*folder.glob("*.safetensors"), folder / INDEX_FILE]:
        path.unlink()
    (folder / name).write_bytes(b"")
    assert "pickled" in _refused(folder, name)


def test_no_weights(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), folder / INDEX_FILE]:
        path.unlink()
    assert "no weights" in _refused(folder, folder.name)
