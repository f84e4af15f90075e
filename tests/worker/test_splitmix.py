"""SplitMix64 against its reference's outputs, and the bits that tokens get from it."""

import numpy as np
import torch

from moeray.worker.philox import draw_keys
from moeray.worker.splitmix import listed_words, splitmix64, text_words

# What splitmix64.c gives from the state 1234567.
KNOWN = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def keys(seeds: np.ndarray, positions: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(draw_keys(seeds.astype(np.uint64), positions.astype(np.uint64))[:, 0])


def test_known_answers() -> None:
    outputs = splitmix64(torch.tensor([1234567]), torch.arange(5))
    assert outputs.numpy().view(np.uint64).tolist() == KNOWN


def test_keys_and_indices_broadcast_and_stay_as_they_are() -> None:
    states, index = torch.tensor([[1234567], [-1]]), torch.tensor([[4, 0], [0, 4]])
    outputs = splitmix64(states, index).numpy().view(np.uint64)
    assert outputs[0].tolist() == [KNOWN[4], KNOWN[0]]
    assert (states.tolist(), index.tolist()) == ([[1234567], [-1]], [[4, 0], [0, 4]])


def test_a_listed_id_gets_the_bits_that_it_gets_as_text() -> None:
    some = torch.tensor([7, -(2**62), 2**63 - 1])
    ids = torch.tensor([[0, 1, 2, 3], [4, 1_001, 6, 199_997], [9, 9, 8, 199_996]])
    assert torch.equal(listed_words(some, ids), text_words(some, 199_998).gather(1, ids))
    for count in (1, 2, 3, 4, 5):
        assert torch.equal(text_words(some, count), text_words(some, 8)[:, :count])


def test_words_are_uniform() -> None:
    words = text_words(keys(np.arange(20), np.zeros(20)), 100_000).numpy()
    for some in (words >> 8, words & 255):
        counts = np.bincount(some.ravel() % 256, minlength=256)
        expected = words.size / 256
        chi_square = ((counts - expected) ** 2 / expected).sum()
        # The 1e-4 quantiles of chi-square with 255 degrees of freedom.
        assert 175 < chi_square < 345


def test_neighbouring_tokens_positions_and_seeds_are_uncorrelated() -> None:
    ramp, fixed = np.arange(400), np.full(400, 3)
    for some in (keys(ramp, fixed), keys(fixed, ramp)):
        words = text_words(some, 2_000).numpy() / 2**15
        pairs = [(words[1:], words[:-1])]
        pairs += [(words[:, lag:], words[:, :-lag]) for lag in (1, 2, 3, 4, 5)]
        for one, other in pairs:
            # Of uniform numbers in (-1, 1): the mean of products has this standard deviation.
            assert abs((one * other).mean()) < 4.5 / 3 / one.size**0.5
