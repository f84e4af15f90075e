"""Writes files in the layout of the packaged trained weights, from any checkpoint's tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moeray.worker.trained_weights import STORED_ROWS, TOKEN_IDS


def checkpoint_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint folder."""
    shards = sorted(folder.glob("*.safetensors"))
    return {name: tensor for shard in shards for name, tensor in load_file(shard).items()}


def packed(whole: Mapping[str, Tensor], token_ids: Sequence[int]) -> dict[str, Tensor]:
    """The tensors to store: of the vocabulary the rows of ``token_ids``, and one more row, which
    is that of the first id that is not stored.
    """
    ids = torch.tensor(token_ids, dtype=torch.int32)
    vocabulary = len(whole["lm_head.weight"])
    other = next(i for i in range(vocabulary) if i not in set(token_ids))
    stored = {name: tensor for name, tensor in whole.items() if name not in STORED_ROWS}
    for name, rows in STORED_ROWS.items():
        stored[rows] = whole[name][torch.cat((ids.long(), torch.tensor([other])))]
    return {TOKEN_IDS: ids, **stored}


def write_trained(path: Path, whole: Mapping[str, Tensor], token_ids: Sequence[int]) -> Path:
    """A file of trained weights at ``path``; it stores the rows of ``token_ids``, ascending."""
    save_file(packed(whole, token_ids), path)
    return path
