"""A gpt-oss checkpoint folder in Hugging Face's layout: checked whole, then read.

``Checkpoint.open`` reads headers only and finds everything that is wrong before a tensor is loaded:
a missing or truncated shard, a wrong shape, no tokenizer, another architecture. Pickled weights
(.bin, .pt) are refused: loading them runs code. Checking needs no torch, so that whoever starts an
engine can do it quickly; only reading tensors does.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from moeray.worker.checkpoint_layout import (
    INDEX_FILE,
    SINGLE_FILE,
    TensorSpec,
    expected_tensors,
)
from moeray.worker.model_config import CheckpointError, ModelConfig, read_json_object

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Checkpoint", "CheckpointError"]

_HEADER_LIMIT_BYTES = 100_000_000
"""What the safetensors format allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checked checkpoint. Tensors are read when asked for; nothing is kept."""

    folder: Path
    config: ModelConfig
    files: Mapping[str, Path]
    """The file that holds each tensor."""

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Checks the whole ``folder``. Raises CheckpointError: which file, what was expected."""
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: expected a folder that holds a gpt-oss checkpoint")
        config = ModelConfig.read(folder / "config.json")
        read_json_object(folder / "tokenizer.json", "a tokenizer.json")
        files = _tensor_files(folder)
        headers = {path: read_header(path) for path in sorted(set(files.values()))}
        for name, spec in expected_tensors(config).items():
            _check_tensor(folder, name, spec, files, headers)
        return cls(folder=folder, config=config, files=files)

    def tensor(self, name: str, dtype: "torch.dtype", device: "torch.device") -> "Tensor":
        """The whole tensor ``name``, converted."""
        with safe_open(self.files[name], framework="pt") as file:
            return _copied(file.get_tensor(name), dtype, device)

    def rows(
        self, name: str, first: int, last: int, dtype: "torch.dtype", device: "torch.device"
    ) -> "Tensor":
        """Rows first to last - 1 of the first dimension; the others are not read."""
        with safe_open(self.files[name], framework="pt") as file:
            return _copied(file.get_slice(name)[first:last], dtype, device)


def _copied(loaded: "Tensor", dtype: "torch.dtype", device: "torch.device") -> "Tensor":
    """Always a copy: what safetensors loads is a view that keeps the file mapped."""
    return loaded.to(device, dtype, copy=True).contiguous()


def _tensor_files(folder: Path) -> dict[str, Path]:
    """The file of each tensor, from the index or from the only file."""
    if (folder / INDEX_FILE).exists():
        return _indexed_files(folder)
    single = folder / SINGLE_FILE
    if single.exists():
        return dict.fromkeys(read_header(single), single)
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickled:
        raise CheckpointError(
            f"{folder / pickled[0]}: pickled weights are refused, because loading them runs code;"
            f" expected {INDEX_FILE} or {SINGLE_FILE}"
        )
    raise CheckpointError(f"{folder}: no weights, expected {INDEX_FILE} or {SINGLE_FILE}")


def _indexed_files(folder: Path) -> dict[str, Path]:
    path = folder / INDEX_FILE
    weight_map = read_json_object(path, "an index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{path}: expected an object weight_map that names each tensor's file"
        )
    files = {}
    for tensor, name in weight_map.items():
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or not name.endswith(".safetensors")
        ):
            raise CheckpointError(
                f"{path}: {tensor} is in {name!r}, expected a .safetensors file of this folder"
            )
        files[tensor] = folder / name
    for shard in sorted(set(files.values())):
        if not shard.is_file():
            raise CheckpointError(f"{shard}: shard is missing, expected by {INDEX_FILE}")
    return files


def read_header(path: Path) -> dict[str, TensorSpec]:
    """Shapes and dtypes in a safetensors file whose size is what its header says.

    Format: 8 bytes little-endian header length, a JSON header, the data.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or header_bytes > min(size - 8, _HEADER_LIMIT_BYTES):
            raise CheckpointError(
                f"{path}: truncated or not safetensors: {size} bytes,"
                f" expected a header of {header_bytes} bytes"
            )
        raw = file.read(header_bytes)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        specs = {n: TensorSpec(tuple(e["shape"]), e["dtype"]) for n, e in header.items()}
        end = 8 + header_bytes + max((e["data_offsets"][1] for e in header.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path}: expected a safetensors header ({error!r})") from error
    if size != end:
        state = "truncated" if size < end else "too long"
        raise CheckpointError(f"{path}: {state}: {size} bytes, expected {end}")
    return specs


def _check_tensor(
    folder: Path,
    name: str,
    expected: TensorSpec,
    files: Mapping[str, Path],
    headers: Mapping[Path, Mapping[str, TensorSpec]],
) -> None:
    if name not in files:
        source = INDEX_FILE if (folder / INDEX_FILE).exists() else SINGLE_FILE
        raise CheckpointError(f"{folder / source}: tensor {name} is missing, expected {expected}")
    found = headers[files[name]].get(name)
    if found is None:
        raise CheckpointError(f"{files[name]}: tensor {name} is missing, expected {expected}")
    if found != expected:
        raise CheckpointError(f"{files[name]}: tensor {name} is {found}, expected {expected}")
