"""Logit bias and penalties: what shifts the logits of text tokens in bodies.

In the order of vLLM (v1/sample/sampler.py): first the bias, then the repetition penalty, then the
frequency and the presence penalty, all before the temperature and so before greedy choice too:

- bias: ``logit += bias``
- repetition (Keskar et al., "CTRL", 2019, section 4.1, as Hugging Face's
  RepetitionPenaltyLogitsProcessor completes it for negative logits), of tokens in prompt or output:
  ``logit = logit / penalty if logit > 0 else logit * penalty``
- frequency and presence (OpenAI's API reference), of tokens in the output:
  ``logit -= frequency * count``, ``logit -= presence``

Each token of each row is worked on by itself in float32, so the batch cannot move a bit.
"""

import numpy as np
import torch
from torch import Tensor

from moeray.worker.plan import Bool, Int32, Int64, SampleRows


def shifts_logits(rows: SampleRows) -> Bool:
    """Which of the K rows have bias or penalties that act: [K]."""
    shifted = (np.diff(rows.bias_starts) > 0) | (np.diff(rows.penalised_starts) > 0)
    return shifted & rows.text_legal


def shift_logits(text: Tensor, rows: SampleRows, members: Int64) -> None:
    """Applies bias and penalties to ``text`` in place.

    text is float32 [N, T] for the token ids 0 to T - 1 and the N rows ``members`` of the K.
    """
    device = text.device
    row, place = _places(rows.bias_starts, members)
    if len(place):
        where = _on_device((row, rows.bias_ids[place]), device)
        text[where] += torch.from_numpy(rows.bias[place]).to(device)
    row, place = _places(rows.penalised_starts, members)
    if len(place):
        where = _on_device((row, rows.penalised_ids[place]), device)
        counts = torch.from_numpy(rows.output_counts[place]).to(device)
        repetition, presence, frequency = (
            torch.from_numpy(penalty[members]).to(device)[where[0]]
            for penalty in (
                rows.repetition_penalty,
                rows.presence_penalty,
                rows.frequency_penalty,
            )
        )
        logits = text[where]
        logits = torch.where(logits > 0, logits / repetition, logits * repetition)
        logits = logits - frequency * counts
        text[where] = logits - presence * (counts > 0)


def _places(starts: Int32, members: Int64) -> tuple[Int64, Int64]:
    """Of the entries that the members own: which member, from 0, and where the entry is."""
    first = starts[members].astype(np.int64)
    lengths = starts[members + 1] - first
    row = np.repeat(np.arange(len(members)), lengths)
    behind = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return row, first[row] + behind


def _on_device(index: tuple[Int64, Int32], device: torch.device) -> tuple[Tensor, Tensor]:
    row, ids = index
    return (
        torch.from_numpy(row).to(device),
        torch.from_numpy(ids.astype(np.int64)).to(device),
    )
