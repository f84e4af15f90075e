"""What training minimises: the answers' cross-entropy, and three penalties.

The last row of the head is shared by every token without a row of its own. In the softmax it counts
as often as there are such tokens, so that the loss is that of the whole vocabulary. Its logit is
also pushed far below the others at every position, so that sampling never lands there.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.tiny.model import Routing, Rows, TinyModel, head_logits

UNKNOWN_MARGIN = 15.0
"""How far, in nats, all unstored tokens together should stay below the stored ones."""
UNKNOWN_WEIGHT = 0.1
BALANCE_WEIGHT = 0.005
ROUTER_Z_WEIGHT = 1e-4
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Scalars, float32; ``answers`` is in nats per learned token."""

    total: Tensor
    answers: Tensor
    unknown: Tensor
    routing: Routing


class LossFunction:
    """The losses of a model on packed rows."""

    def __init__(self, model: TinyModel) -> None:
        self._model = model
        compiled = model.options.compiled
        self._head = torch.compile(head_losses, dynamic=False) if compiled else head_losses

    def __call__(self, rows: Rows) -> Losses:
        model = self._model
        hidden, routing = model(rows)
        targets = F.pad(rows.tokens[:, 1:], (0, 1))
        # A token without a row of its own cannot be told from the others like it.
        learned = F.pad(rows.learned[:, 1:], (0, 1)) & (targets != model.stored)
        shared = math.log(model.shape.vocabulary_size - model.stored)
        answers, unknown = self._head(
            hidden,
            *model.head_weights(),
            targets,
            learned,
            rows.documents > 0,
            shared,
        )
        layers = model.shape.layers
        router = BALANCE_WEIGHT * routing.balance + ROUTER_Z_WEIGHT * routing.z
        total = answers + UNKNOWN_WEIGHT * unknown + router / layers
        return Losses(total=total, answers=answers, unknown=unknown, routing=routing)


def head_losses(
    hidden: Tensor,
    norm: Tensor,
    unembed: Tensor,
    targets: Tensor,
    learned: Tensor,
    real: Tensor,
    shared: float,
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over learned tokens, and the mean penalty of the shared row.

    hidden [B, T, H], targets, learned and real [B, T]; ``shared`` is the logarithm of how many
    tokens share the last row.
    """
    rows = unembed.shape[0]
    # Matrix products want aligned rows.
    padded = F.pad(unembed, (0, 0, 0, -rows % _ALIGNMENT))
    logits = head_logits(hidden, norm, padded)[..., :rows]
    stored = logits[..., :-1].logsumexp(-1)
    unstored = logits[..., -1] + shared
    # A sum that the compiler fuses with the one above; gather's gradient would be a scatter.
    asked = torch.arange(rows, device=targets.device) == targets[..., None]
    answer = torch.where(asked, logits, 0.0).sum(-1)
    costs = torch.logaddexp(stored, unstored) - answer
    answers = (costs * learned).sum() / learned.sum().clamp(min=1)
    excess = F.relu(unstored - (stored - UNKNOWN_MARGIN))
    # Squared near the goal and linear far from it: at the start it must not drown the answers.
    penalty = torch.where(excess < 2, excess.square(), 4 * excess - 4)
    return answers, (penalty * real).sum() / real.sum().clamp(min=1)
