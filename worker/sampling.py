"""Sampling: one token for each sampled row of a step, from its logits.

Rules:

- A row's token depends on that row alone. Probabilities are summed as integers, which gives one
  result in any order, so neither the batch nor a device's way to reduce can move a draw.
- An illegal token has weight 0, and a token of weight 0 is never drawn.
- Rows are worked on in groups. Rows in bodies see all text and their listed ids; rows in headers
  gather only their listed ids. Only rows with top_k or top_p look for their likeliest tokens.

A token's weight is ``exp((logit - greatest) / temperature)`` in float32, held as an integer in
units of 2**-44: tokens less likely than that beside the likeliest one are not drawn.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeray.vocabulary.harmony_tokens import FIRST_SPECIAL
from moeray.worker.philox import uniform
from moeray.worker.plan import SampleRows

_FRACTION_BITS: Final = 44
_MAX_VOCABULARY: Final = 2 ** (63 - _FRACTION_BITS) - 1
"""The most weights whose sum an int64 holds."""
_BLOCK: Final = 512
_ROWS_AT_ONCE: Final = 64
"""Bounds the memory of draws in bodies, which take up to 6 MB a row."""
_FIRST_SEARCH: Final = 1024
"""Likeliest tokens sorted at first: most nuclei are smaller, and sorting all of them is slow."""
_SEARCH_GROWTH: Final = 16
_TOP_P_TOLERANCE: Final = 2.0**-20
"""top_p and the weights are float32; a set that misses top_p by their rounding reaches it."""


class _Listed(NamedTuple):
    """The ids that are legal one by one, ascending and once each, without text that is legal as
    such: ids [K, L], of which row k has the first counts[k].
    """

    ids: NDArray[np.int64]
    counts: NDArray[np.int64]


class _Group(NamedTuple):
    """Rows that are treated alike."""

    members: NDArray[np.intp]
    in_body: bool
    greedy: bool
    filtered: bool


class _Candidates(NamedTuple):
    """The legal logits of N rows: columns 0 to text.shape[1] - 1 are those token ids, the columns
    behind are ``listed``, of the ids ``listed_ids``. An unused entry of ``listed`` is -inf.
    """

    text: Tensor
    listed: Tensor
    listed_ids: Tensor


class _Draw(NamedTuple):
    """How N rows are drawn: tensors [N], and the greatest top_k as a number."""

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    uniform: Tensor
    greatest_top_k: int

    def take(self, where: Tensor) -> "_Draw":
        return _Draw(
            self.temperature[where],
            self.top_p[where],
            self.top_k[where],
            self.uniform[where],
            self.greatest_top_k,
        )


class _Choice(NamedTuple):
    """The column that each of N rows chose, and the greatest logit that it could choose."""

    column: Tensor
    greatest: Tensor


def sample(logits: Tensor, rows: SampleRows) -> NDArray[np.int64]:
    """Chooses one legal token for each row.

    logits is float32 [K, V] on any device and stays as it is. Temperature 0 takes the greatest
    legal logit, the lowest id on ties. Otherwise the logits are divided by the temperature, the
    top_k likeliest tokens kept, of these the smallest set of likeliest ones whose share reaches
    top_p (ties by lowest id, one token at least), and one is drawn by inverse CDF with the number
    that (seed, draw_position) gives. Returns [K].

    Raises ValueError for a listed id outside the vocabulary, and, naming the row, where a row's
    greatest legal logit is not finite: nothing is legal there, or the logits hold inf or NaN.
    """
    _check(logits, rows)
    logits = logits.detach()
    listed = _listed(rows)
    uniforms = uniform(rows.seed, rows.draw_position)
    # Tokens, and whether each is sound: in one tensor, so that one copy leaves the device.
    result = torch.zeros((2, len(rows.seed)), dtype=torch.int64, device=logits.device)
    for group in _groups(rows):
        where = torch.from_numpy(group.members).to(logits.device)
        candidates = _candidates(logits, listed, group, where)
        if group.greedy:
            choice = _take_greatest(candidates)
        else:
            draw = _draw(rows, uniforms, group.members, logits.device)
            choice = _draw_one(candidates, draw, filtered=group.filtered)
        result[0, where] = _token_ids(candidates, choice.column)
        result[1, where] = choice.greatest.isfinite().to(torch.int64)
    tokens, finite = result.cpu().numpy()
    if not finite.all():
        row = int(np.flatnonzero(finite == 0)[0])
        raise ValueError(
            f"row {row} (sequence {rows.sequences[row]}): its greatest legal logit is not finite"
        )
    return np.asarray(tokens, dtype=np.int64)


def _check(logits: Tensor, rows: SampleRows) -> None:
    count, vocabulary = len(rows.seed), logits.shape[-1]
    if logits.dtype != torch.float32 or logits.shape != (count, vocabulary):
        raise ValueError(
            f"logits are {logits.dtype} {tuple(logits.shape)}, not float32 for {count} rows"
        )
    if vocabulary > _MAX_VOCABULARY:
        raise ValueError(f"a vocabulary of {vocabulary} is above {_MAX_VOCABULARY}")
    ids = rows.legal_ids
    if ids.size and not 0 <= ids.min() <= ids.max() < vocabulary:
        raise ValueError(f"legal_ids reach from {ids.min()} to {ids.max()}, of {vocabulary} ids")


def _listed(rows: SampleRows) -> _Listed:
    lengths = np.diff(rows.legal_starts)
    count = len(lengths)
    row = np.repeat(np.arange(count), lengths)
    ids = rows.legal_ids.astype(np.int64)
    kept = (ids >= FIRST_SPECIAL) | ~rows.text_legal[row]
    # One number for row and id: sorted by both, and each pair once.
    row, ids = np.divmod(np.unique(row[kept] * _MAX_VOCABULARY + ids[kept]), _MAX_VOCABULARY)
    counts = np.bincount(row, minlength=count)
    column = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    # At least one column, unused where a row has none, so that reductions have something to reduce.
    table = np.zeros((count, max(1, counts.max(initial=0))), dtype=np.int64)
    table[row, column] = ids
    return _Listed(table, counts)


def _groups(rows: SampleRows) -> Iterator[_Group]:
    greedy = rows.temperature == 0
    filtered = ~greedy & ((rows.top_k > 0) | (rows.top_p < 1))
    kind = rows.text_legal * 4 + greedy * 2 + filtered
    for value in np.unique(kind):
        index = np.flatnonzero(kind == value)
        group = _Group(index, bool(value & 4), bool(value & 2), bool(value & 1))
        whole = group.greedy or not group.in_body
        chunks = 1 if whole else -(-len(index) // _ROWS_AT_ONCE)
        for part in np.array_split(index, chunks):
            yield group._replace(members=part)


def _candidates(logits: Tensor, listed: _Listed, group: _Group, where: Tensor) -> _Candidates:
    text_width = min(FIRST_SPECIAL, logits.shape[1]) if group.in_body else 0
    whole = len(group.members) == len(logits)
    text = logits[:, :text_width] if whole else logits[where, :text_width]
    counts = listed.counts[group.members]
    width = max(1, counts.max())
    ids = torch.from_numpy(listed.ids[group.members, :width]).to(logits.device)
    unused = torch.from_numpy(np.arange(width) >= counts[:, None]).to(logits.device)
    values = logits[where[:, None], ids].masked_fill(unused, -torch.inf)
    return _Candidates(text, values, ids)


def _token_ids(candidates: _Candidates, column: Tensor) -> Tensor:
    text_width = candidates.text.shape[1]
    listed_column = (column - text_width).clamp(min=0)
    listed_ids = candidates.listed_ids.gather(1, listed_column[:, None])[:, 0]
    return torch.where(column < text_width, column, listed_ids)


def _take_greatest(candidates: _Candidates) -> _Choice:
    text, listed, _ = candidates
    # torch.argmax documents that it takes the first of equal maxima.
    listed_column = listed.argmax(1)
    greatest = listed.gather(1, listed_column[:, None])[:, 0]
    text_width = text.shape[1]
    if not text_width:
        return _Choice(listed_column, greatest)
    text_column = text.argmax(1)
    text_greatest = text.gather(1, text_column[:, None])[:, 0]
    # Strictly greater: on ties the text token has the lower id.
    column = torch.where(greatest > text_greatest, text_width + listed_column, text_column)
    return _Choice(column, torch.maximum(greatest, text_greatest))


def _draw(
    rows: SampleRows,
    uniforms: NDArray[np.float64],
    index: NDArray[np.intp],
    device: torch.device,
) -> _Draw:
    top_k = rows.top_k[index].astype(np.int64)
    return _Draw(
        torch.from_numpy(rows.temperature[index]).to(device),
        torch.from_numpy(rows.top_p[index]).to(device),
        torch.from_numpy(top_k).to(device),
        torch.from_numpy(uniforms[index]).to(device),
        int(top_k.max()),
    )


def _draw_one(candidates: _Candidates, draw: _Draw, *, filtered: bool) -> _Choice:
    values = torch.cat((candidates.text, candidates.listed), 1)
    greatest = values.amax(1)
    # Only filtering looks at the logits again.
    shifted = values - greatest[:, None] if filtered else values.sub_(greatest[:, None])
    scaled = shifted.div_(draw.temperature[:, None])
    weights = scaled.exp_().mul_(2.0**_FRACTION_BITS).to(torch.int64)
    if not filtered:
        return _Choice(_invert(weights, draw.uniform), greatest)
    return _Choice(_draw_filtered(values, weights, draw), greatest)


def _draw_filtered(values: Tensor, weights: Tensor, draw: _Draw) -> Tensor:
    search = max(_FIRST_SEARCH, draw.greatest_top_k)
    column, found = _draw_likeliest(values, weights, draw, search)
    while search < values.shape[1] and not found.all():
        search *= _SEARCH_GROWTH
        rest = torch.nonzero(~found)[:, 0]
        column[rest], found[rest] = _draw_likeliest(
            values[rest], weights[rest], draw.take(rest), search
        )
    return column


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse CDF: the first column at which the share of the weights so far exceeds the uniform.

    weights is int64 [N, C], uniforms float64 [N] in [0, 1). Returns [N]; a column of weight 0 is
    never among them while a row has any weight.
    """
    columns = weights.shape[1]
    # Two levels, because a running sum over all columns costs ten times as much as their sum.
    whole = columns - columns % _BLOCK
    blocks = weights[:, :whole].view(len(weights), whole // _BLOCK, _BLOCK).sum(2)
    mass = torch.cat((blocks, weights[:, whole:].sum(1, keepdim=True)), 1).cumsum(1)
    # Below the total although both factors round: a uniform is at most 1 - 2**-53.
    target = (mass[:, -1:] * uniforms[:, None]).to(torch.int64)
    block = _first_above(mass, target)
    before = torch.where(block > 0, mass.gather(1, (block - 1).clamp(min=0)), 0)
    inside = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    within = weights.gather(1, inside.clamp(max=columns - 1)).cumsum(1)
    column = block * _BLOCK + _first_above(within, target - before)
    return column[:, 0].clamp(max=columns - 1)


def _first_above(mass: Tensor, target: Tensor) -> Tensor:
    """The first column of each row, [N, 1], where mass [N, C] exceeds target [N, 1]."""
    # The bound is for rows of NaN, which are refused later.
    return torch.searchsorted(mass, target, right=True).clamp(max=mass.shape[1] - 1)


def _draw_likeliest(
    values: Tensor, weights: Tensor, draw: _Draw, search: int
) -> tuple[Tensor, Tensor]:
    """Draws among the top_k and top_p of each row, in the order of likelihood.

    values and weights are [N, C]. Looks at the ``search`` likeliest, at least the greatest top_k.
    Returns the columns [N] and whether the search sufficed [N]; where not, the column is void.
    """
    columns = values.shape[1]
    # Which of equal values it takes is open, but values and weights are the same for all of them.
    likeliest, where = values.topk(min(search, columns), dim=1)
    rank = torch.arange(likeliest.shape[1], device=values.device)
    limited = (draw.top_k > 0) & (draw.top_k < columns)
    limit = torch.where(limited, draw.top_k, columns)
    kept = weights.gather(1, where).masked_fill_(rank >= limit[:, None], 0)
    mass = kept.cumsum(1)
    total = torch.where(limited, mass[:, -1], weights.sum(1))
    share = (draw.top_p.to(torch.float64) - _TOP_P_TOLERANCE) * total
    needed = torch.where(draw.top_p < 1, share.ceil().to(torch.int64), total)
    size = (mass < needed[:, None]).sum(1) + 1
    kept.masked_fill_(rank >= size[:, None], 0)
    position = _invert(kept, draw.uniform)
    value = likeliest.gather(1, position[:, None])
    # The n-th of equal values in order of likelihood is the n-th of them by id.
    ordinal = position[:, None] - (likeliest > value).sum(1, keepdim=True) + 1
    ordinals = (values == value).cumsum(1)
    column = torch.searchsorted(ordinals, ordinal)[:, 0].clamp(max=columns - 1)
    return column, mass[:, -1] >= needed
