"""Log-probabilities of drawn tokens, and of the likeliest ones, in the model's own distribution.

That is log_softmax over the whole vocabulary of the logits as the model gives them: no token is
illegal, nothing is penalised, the temperature is 1. Only rows in bodies that ask have any.

The softmax's denominator is summed as integers in units of 2**-44 of its greatest term, and the
likeliest tokens are found by keys that are all different: like draws, log-probabilities depend on
their row alone. They are exact to about 1e-6.
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from moeray.worker.plan import Bool, Drawn, Float32, Int32, Int64, SampleRows

_FRACTION: Final = 2.0**44
_ID_BITS: Final = 20
_ROWS_AT_ONCE: Final = 32
"""Bounds the memory: up to 4 MB a row."""


def with_logprobs(logits: Tensor, tokens: Tensor, rows: SampleRows, plain: Drawn) -> Drawn:
    """``plain`` with the log-probabilities that ``rows`` ask for.

    logits is float32 [K, V], tokens int64 [K], both on one device. Rows that are not sound have
    none.
    """
    wanted = np.flatnonzero(rows.wants_logprobs & rows.text_legal & plain.sound)
    if not len(wanted):
        return plain
    parts = [
        _logprobs(logits, tokens, rows.top_logprobs, wanted[first : first + _ROWS_AT_ONCE])
        for first in range(0, len(wanted), _ROWS_AT_ONCE)
    ]
    logprobs, top_ids, top_logprobs = (np.concatenate(part) for part in zip(*parts, strict=True))
    sizes = np.minimum(rows.top_logprobs[wanted], logits.shape[1])
    starts = np.zeros(len(wanted) + 1, np.int32)
    np.cumsum(sizes, out=starts[1:])
    return Drawn(
        tokens=plain.tokens,
        sound=plain.sound,
        logprob_rows=wanted.astype(np.int32),
        logprobs=logprobs,
        top_starts=starts,
        top_ids=top_ids,
        top_logprobs=top_logprobs,
    )


def _logprobs(
    logits: Tensor, tokens: Tensor, top_logprobs: Int32, rows: Int64
) -> tuple[Float32, Int32, Float32]:
    """Of the drawn tokens [N], and of the likeliest ones of all rows, one row behind the other."""
    where = torch.from_numpy(rows).to(logits.device)
    values = logits[where]
    greatest = values.amax(1, keepdim=True)
    terms = (values - greatest).exp_().mul_(_FRACTION).to(torch.int64)
    log_total = (terms.sum(1, keepdim=True).to(torch.float64) / _FRACTION).log()

    def logprobs(ids: Tensor) -> Tensor:
        difference = values.gather(1, ids).to(torch.float64) - greatest.to(torch.float64)
        return (difference - log_total).to(torch.float32)

    drawn = logprobs(tokens[where][:, None])[:, 0].cpu().numpy()
    sizes = np.minimum(top_logprobs[rows], values.shape[1])
    top = _likeliest(values, int(sizes.max()))
    kept = np.arange(top.shape[1]) < sizes[:, None]
    return drawn, *_kept(kept, top.to(torch.int32), logprobs(top))


def _kept(kept: Bool, ids: Tensor, logprobs: Tensor) -> tuple[Int32, Float32]:
    return ids.cpu().numpy()[kept], logprobs.cpu().numpy()[kept]


def _likeliest(values: Tensor, count: int) -> Tensor:
    """The columns of the ``count`` greatest values, greatest first, lowest column on ties.

    values is float32 [N, V] with V at most 2**20; returns int64 [N, count].
    """
    if not count:
        return values.new_zeros((len(values), 0), dtype=torch.int64)
    # A float32's bits order like the numbers, once those of negative ones are turned round; adding
    # 0 makes -0 the equal of 0. A greater key is a greater value or, for one value, a lower column.
    bits = (values + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    column = torch.arange(values.shape[1], device=values.device)
    keys = (ordered.to(torch.int64) << _ID_BITS) | ((1 << _ID_BITS) - 1 - column)
    best = keys.topk(count, dim=1).values
    return (1 << _ID_BITS) - 1 - (best & ((1 << _ID_BITS) - 1))
