"""Writes a gpt-oss checkpoint in exactly Hugging Face's layout, whatever its weights come from.

Streams: shards are planned first and at most one is held in memory. Everything is written to a
hidden sibling folder and renamed into place at the end, so an interrupted run leaves nothing that
looks like a checkpoint, and of two runs at once one wins whole.
"""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from moeray.vocabulary.harmony_tokens import (
    CALL,
    END_OF_TEXT,
    RETURN,
    SPECIAL_TOKENS,
    START_OF_TEXT,
)
from moeray.vocabulary.o200k import write_tokenizer_json
from moeray.worker.checkpoint_layout import INDEX_FILE, TensorSpec
from moeray.worker.checkpoint_shape import CheckpointShape, config_json, shape_tensors
from moeray.worker.model_config import CheckpointError

SHARD_BYTES = 2_000_000_000

Progress = Callable[[int, int], None]
"""Called with (bytes written, bytes in all) after every shard."""


class Weights(Protocol):
    """Where the tensors of one checkpoint come from."""

    @property
    def shape(self) -> CheckpointShape: ...

    def tensor(self, name: str) -> Tensor:
        """The tensor ``name`` of ``shape_tensors(shape)``, on the CPU in its own dtype."""


def make_checkpoint(
    path: Path,
    weights: Weights,
    *,
    card: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = lambda done, total: None,
    write_tokenizer: Callable[[Path], None] = write_tokenizer_json,
) -> Path:
    """Makes the checkpoint folder ``path`` and returns it; ``card`` is copied there as its model
    card.

    Raises CheckpointError when ``path`` exists and is not an empty folder, or when the disk has too
    little room.
    """
    _refuse_existing(path)
    shape = weights.shape
    tensors = shape_tensors(shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    _refuse_full_disk(path.parent, tensors)
    with _replacing(path) as folder:
        _write_shards(folder, tensors, weights, shard_bytes, progress)
        write_tokenizer(folder / "tokenizer.json")
        if card is not None:
            shutil.copyfile(card, folder / card.name)
        _write_json(folder / "tokenizer_config.json", _tokenizer_config(shape))
        _write_json(folder / "generation_config.json", _generation_config())
        _write_json(folder / "config.json", config_json(shape))
    return path


def fastest_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _refuse_existing(path: Path) -> None:
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise CheckpointError(f"{path}: exists already, expected a new or an empty folder")


def _refuse_full_disk(folder: Path, tensors: dict[str, TensorSpec]) -> None:
    needed = sum(spec.nbytes for spec in tensors.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        room = f"{free / 1e9:.1f} GB free on its disk"
        raise CheckpointError(f"{folder}: {room}, expected {needed / 1e9:.1f} GB or more")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A new folder beside ``path`` that becomes ``path`` when all went well, and else vanishes."""
    folder = path.parent / f".{path.name}.{uuid.uuid4().hex}.partial"
    folder.mkdir()
    try:
        yield folder
        os.rename(folder, path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise CheckpointError(f"{path}: was made by another process meanwhile") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_shards(
    folder: Path,
    tensors: dict[str, TensorSpec],
    weights: Weights,
    shard_bytes: int,
    progress: Progress,
) -> None:
    shards = _planned_shards(tensors, shard_bytes)
    total = sum(spec.nbytes for spec in tensors.values())
    weight_map: dict[str, str] = {}
    done = 0
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        held = {name: weights.tensor(name) for name in shard}
        save_file(held, folder / file, metadata={"format": "pt"})
        # safetensors writes files that only their owner may read.
        (folder / file).chmod(0o644)
        weight_map |= dict.fromkeys(shard, file)
        done += sum(tensors[name].nbytes for name in shard)
        progress(done, total)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / INDEX_FILE, index)


def _planned_shards(tensors: dict[str, TensorSpec], shard_bytes: int) -> list[list[str]]:
    """Tensor names in order, each shard at most ``shard_bytes`` or one tensor."""
    shards: list[list[str]] = []
    room = 0
    for name, spec in tensors.items():
        if not shards or spec.nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= spec.nbytes
    return shards


def _tokenizer_config(shape: CheckpointShape) -> dict[str, Any]:
    names = {token: name for name, token in SPECIAL_TOKENS.items()}
    return {
        "bos_token": names[START_OF_TEXT],
        "clean_up_tokenization_spaces": False,
        "eos_token": names[RETURN],
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": shape.context_length,
        "pad_token": names[END_OF_TEXT],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _generation_config() -> dict[str, Any]:
    return {
        "bos_token_id": START_OF_TEXT,
        "do_sample": True,
        "eos_token_id": [RETURN, END_OF_TEXT, CALL],
        "pad_token_id": END_OF_TEXT,
    }


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
