"""Token selection in plain torch: what ``token_selection.select_tokens`` is held against.

It computes what it says, with whole sorts and every token's float64 arrival, at any length and on
any device; random numbers are int64 arithmetic that wraps round.
"""

import math
from typing import Final

import torch
from torch import Tensor

_GOLDEN: Final = 0x9E3779B97F4A7C15 - 2**64
_FIRST: Final = (30, 0xBF58476D1CE4E5B9 - 2**64)
_SECOND: Final = (27, 0x94D049BB133111EB - 2**64)
_TOLERANCE: Final = 2.0**-20
_UNITS: Final = 2.0**44


def splitmix64(key: Tensor, index: Tensor) -> Tensor:
    """Output ``index`` of SplitMix64 with the state ``key``, both int64, which broadcast: the 64
    bits as int64 (Steele, Lea, Flood, OOPSLA 2014, with Stafford's variant 13)."""
    bits = key + (index + 1) * _GOLDEN
    for shift, multiplier in (_FIRST, _SECOND):
        bits = (bits ^ _shifted(bits, shift)) * multiplier
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, shift: int) -> Tensor:
    """Shifted to the right, with zeros from the left."""
    return torch.bitwise_and(bits >> shift, 2 ** (64 - shift) - 1)


def exponentials(keys: Tensor, vocabulary: int) -> Tensor:
    """Each token's exponential variable: keys int64 [N, 2] to float64 [N, V].

    ``random_bits.py`` says how the bits of its uniform come about.
    """
    token = torch.arange(vocabulary, device=keys.device)
    four = splitmix64(keys[:, :1], token // 4)
    high = ~(four >> token % 4 * 16) >> 1 & 0x3FFF
    low = splitmix64(keys[:, 1:], token) & 2**36 - 1
    uniform = (high + (low + 0.5) * 2.0**-36) * 2.0**-14
    return -torch.log1p(-uniform)


def select_tokens(
    logits: Tensor,
    keys: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As ``token_selection.select_tokens``; floating tensors may also be float64, with values that
    float32 holds. Values and weights are float32 as there: filters compare them as such."""
    vocabulary = logits.shape[1]
    logits, temperature = logits.float(), temperature.float()
    if mask is not None:
        logits = logits.masked_fill(~_legal(mask, vocabulary), -math.inf)
    greatest = logits.amax(1)
    greedy = temperature == 0
    value = (logits - greatest[:, None]) / temperature.masked_fill(greedy, 1)[:, None]
    # Equal values in the order of their ids.
    ordered, order = value.sort(dim=1, descending=True, stable=True)
    weight = ordered.double().exp().float()
    place = torch.arange(vocabulary, device=logits.device)
    kept = torch.ones_like(value, dtype=torch.bool)
    if top_k is not None:
        limit = torch.where(top_k > 0, top_k, vocabulary)
        kept &= place < limit[:, None]
    if top_p is not None:
        kept &= _nucleus(weight, kept, top_p.double()) | (top_p >= 1)[:, None]
    if min_p is not None:
        share = min_p.float() * (1 - _TOLERANCE)
        kept &= ordered >= share.double().log().float()[:, None]
    arrival = exponentials(keys, vocabulary).gather(1, order) / weight
    arrival = arrival.masked_fill(~kept, math.inf)
    first = arrival.amin(1, keepdim=True)
    drawn = order.masked_fill(arrival > first, vocabulary).amin(1)
    drawn = drawn.masked_fill(drawn == vocabulary, 0)
    return torch.where(greedy, logits.argmax(1), drawn), greatest


def _nucleus(weight: Tensor, kept: Tensor, top_p: Tensor) -> Tensor:
    """Which of the descending weights [N, V] top_p keeps of those that are kept: [N, V]."""
    units = (weight.double() * _UNITS).long().masked_fill(~kept, 0)
    mass = units.cumsum(1)
    needed = ((top_p[:, None] - _TOLERANCE) * mass[:, -1:]).ceil().long()
    nucleus = mass - units < needed
    nucleus[:, 0] = True
    return nucleus


def _legal(mask: Tensor, vocabulary: int) -> Tensor:
    """[N, words] int32 to [N, V] bool."""
    bits = mask[:, :, None] >> torch.arange(32, dtype=torch.int32, device=mask.device) & 1
    return bits.flatten(1)[:, :vocabulary] == 1
