"""Names for KV blocks by what they hold: equal hashes, equal tokens from the prompt's start on.

Gateways hash prompts to be placed where they are cached, engines hash what they cache, and the
router compares. A hash covers all tokens up to the end of its block, and the salt that keeps caches
apart, so one hash stands for a whole prefix.
"""

import sys
from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

HASH_BYTES: Final = 16
"""Two prefixes of one hash would share KV: 128 bits make that hopeless to find."""


def root_hash(cache_salt: str = "") -> bytes:
    """What the first block's hash goes on from."""
    return blake2b(b"moeray" + cache_salt.encode(), digest_size=HASH_BYTES).digest()


def next_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The hash of the block with these tokens behind the block, or root, of hash ``parent``."""
    ids = array("I", tokens)
    if sys.byteorder == "big":
        ids.byteswap()
    return blake2b(parent + ids.tobytes(), digest_size=HASH_BYTES).digest()


def block_hashes(tokens: Sequence[int], block_tokens: int, cache_salt: str = "") -> list[bytes]:
    """The hashes of the whole blocks of ``tokens``; what is left behind the last has none."""
    hashes, parent = [], root_hash(cache_salt)
    for start in range(0, len(tokens) - block_tokens + 1, block_tokens):
        parent = next_hash(parent, tokens[start : start + block_tokens])
        hashes.append(parent)
    return hashes
