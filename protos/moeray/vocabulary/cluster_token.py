"""How gateways and engines prove to each other that they know the cluster's token.

The token itself never travels. The caller draws a nonce and sends it with
HMAC-SHA256(token, "gateway:" + nonce); the engine answers with HMAC-SHA256(token,
"engine:" + nonce). The prefixes keep one side's proof from being sent back as the other's. This
authenticates the peers, not the bytes after: the links of one cluster run in its own network.
"""

import hashlib
import hmac
import secrets
from typing import Final

NONCE_METADATA: Final = "moeray-nonce"
PROOF_METADATA: Final = "moeray-proof"


def mint_token() -> bytes:
    """A new cluster token: 32 random bytes."""
    return secrets.token_bytes(32)


def new_nonce() -> str:
    """A nonce for one connection: 64 hex digits."""
    return secrets.token_hex(32)


def gateway_proof(token: bytes, nonce: str) -> str:
    """What the caller sends as ``moeray-proof``, in hex."""
    return _proof(token, "gateway:" + nonce)


def engine_proof(token: bytes, nonce: str) -> str:
    """What the engine answers as ``moeray-proof``, in hex."""
    return _proof(token, "engine:" + nonce)


def proofs_equal(given: str, expected: str) -> bool:
    """Compares in constant time; ``given`` may be anything the peer sent."""
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode())


def _proof(token: bytes, text: str) -> str:
    if not token:
        raise ValueError("the cluster token is empty")
    return hmac.new(token, text.encode(errors="replace"), hashlib.sha256).hexdigest()
