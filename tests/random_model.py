"""A small random checkpoint with the whole vocabulary: its answers are noise that does not end.

For tests of machinery that need answers of a certain length; quick on a CPU.
"""

from pathlib import Path

import torch
from torch import Tensor

from moeray.vocabulary.harmony_tokens import CALL, END, RETURN
from moeray.worker.checkpoint_make import make_checkpoint
from moeray.worker.checkpoint_shape import CheckpointShape
from moeray.worker.model_config import CheckpointError
from moeray.worker.random_weights import RandomWeights

SHAPE = CheckpointShape(
    layers=4,
    experts=32,
    hidden_size=32,
    intermediate_size=32,
    query_heads=4,
    kv_heads=2,
    head_dim=32,
)
VERSION = 2
"""Goes up when the shape or what is drawn changes."""

ENDS = (END, CALL, RETURN)
"""The tokens that end a body or an answer."""


class EndlessWeights(RandomWeights):
    """Random weights whose answers end where a limit says. With plain ones, one in a few hundred
    of the answers that tests ask for ended by chance before that.

    The residual stream's first value is positive for every token, and only pushes ENDS down.
    """

    def tensor(self, name: str) -> Tensor:
        """The tensor ``name`` on the CPU, in its own dtype."""
        drawn = super().tensor(name)
        if name == "model.embed_tokens.weight":
            drawn[:, 0] = 2.0
        elif name == "lm_head.weight":
            drawn[:, 0] = 0.0
            drawn[ENDS, :] = 0.0
            drawn[ENDS, 0] = -40.0
        return drawn


def ensure_random_model(cache_dir: Path) -> Path:
    """The checkpoint's folder under ``cache_dir``, made if it is not there yet."""
    path = cache_dir / f"random-v{VERSION}"
    if not path.exists():
        try:
            make_checkpoint(path, EndlessWeights(SHAPE, 0, torch.device("cpu")))
        except CheckpointError:
            # Another process was quicker.
            if not path.exists():
                raise
    return path
