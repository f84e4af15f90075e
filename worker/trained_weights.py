"""The packaged weights of the trained tiny model, checked, and filled up to a whole checkpoint.

Of embedding and unembedding only the rows of the tokens that the model was trained on are stored,
and one more row for all the others: an input that is nobody's in particular, and an output whose
logit was trained to be strongly negative. The other tensors are stored as a checkpoint holds them.
Opening needs no torch, only reading tensors does.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final

from safetensors import safe_open

from moeray.worker.checkpoint import read_header
from moeray.worker.checkpoint_layout import TensorSpec
from moeray.worker.checkpoint_shape import CheckpointShape, CheckpointSize, shape_tensors
from moeray.worker.model_config import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

TOKEN_IDS: Final = "token_ids"
"""int32 [V], ascending: the tokens whose rows are stored."""
STORED_ROWS: Final = {
    "model.embed_tokens.weight": "embed_tokens.rows",
    "lm_head.weight": "lm_head.rows",
}
"""The tensor [V + 1, H] that holds the rows of each whole one; the last row is of all other ids."""


def packaged_weights() -> Path:
    """The packaged weights. Raises CheckpointError where they are missing."""
    return _packaged("weights.safetensors")


def packaged_card() -> Path:
    """The packaged model card. Raises CheckpointError where it is missing."""
    return _packaged("MODEL_CARD.md")


def _packaged(name: str) -> Path:
    # Name by name: a path of two is not looked up in every folder of a namespace package.
    path = Path(str(files("moeray.worker").joinpath("tiny").joinpath(name)))
    if not path.is_file():
        raise CheckpointError(
            f"{path}: package data tiny/{name} of moeray.worker is missing: reinstall moeray"
        )
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedWeights:
    """A checked file of trained weights. Tensors are read when asked for; nothing is kept."""

    path: Path
    shape: CheckpointShape

    @classmethod
    def packaged(cls) -> "TrainedWeights":
        """The model that ships with Moeray. Raises CheckpointError."""
        return cls.open(packaged_weights(), CheckpointSize.TINY.shape)

    @classmethod
    def open(cls, path: Path, shape: CheckpointShape) -> "TrainedWeights":
        """Checks which tensors ``path`` holds for a model of ``shape``, and its token ids.

        Raises CheckpointError: which file, which tensor, what was expected.
        """
        if not path.is_file():
            raise CheckpointError(f"{path}: file is missing, expected trained weights")
        header = read_header(path)
        expected = stored_tensors(shape, _stored_tokens(path, header))
        for name, spec in expected.items():
            found = header.get(name)
            if found != spec:
                state = "is missing" if found is None else f"is {found}"
                raise CheckpointError(f"{path}: tensor {name} {state}, expected {spec}")
        unknown = sorted(header.keys() - expected.keys())
        if unknown:
            raise CheckpointError(f"{path}: tensor {unknown[0]} is of no use, expected none such")
        opened = cls(path=path, shape=shape)
        opened._check_token_ids()
        return opened

    def token_ids(self) -> "Tensor":
        """int64 [V], ascending: the tokens whose rows are stored."""
        return self._read(TOKEN_IDS).long()

    def tensor(self, name: str) -> "Tensor":
        """The tensor ``name`` of the whole checkpoint, on the CPU in its own dtype."""
        if name not in STORED_ROWS:
            return self._read(name)
        rows = self._read(STORED_ROWS[name])
        whole = rows[-1].repeat(self.shape.vocabulary_size, 1)
        whole[self.token_ids()] = rows[:-1]
        return whole

    def _read(self, name: str) -> "Tensor":
        with safe_open(self.path, framework="pt") as file:
            # A copy: what safetensors loads is a view that keeps the file mapped.
            tensor: Tensor = file.get_tensor(name).clone()
        return tensor

    def _check_token_ids(self) -> None:
        ids = self.token_ids()
        if not (ids[1:] > ids[:-1]).all():
            raise CheckpointError(f"{self.path}: {TOKEN_IDS} do not ascend, expected each id once")
        first, last = int(ids[0]), int(ids[-1])
        if first < 0 or last >= self.shape.vocabulary_size:
            raise CheckpointError(
                f"{self.path}: {TOKEN_IDS} reach from {first} to {last},"
                f" expected 0 to {self.shape.vocabulary_size - 1}"
            )


def stored_tensors(shape: CheckpointShape, tokens: int) -> dict[str, TensorSpec]:
    """Every tensor of a file of trained weights that stores the rows of so many ``tokens``."""
    tensors = {TOKEN_IDS: TensorSpec((tokens,), "I32")}
    for name, spec in shape_tensors(shape).items():
        if name in STORED_ROWS:
            tensors[STORED_ROWS[name]] = TensorSpec((tokens + 1, shape.hidden_size))
        else:
            tensors[name] = spec
    return tensors


def _stored_tokens(path: Path, header: dict[str, TensorSpec]) -> int:
    found = header.get(TOKEN_IDS)
    if found is None or found.dtype != "I32" or len(found.shape) != 1 or not found.shape[0]:
        state = "is missing" if found is None else f"is {found}"
        raise CheckpointError(
            f"{path}: tensor {TOKEN_IDS} {state}, expected I32 of one dimension, not empty"
        )
    return found.shape[0]
