"""A file of trained weights is checked, and filled up to a checkpoint that computes the same."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moeray.worker import trained_weights
from moeray.worker.checkpoint import Checkpoint
from moeray.worker.checkpoint_make import make_checkpoint
from moeray.worker.checkpoint_shape import shape_tensors
from moeray.worker.model_config import CheckpointError
from moeray.worker.trained_weights import TrainedWeights
from tests.worker.paged_run import SMALL, PagedRun
from tests.worker.parity import TOLERANCE, error, make_loud, transformers_logits
from tests.worker.trained_file import checkpoint_tensors, write_trained

STORED = (0, 3, 4, 17, 200, 300, 301, 479)
TEXT = (3, 17, 5, 200, 479, 0, 100, 4, 301, 478, 3, 300, 1)
"""Stored and other ids."""


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """All tensors of a checkpoint whose every part moves the logits."""
    return checkpoint_tensors(make_loud(tmp_path_factory.mktemp("loud") / "checkpoint"))


@pytest.fixture
def file(tmp_path: Path, loud: dict[str, Tensor]) -> Path:
    return write_trained(tmp_path / "weights.safetensors", loud, STORED)


def _made(file: Path, folder: Path, card: Path | None = None) -> Path:
    return make_checkpoint(
        folder,
        TrainedWeights.open(file, SMALL),
        card=card,
        write_tokenizer=_empty_tokenizer,
    )


def _empty_tokenizer(path: Path) -> None:
    path.write_text("{}")


def test_unstored_rows_are_all_the_last_one(file: Path, loud: dict[str, Tensor]) -> None:
    weights = TrainedWeights.open(file, SMALL)
    assert weights.token_ids().tolist() == list(STORED)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        whole = weights.tensor(name)
        assert (whole.dtype, whole.shape) == (torch.bfloat16, loud[name].shape)
        for token, row in enumerate(whole):
            # Id 1 is the first that is not stored.
            assert torch.equal(row, loud[name][token if token in STORED else 1])


def test_every_other_tensor_is_as_stored(file: Path, loud: dict[str, Tensor]) -> None:
    weights = TrainedWeights.open(file, SMALL)
    for name in shape_tensors(SMALL):
        if name not in trained_weights.STORED_ROWS:
            assert torch.equal(weights.tensor(name), loud[name])


def test_the_checkpoint_computes_what_transformers_does(file: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    card = tmp_path / "MODEL_CARD.md"
    card.write_text("# A card\n")
    folder = _made(file, tmp_path / "made", card)
    assert Checkpoint.open(folder).config.layers == SMALL.layers
    assert (folder / card.name).read_text() == "# A card\n"
    wanted = transformers_logits(folder, {"text": TEXT})["text"]
    run = PagedRun(folder)
    for token, want in zip(TEXT, wanted, strict=True):
        logits = run.step({"text": [token]})["text"]
        assert error(logits, want) <= TOLERANCE
        others = torch.tensor([t for t in range(SMALL.vocabulary_size) if t not in STORED])
        assert (logits[others] == logits[1]).all()
        assert (want[others] == want[1]).all()


def test_ids_that_are_not_stored_are_one_input(file: Path, tmp_path: Path) -> None:
    run = PagedRun(_made(file, tmp_path / "made"))
    logits = run.step({"a": [3, 1, 4], "b": [3, 478, 4], "c": [3, 0, 4]})
    assert torch.equal(logits["a"], logits["b"])
    assert not torch.allclose(logits["a"], logits["c"])


def _drop(tensors: dict[str, Tensor]) -> None:
    del tensors["model.norm.weight"]


def _drop_ids(tensors: dict[str, Tensor]) -> None:
    del tensors["token_ids"]


def _widen(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.rows"] = tensors["lm_head.rows"].float()


def _widen_ids(tensors: dict[str, Tensor]) -> None:
    tensors["token_ids"] = tensors["token_ids"].long()


def _without_the_shared_row(tensors: dict[str, Tensor]) -> None:
    tensors["embed_tokens.rows"] = tensors["embed_tokens.rows"][:-1].clone()


def _whole_vocabulary(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = torch.zeros(480, 96, dtype=torch.bfloat16)


def _descending(tensors: dict[str, Tensor]) -> None:
    tensors["token_ids"] = tensors["token_ids"].flip(0).contiguous()


def _twice(tensors: dict[str, Tensor]) -> None:
    tensors["token_ids"][1] = 0


def _too_high(tensors: dict[str, Tensor]) -> None:
    tensors["token_ids"][-1] = SMALL.vocabulary_size


def _negative(tensors: dict[str, Tensor]) -> None:
    tensors["token_ids"][0] = -1


def _no_ids(tensors: dict[str, Tensor]) -> None:
    tensors["token_ids"] = torch.zeros(0, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_drop, "tensor model.norm.weight is missing, expected BF16 [96]"),
        (_drop_ids, "tensor token_ids is missing, expected I32"),
        (_widen, "tensor lm_head.rows is F32 [9, 96], expected BF16 [9, 96]"),
        (_widen_ids, "tensor token_ids is I64 [8], expected I32"),
        (_without_the_shared_row, "embed_tokens.rows is BF16 [8, 96], expected BF16 [9, 96]"),
        (_whole_vocabulary, "tensor lm_head.weight is of no use"),
        (_descending, "token_ids do not ascend"),
        (_twice, "token_ids do not ascend"),
        (_too_high, "token_ids reach from 0 to 480, expected 0 to 479"),
        (_negative, "token_ids reach from -1 to 479, expected 0 to 479"),
        (_no_ids, "tensor token_ids is I32 [0], expected I32"),
    ],
)
def test_a_wrong_file_is_named(
    file: Path, change: Callable[[dict[str, Tensor]], None], said: str
) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as refused:
        TrainedWeights.open(file, SMALL)
    assert str(file) in str(refused.value)
    assert said in str(refused.value)


def test_a_truncated_file_is_named(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: truncated"):
        TrainedWeights.open(file, SMALL)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors: file is missing"):
        TrainedWeights.open(tmp_path / "none.safetensors", SMALL)


def test_missing_package_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained_weights, "files", lambda package: tmp_path)
    with pytest.raises(CheckpointError, match=r"tiny/weights\.safetensors of moeray\.worker is mi"):
        TrainedWeights.packaged()
    with pytest.raises(CheckpointError, match=r"tiny/MODEL_CARD\.md of moeray\.worker is missing"):
        trained_weights.packaged_card()
