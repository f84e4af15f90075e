"""Which problems are for training and which are held out.

A problem's own content decides, by hash: whatever seed, task mix or wording draws it, it is always
on the same side. So the two sets are disjoint by construction, and stay so when training goes on.
"""

import hashlib
from enum import Enum
from typing import Final

_HELD_OUT_ONE_IN: Final = 16


class Split(Enum):
    TRAIN = "train"
    HELD_OUT = "held out"


def split_of(task: str, key: str) -> Split:
    """The side of the problem ``key`` of ``task``; one problem in 16 is held out."""
    digest = hashlib.blake2b(f"{task}\0{key}".encode(), digest_size=8).digest()
    held_out = int.from_bytes(digest, "big") % _HELD_OUT_ONE_IN == 0
    return Split.HELD_OUT if held_out else Split.TRAIN
