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
_COARSE: Final = 2**16
_FINE_BITS: Final = 36
"""With the 16 coarse bits and one for the middle, what a float64 holds."""
_SLACK: Final = 1 + 1e-5
"""Above what float32 rounds off in comparing weights and coarse uniforms."""
_CACHED_LOGITS: Final = 2**18
"""A CPU works on so many at once, a row of a full vocabulary, so that they stay in its cache."""


class Draws(NamedTuple):
    """How N rows are drawn: tensors [N], None where no row of them asks for it."""

    keys: Tensor
    """int64 [N, 2]: of the coarse and of the fine bits of the rows' uniforms."""
    temperature: Tensor | None
    """float32; above 0."""
    top_k: Tensor | None
    """int64; above 0."""
    top_p: Tensor | None
    """float32; below 1."""
    log_min_p: Tensor | None
    """float32; what (logit - greatest) / temperature must reach."""

    def take(self, rows: slice) -> "Draws":
        return Draws(*(None if values is None else values[rows] for values in self))


def draw(text: Tensor, listed: Tensor, ids: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """One column of each row, and the greatest logit of each: [N] int64 and [N] float32.

    text is float32 [N, T], of the token ids 0 to T - 1, and listed float32 [N, L], of ``ids``; they
    stay as they are. Column c is of text where c < T and of listed from there on. Illegal columns
    are -inf. Rows without a finite greatest logit get a column that means nothing.
    """
    columns = text.shape[1] + listed.shape[1]
    size = len(text) if text.is_cuda else max(1, _CACHED_LOGITS // columns)
    parts = [slice(first, first + size) for first in range(0, len(text), size)]
    drawn = [_draw(text[part], listed[part], ids[part], draws.take(part)) for part in parts]
    column, greatest = (torch.cat(part) for part in zip(*drawn, strict=True))
    return column, greatest


def _draw(text: Tensor, listed: Tensor, ids: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    greatest = listed.amax(1)
    if text.shape[1]:
        greatest = torch.maximum(text.amax(1), greatest)
    values = _shifted(text, listed, greatest[:, None])
    if draws.temperature is not None:
        values.div_(draws.temperature[:, None])
    if draws.top_k is not None or draws.top_p is not None:
        values = torch.where(_kept(values, draws.top_k, draws.top_p), values, -torch.inf)
    if draws.log_min_p is not None:
        values = torch.where(values < draws.log_min_p[:, None], -torch.inf, values)
    return _race(values, text.shape[1], ids, draws.keys), greatest


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


def _race(values: Tensor, text_width: int, ids: Tensor, keys: Tensor) -> Tensor:
    """The column of each row whose token arrives first, the first on ties: [N] int64.

    values is float32 [N, C], the logarithms of the weights. E = -log(1 - x), of a uniform x whose
    high 16 bits all columns get. As E >= x, they bound how early a token can arrive; the low bits
    and the logarithm are left to the few that can arrive before one that is early for sure.
    """
    rows, columns = values.shape
    coarse = _coarse(keys[:, 0], text_width, ids)
    weights = values.exp()
    early = first_greatest(weights / (coarse + 1))
    row = torch.arange(rows, device=values.device)
    bound = _arrivals(values, coarse, text_width, ids, keys, row, early)
    limits = (bound * (_COARSE * _SLACK)).to(torch.float32)[:, None]
    row, column = _nonzero(coarse < weights.mul_(limits))
    arrivals = _arrivals(values, coarse, text_width, ids, keys, row, column)
    first = bound.scatter_reduce(0, row, arrivals, "amin")
    # A row of NaN has no column here.
    column = column.masked_fill(arrivals > first[row], columns - 1)
    return torch.full_like(early, columns - 1).scatter_reduce(0, row, column, "amin")


def _coarse(keys: Tensor, text_width: int, ids: Tensor) -> Tensor:
    """The coarse uniforms, whole numbers from 0 to 2**16 - 1: float32 [N, text_width + L]."""
    coarse = torch.empty((len(keys), text_width + ids.shape[1]), device=keys.device)
    coarse[:, text_width:] = listed_words(keys, ids)
    if text_width:
        coarse[:, :text_width] = text_words(keys, text_width)
    return coarse.add_(_COARSE // 2)


def _arrivals(
    values: Tensor,
    coarse: Tensor,
    text_width: int,
    ids: Tensor,
    keys: Tensor,
    row: Tensor,
    column: Tensor,
) -> Tensor:
    """When the tokens at (row, column) arrive: all three [M], float64."""
    listed = ids[row, (column - text_width).clamp(min=0)]
    bits = splitmix64(keys[row, 1], torch.where(column < text_width, column, listed))
    # The middles of 2**52 equal parts of (0, 1).
    fine = ((bits & (2**_FINE_BITS - 1)).to(torch.float64) + 0.5) * 2.0**-_FINE_BITS
    uniform = (coarse[row, column].to(torch.float64) + fine) / _COARSE
    # Not the logarithm of a uniform: where E is small, as of the first to arrive, that is coarse.
    return uniform.neg_().log1p_().neg_() / values[row, column].to(torch.float64).exp_()


def _nonzero(mask: Tensor) -> tuple[Tensor, Tensor]:
    # On a CPU torch's own takes thirty times as long.
    if mask.is_cuda:
        row, column = torch.nonzero(mask, as_tuple=True)
        return row, column
    place = torch.from_numpy(np.flatnonzero(mask.numpy()))
    return place // mask.shape[1], place % mask.shape[1]


def _kept(values: Tensor, top_k: Tensor | None, top_p: Tensor | None) -> Tensor:
    """Which columns of [N, C] top_k and top_p keep, of equal ones the first: bool [N, C]."""
    columns = values.shape[1]
    ascending = _sorted(values)
    dropped = torch.zeros((len(values), 1), dtype=torch.int64, device=values.device)
    if top_k is not None:
        dropped = (columns - top_k[:, None]).clamp_(min=0)
    if top_p is not None:
        dropped = _below_nucleus(ascending, dropped, top_p[:, None])
    least = ascending.gather(1, dropped)
    not_above = torch.searchsorted(ascending, least, right=True)
    if not bool((torch.searchsorted(ascending, least) < dropped).any()):
        return values >= least
    equal = values == least
    first = equal.cumsum(1, dtype=torch.int32) <= not_above - dropped
    return (values > least) | (equal & first)


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
