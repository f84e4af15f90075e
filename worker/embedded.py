"""The embedded model: a tiny random checkpoint, made once and kept in a cache folder."""

from pathlib import Path

from moeray.worker.checkpoint_shape import CheckpointSize
from moeray.worker.model_config import CheckpointError

FORMAT_VERSION = 1
"""Goes up with every change to what is drawn or how it is laid out."""
SEED = 0


def ensure_embedded(cache_dir: Path) -> Path:
    """The folder of the embedded checkpoint under ``cache_dir``, made if it is not there yet.

    Safe for several at once: the folder appears whole or not at all, and the first one stays.
    """
    path = cache_dir / f"gpt-oss-tiny-v{FORMAT_VERSION}-seed{SEED}"
    if not path.exists():
        # Making needs torch, which takes seconds to import; finding does not.
        import torch

        from moeray.worker.checkpoint_make import make_checkpoint

        try:
            make_checkpoint(path, CheckpointSize.TINY.shape, seed=SEED, device=torch.device("cpu"))
        except CheckpointError:
            if not path.exists():
                raise
    return path
