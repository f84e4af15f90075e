"""Proofs of the cluster's token: each side's own, and nobody else's."""

import hashlib
import hmac

import pytest

from moeray.vocabulary.cluster_token import (
    engine_proof,
    gateway_proof,
    mint_token,
    new_nonce,
    proofs_equal,
)


def test_proofs_are_as_engine_proto_says() -> None:
    token = bytes(range(32))
    for proof, prefix in ((gateway_proof, "gateway:"), (engine_proof, "engine:")):
        expected = hmac.new(token, (prefix + "n1").encode(), hashlib.sha256).hexdigest()
        assert proof(token, "n1") == expected


def test_a_proof_holds_for_one_token_one_nonce_and_one_side() -> None:
    token, nonce = mint_token(), new_nonce()
    good = gateway_proof(token, nonce)
    assert proofs_equal(good, gateway_proof(token, nonce))
    for other in (
        gateway_proof(mint_token(), nonce),
        gateway_proof(token, new_nonce()),
        engine_proof(token, nonce),
        "",
        good[:-1],
        good.upper(),
        "\u00fc",
        "\ud800",
    ):
        assert not proofs_equal(other, good)


def test_an_empty_token_proves_nothing() -> None:
    with pytest.raises(ValueError, match="empty"):
        gateway_proof(b"", new_nonce())
