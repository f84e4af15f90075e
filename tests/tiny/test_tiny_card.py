"""The card that ships with the embedded model is the card of these weights."""

from moeray.worker.trained_weights import packaged_card
from tests.tiny.card import BEGIN, END, weights_digest


def test_the_card_was_measured_with_these_weights() -> None:
    card = packaged_card().read_text(encoding="utf-8")
    measured = card.split(BEGIN)[1].split(END)[0]
    assert f"`{weights_digest()}`" in measured
    assert "| **all** | 1000 |" in measured
