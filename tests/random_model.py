"""A small random checkpoint with the whole vocabulary: its answers are noise that does not end.

For tests of machinery that need answers of a certain length; quick on a CPU.
"""

from pathlib import Path

import torch

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
VERSION = 1
"""Goes up when the shape or what is drawn changes."""


def ensure_random_model(cache_dir: Path) -> Path:
    """The checkpoint's folder under ``cache_dir``, made if it is not there yet."""
    path = cache_dir / f"random-v{VERSION}"
    if not path.exists():
        try:
            make_checkpoint(path, RandomWeights(SHAPE, 0, torch.device("cpu")))
        except CheckpointError:
            # Another process was quicker.
            if not path.exists():
                raise
    return path
