"""Drawing by an exponential race: from N rows of legal logits to one column each.

Every token of a row has an exponential variable E of its own, which (seed, position, token id)
give. A token of weight ``w = exp((logit - greatest) / temperature)`` arrives at E / w, and the
first to arrive is drawn: with probability w / sum(w) (the Gumbel-max theorem: Yellott, "The
relationship between Luce's Choice Axiom ...", 1977; Maddison, Tarlow, Minka, "A* Sampling",
NIPS 2014).

Why not the inverse CDF: one request's logits differ in their last bits with the batch, the chunks
and the cache it is computed in. A sum over 200,000 tokens turns that into a shift of every later
token's bin, and a draw moves where its uniform lies within the shift of a border. A race has no
sums: a draw moves only where the first two arrive within the rounding of one another, about once
in a million draws. Nor does what a filter drops move a draw, unless it drops the winner.

After the temperature come, in Hugging Face's order, top_k, then top_p over what top_k kept, then
min_p relative to the likeliest column (Nguyen et al., "Turning Up the Heat: Min-p Sampling", 2024).
min_p is the same before and after the others, because they leave ratios as they are; that top_p's
share is of all that top_k kept, whatever min_p drops, is what this order decides. top_p sums
weights as integers in units of 2**-44, which gives one result in any order.
"""

from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from moeray.worker.splitmix import listed_words, splitmix64, text_words

_FRACTION_BITS: Final = 44
MAX_COLUMNS: Final = 2 ** (63 - _FRACTION_BITS) - 1
"""The most weights whose sum an int64 holds."""
TOLERANCE: Final = 2.0**-20
"""top_p, min_p and the weights are float32; what misses a limit by their rounding reaches it."""
_PARTS: Final = 2**14
"""Into so many the high bits of a uniform divide (0, 1)."""
_ODD_AND_NEGATIVE: Final = -0x7FFF
_FINE_BITS: Final = 36
"""With those of the parts, and one for a middle, no more than a float64 holds."""
_BELOW_ONE: Final = 1 - 2.0**-53
"""No uniform is above."""
_SLACK: Final = 1.5 * (1 + 1e-5)
"""h / (h - 1) for h = 3, and more than float32 rounds off."""
_CACHED_LOGITS: Final = 2**18
"""A CPU works on so many at once, a row of a full vocabulary, so that they stay in its cache."""


class Draws(NamedTuple):
    """How N rows are drawn: tensors [N], None where no row of them asks for it."""

    keys: Tensor
    """int64 [N, 2]: of the high and of the low bits of the rows' uniforms."""
    temperature: Tensor | None
    """float32; above 0."""
    top_k: Tensor | None
    """int64; above 0."""
    top_p: Tensor | None
    """float32; below 1."""
    log_min_p: Tensor | None
    """float32; what (logit - greatest) / temperature must reach."""

    def take(self, rows: slice) -> "Draws":
        options = (None if values is None else values[rows] for values in self[1:])
        return Draws(self.keys[rows], *options)


def draw(text: Tensor, listed: Tensor, ids: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """One token of each row, and the greatest logit of each: [N] int64 and [N] float32.

    text is float32 [N, T], of the token ids 0 to T - 1, and listed float32 [N, L], of ``ids``,
    which are T at least; they stay as they are. Illegal tokens are -inf. Rows without a finite
    greatest logit get a token that means nothing.
    """
    size = max(1, _CACHED_LOGITS // (text.shape[1] + listed.shape[1]))
    if text.is_cuda:
        size = len(text)
    greatest, early = [], []
    for first in range(0, len(text), size):
        part = slice(first, first + size)
        some = draws.take(part)
        values, highest = _values(text[part], listed[part], some)
        words = _words(some.keys[:, 0], text.shape[1], ids[part])
        row, *others = _early(values.exp_(), words)
        greatest.append(highest)
        early.append((row + first, *others))
    row, column, weight, word = (torch.cat(values) for values in zip(*early, strict=True))
    behind = column - text.shape[1]
    token = torch.where(behind < 0, column, ids[row, behind.clamp(min=0)])
    return _first(row, token, weight, word, draws.keys[:, 1]), torch.cat(greatest)


def _values(text: Tensor, listed: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """The logarithms of the weights, [N, T + L], -inf where filtered; and each row's greatest."""
    greatest = listed.amax(1)
    if text.shape[1]:
        greatest = torch.maximum(text.amax(1), greatest)
    values = _shifted(text, listed, greatest[:, None])
    if draws.temperature is not None:
        values.div_(draws.temperature[:, None])
    if draws.top_k is not None or draws.top_p is not None:
        _drop_unlikely(values, draws.top_k, draws.top_p)
    if draws.log_min_p is not None:
        _drop_below(values, draws.log_min_p[:, None])
    return values, greatest


def first_greatest(values: Tensor) -> Tensor:
    """The column of each row's greatest value, the first on ties: [N, C] to [N] int64."""
    # Both document that they take the first of equal maxima, and both take NaN for greatest. On a
    # CPU NumPy's takes a twentieth of torch's time.
    return values.argmax(1) if values.is_cuda else torch.from_numpy(values.numpy().argmax(1))


def _shifted(text: Tensor, listed: Tensor, greatest: Tensor) -> Tensor:
    """Both beside one another, each row less its greatest."""
    columns = text.shape[1]
    shifted = listed.new_empty((len(listed), columns + listed.shape[1]))
    torch.sub(text, greatest, out=shifted[:, :columns])
    torch.sub(listed, greatest, out=shifted[:, columns:])
    return shifted


def _words(keys: Tensor, text_width: int, ids: Tensor) -> Tensor:
    """The high bits of each uniform x: float32 [N, text_width + L].

    A word -h, with h odd from 1 to 2**15 - 1, says that x is within (h - 1, h + 1) * 2**-15.
    """
    words = torch.empty((len(keys), text_width + ids.shape[1]), device=keys.device)
    words[:, text_width:] = listed_words(keys, ids).bitwise_or_(_ODD_AND_NEGATIVE)
    if text_width:
        words[:, :text_width] = text_words(keys, text_width).bitwise_or_(_ODD_AND_NEGATIVE)
    return words


def _early(weights: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The few that can be first: their rows, columns, weights and words, each [M].

    weights and words are float32 [N, C]. One column of each row is early for sure; as x <= E, few
    others can be earlier.
    """
    times = words / weights
    sure = first_greatest(times)[:, None]
    high = (1 - words.gather(1, sure).to(torch.float64)) * (_BELOW_ONE / (2 * _PARTS))
    latest = high.neg_().log1p_() / weights.gather(1, sure)
    # E >= (h - 1) * 2**-15, and the 1 is at most a third of h, but where h is 1.
    limit = (latest * (2 * _PARTS * _SLACK)).to(torch.float32)
    if times.is_cuda:
        row, column = torch.nonzero((times >= limit) | (words == -1), as_tuple=True)
        return row, column, weights[row, column], words[row, column]
    # On a CPU torch's comparisons take ten times as long.
    found = np.flatnonzero((times.numpy() >= limit.numpy()) | (words.numpy() == -1))
    place = torch.from_numpy(found)
    row = place // times.shape[1]
    return row, place % times.shape[1], weights.view(-1)[place], words.view(-1)[place]


def _first(row: Tensor, token: Tensor, weight: Tensor, word: Tensor, keys: Tensor) -> Tensor:
    """The token of each row that arrives first, of M: [N] as keys; the lowest id on ties."""
    bits = splitmix64(keys[row], token)
    # The middles of 2**36 equal parts of (0, 1).
    fine = ((bits & (2**_FINE_BITS - 1)).to(torch.float64) + 0.5) * 2.0**-_FINE_BITS
    uniform = ((-1 - word.to(torch.float64)) / 2 + fine) / _PARTS
    # Not the logarithm of a uniform: that is coarse where E is small, as of the first to arrive.
    arrival = uniform.neg_().log1p_().neg_() / weight
    rows = torch.full((len(keys),), torch.inf, dtype=torch.float64, device=keys.device)
    first = rows.scatter_reduce(0, row, arrival, "amin")
    token = token.masked_fill(arrival > first[row], MAX_COLUMNS)
    lowest = torch.full_like(keys, MAX_COLUMNS).scatter_reduce(0, row, token, "amin")
    # A row of NaN may have had no token here.
    return lowest.masked_fill_(lowest == MAX_COLUMNS, 0)


def _drop_unlikely(values: Tensor, top_k: Tensor | None, top_p: Tensor | None) -> None:
    """Makes -inf in place, of [N, C], what top_k and top_p drop: of equal values the last."""
    columns = values.shape[1]
    ascending = _sorted(values)
    dropped = torch.zeros((len(values), 1), dtype=torch.int64, device=values.device)
    if top_k is not None:
        dropped = (columns - top_k[:, None]).clamp_(min=0)
    if top_p is not None:
        dropped = _below_nucleus(ascending, dropped, top_p[:, None])
    least = ascending.gather(1, dropped)
    _drop_below(values, least)
    if bool((torch.searchsorted(ascending, least) < dropped).any()):
        equal = values == least
        kept = torch.searchsorted(ascending, least, right=True) - dropped
        values.masked_fill_(equal & (equal.cumsum(1, dtype=torch.int32) > kept), -torch.inf)


def _drop_below(values: Tensor, least: Tensor) -> None:
    if values.is_cuda:
        values.masked_fill_(values < least, -torch.inf)
    else:
        # On a CPU torch's comparisons take ten times as long.
        own = values.numpy()
        np.putmask(own, own < least.numpy(), -np.inf)


def _below_nucleus(ascending: Tensor, dropped: Tensor, top_p: Tensor) -> Tensor:
    """How many of the ascending columns fall to top_k, which drops ``dropped``, and to top_p."""
    columns = ascending.shape[1]
    weights = ascending.exp().mul_(2.0**_FRACTION_BITS).to(torch.int64)
    weights.masked_fill_(torch.arange(columns, device=weights.device) < dropped, 0)
    mass = weights.cumsum(1)
    total = mass[:, -1:]
    needed = ((top_p.to(torch.float64) - TOLERANCE) * total).ceil().to(torch.int64)
    # The likeliest column stays whatever its share.
    return torch.searchsorted(mass, total - needed, right=True).clamp_(max=columns - 1)


def _sorted(values: Tensor) -> Tensor:
    # NumPy's sort uses vector instructions where torch's on a CPU takes twenty times as long.
    if values.is_cuda:
        return values.sort(1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=1))
