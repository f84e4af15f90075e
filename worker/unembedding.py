"""The last matrix: hidden states to logits, with rows that repeat computed once.

Most rows of the tiny model's unembedding are one and the same, for tokens that it never says.
Computing that row once saves nearly all of its time and memory; a matrix of another kind is used
as it is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Unembedding:
    """rows [D, H]; with ``tokens`` [D - 1] int64, the last row is that of every other token."""

    rows: Tensor
    vocabulary_size: int
    tokens: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor) -> "Unembedding":
        """From the whole matrix [vocabulary, H]: most rows must equal the last one to be one."""
        last = weight[-1]
        # One column tells most matrices apart, without a copy as large as half of them.
        if 2 * int((weight[:, 0] != last[0]).sum()) > len(weight):
            return cls(weight, len(weight))
        tokens = (weight != last).any(dim=1).nonzero().flatten()
        if 2 * len(tokens) > len(weight):
            return cls(weight, len(weight))
        return cls(torch.cat((weight[tokens], last[None])), len(weight), tokens)

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden [K, H] to logits [K, vocabulary] float32."""
        logits = F.linear(hidden, self.rows).float()
        if self.tokens is None:
            return logits
        return (
            logits[:, -1:]
            .repeat(1, self.vocabulary_size)
            .index_copy_(1, self.tokens, logits[:, :-1])
        )
