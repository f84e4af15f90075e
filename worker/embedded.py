"""The embedded model: the packaged trained weights as a checkpoint, made once in a cache folder."""

import hashlib
from pathlib import Path

from moeray.worker.model_config import CheckpointError
from moeray.worker.trained_weights import TrainedWeights, packaged_card, packaged_weights

FORMAT_VERSION = 2
"""Goes up with every change to how a checkpoint is laid out."""


def ensure_embedded(cache_dir: Path) -> Path:
    """The folder of the embedded checkpoint under ``cache_dir``, made if it is not there yet.

    The folder is named after the packaged weights' content, so what another version left is never
    served. Safe for several at once: the folder appears whole or not at all, and the first one
    stays. Raises CheckpointError where package data is missing or damaged.
    """
    with packaged_weights().open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    path = cache_dir / f"gpt-oss-tiny-v{FORMAT_VERSION}-{digest[:12]}"
    if not path.exists():
        # Making needs torch, which takes seconds to import; finding does not.
        from moeray.worker.checkpoint_make import make_checkpoint

        try:
            make_checkpoint(path, TrainedWeights.packaged(), card=packaged_card())
        except CheckpointError:
            if not path.exists():
                raise
    return path
