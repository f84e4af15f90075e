"""Sampling: one token for each sampled row of a step, from its logits.

Rules:

- A row's token depends on that row alone, not on the batch, and hardly ever on the last bits of
  its logits: a draw is a race of random numbers that belong to seed, position and token
  (Gumbel-max), without a sum over the vocabulary. ``drawing.py`` says why.
- Only legal tokens are drawn. Rows in bodies see all text and their listed ids; rows in headers
  only their listed ids.
- The order is the field's (vLLM's v1/sample/sampler.py up to the temperature, Hugging Face's
  behind it): bias and penalties on the logits (``penalties.py``), then temperature, top_k, top_p
  and min_p (``drawing.py``). Temperature 0 takes the greatest logit behind bias and penalties.
- A row that cannot be sampled is marked, and costs the others nothing.
- Rows are worked on in groups of those that are treated alike, so that none pays for what only
  others ask.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from moeray.vocabulary.harmony_tokens import FIRST_SPECIAL
from moeray.worker.drawing import MAX_COLUMNS, TOLERANCE, Draws, draw, first_greatest
from moeray.worker.logprobs import with_logprobs
from moeray.worker.penalties import shift_logits, shifts_logits
from moeray.worker.philox import draw_keys
from moeray.worker.plan import Drawn, Float32, Int32, Int64, SampleRows

_LOGITS_AT_ONCE: Final = 2**23
"""Bounds the memory of draws in bodies: 41 rows of a full vocabulary, 12 to 40 bytes a logit."""


class _Listed(NamedTuple):
    """The ids that are legal one by one, ascending and once each, without text that is legal as
    such: ids [K, L], of which row k has the first counts[k].
    """

    ids: Int64
    counts: Int64


class _Group(NamedTuple):
    """Rows that are treated alike: ascending indices into the K."""

    members: Int64
    in_body: bool
    shifted: bool
    greedy: bool
    any_top_k: bool
    any_top_p: bool
    any_min_p: bool


class _Candidates(NamedTuple):
    """The legal logits of N rows: columns 0 to text.shape[1] - 1 are those token ids, the columns
    behind are ``listed``, of the ids ``listed_ids``. An unused entry of ``listed`` is -inf.
    """

    text: Tensor
    listed: Tensor
    listed_ids: Tensor


def sample(logits: Tensor, rows: SampleRows) -> Drawn:
    """Draws one legal token for each row, with log-probabilities where asked.

    logits is float32 [K, V] on any device and stays as it is. Temperature 0 takes the greatest
    legal logit, the lowest id on ties. Otherwise the logits are divided by the temperature, the
    top_k likeliest tokens kept, of these the smallest set of likeliest ones whose share reaches
    top_p (ties by lowest id, one token at least), of these the ones at least min_p times as likely
    as the likeliest, and one is drawn by an exponential race whose numbers (seed, draw_position,
    token id) give.

    A row whose greatest legal logit is not finite is not sound: nothing is legal there, or the
    logits hold inf or NaN. Raises ValueError for ids outside the vocabulary.
    """
    _check(logits, rows)
    logits = logits.detach()
    listed = _listed(rows)
    keys = draw_keys(rows.seed, rows.draw_position)
    # Tokens, and whether each is sound: in one tensor, so that one copy leaves the device.
    result = torch.zeros((2, len(rows.seed)), dtype=torch.int64, device=logits.device)
    for group in _groups(rows, logits):
        where = torch.from_numpy(group.members).to(logits.device)
        candidates = _candidates(logits, rows, listed, group, where)
        if group.greedy:
            token, greatest = _take_greatest(candidates)
        else:
            token, greatest = draw(*candidates, _draws(rows, keys, group, logits.device))
        result[0, where] = token
        result[1, where] = greatest.isfinite().to(torch.int64)
    tokens, finite = result.cpu().numpy()
    plain = Drawn.plain(tokens, finite.astype(np.bool_))
    return with_logprobs(logits, result[0], rows, plain)


def _check(logits: Tensor, rows: SampleRows) -> None:
    count, vocabulary = len(rows.seed), logits.shape[-1]
    if logits.dtype != torch.float32 or logits.shape != (count, vocabulary):
        raise ValueError(
            f"logits are {logits.dtype} {tuple(logits.shape)}, not float32 for {count} rows"
        )
    if vocabulary > MAX_COLUMNS:
        raise ValueError(f"a vocabulary of {vocabulary} is above {MAX_COLUMNS}")
    text = min(FIRST_SPECIAL, vocabulary)
    _check_ids("legal_ids", rows.legal_ids, vocabulary)
    _check_ids("bias_ids", rows.bias_ids, text)
    _check_ids("penalised_ids", rows.penalised_ids, text)


def _check_ids(name: str, ids: Int32, limit: int) -> None:
    if ids.size and not 0 <= ids.min() <= ids.max() < limit:
        raise ValueError(f"{name} reach from {ids.min()} to {ids.max()}, of {limit} ids")


def _listed(rows: SampleRows) -> _Listed:
    lengths = np.diff(rows.legal_starts)
    count = len(lengths)
    row = np.repeat(np.arange(count), lengths)
    ids = rows.legal_ids.astype(np.int64)
    kept = (ids >= FIRST_SPECIAL) | ~rows.text_legal[row]
    # One number for row and id: sorted by both, and each pair once.
    row, ids = np.divmod(np.unique(row[kept] * MAX_COLUMNS + ids[kept]), MAX_COLUMNS)
    counts = np.bincount(row, minlength=count)
    column = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    # At least one column, unused where a row has none, so that reductions have something to reduce.
    table = np.zeros((count, max(1, counts.max(initial=0))), dtype=np.int64)
    table[row, column] = ids
    return _Listed(table, counts)


def _groups(rows: SampleRows, logits: Tensor) -> Iterator[_Group]:
    greedy = rows.temperature == 0
    bits = (
        rows.text_legal,
        shifts_logits(rows),
        greedy,
        ~greedy & (rows.top_k > 0),
        ~greedy & (rows.top_p < 1),
        ~greedy & (rows.min_p > 0),
    )
    kind = (np.stack(bits) << np.arange(len(bits))[:, None]).sum(0)
    body_rows = max(1, _LOGITS_AT_ONCE // logits.shape[1])
    for value in np.unique(kind):
        index = np.flatnonzero(kind == value)
        flags = [bool(value >> bit & 1) for bit in range(len(bits))]
        size = body_rows if flags[0] else len(index)
        for first in range(0, len(index), size):
            yield _Group(index[first : first + size], *flags)


def _candidates(
    logits: Tensor, rows: SampleRows, listed: _Listed, group: _Group, where: Tensor
) -> _Candidates:
    text = _text(logits, rows, group, where)
    counts = listed.counts[group.members]
    width = max(1, counts.max())
    ids = torch.from_numpy(listed.ids[group.members, :width]).to(logits.device)
    unused = torch.from_numpy(np.arange(width) >= counts[:, None]).to(logits.device)
    values = logits[where[:, None], ids].masked_fill(unused, -torch.inf)
    return _Candidates(text, values, ids)


def _text(logits: Tensor, rows: SampleRows, group: _Group, where: Tensor) -> Tensor:
    """The text logits of the group's rows: no columns outside bodies, and a copy where shifted."""
    width = min(FIRST_SPECIAL, logits.shape[1]) if group.in_body else 0
    if group.shifted:
        text = logits[where, :width]
        shift_logits(text, rows, group.members)
        return text
    first, end = int(group.members[0]), int(group.members[-1]) + 1
    if end - first == len(group.members):
        return logits[first:end, :width]
    return logits[where, :width]


def _take_greatest(candidates: _Candidates) -> tuple[Tensor, Tensor]:
    """The token of each row's greatest logit, the lowest id on ties, and that logit: [N]."""
    text, listed, ids = candidates
    column = first_greatest(listed)[:, None]
    greatest, token = listed.gather(1, column)[:, 0], ids.gather(1, column)[:, 0]
    if not text.shape[1]:
        return token, greatest
    text_token = first_greatest(text)
    text_greatest = text.gather(1, text_token[:, None])[:, 0]
    # Strictly greater: on ties the text token has the lower id.
    token = torch.where(greatest > text_greatest, token, text_token)
    return token, torch.maximum(greatest, text_greatest)


def _draws(rows: SampleRows, keys: Int64, group: _Group, device: torch.device) -> Draws:
    def on_device(values: Float32 | Int64) -> Tensor:
        return torch.from_numpy(values[group.members]).to(device)

    hot = (rows.temperature[group.members] == 1).all()
    return Draws(
        keys=on_device(keys),
        temperature=None if hot else on_device(rows.temperature),
        top_k=on_device(rows.top_k.astype(np.int64)) if group.any_top_k else None,
        top_p=on_device(rows.top_p) if group.any_top_p else None,
        log_min_p=(on_device(rows.min_p) * (1 - TOLERANCE)).log() if group.any_min_p else None,
    )
