"""Muon for the matrices of the layers, AdamW for everything else, and the learning-rate schedule.

Muon (Jordan et al., 2024): momentum whose matrices are made nearly orthogonal by five steps of a
quintic Newton-Schulz iteration. Here over stacks of matrices at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from tests.tiny.model import TinyModel

MUON_WEIGHTS = ("q", "k", "v", "o", "gate_up", "down")
_QUINTIC = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimiserOptions:
    """Learning rates at their highest, and how they come and go."""

    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    muon_decay: float = 0.01
    momentum: float = 0.95
    clip: float = 1.0
    warmup_steps: int = 200
    rewarmup_steps: int = 60
    """After a restart without the optimiser's state."""
    decay_share: float = 0.35


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The factor on the learning rates at a step."""

    options: OptimiserOptions
    total_steps: int
    restarted_at: int = 0
    """The step at which the optimiser's state began."""

    def factor(self, step: int) -> float:
        """Linear warmup, constant, linear decay to 0 at total_steps."""
        options = self.options
        restarted = self.restarted_at > 0
        warmup = options.rewarmup_steps if restarted else options.warmup_steps
        rising = (step - self.restarted_at + 1) / max(warmup, 1)
        falling = (self.total_steps - step) / max(options.decay_share * self.total_steps, 1)
        return max(0.0, min(1.0, rising, falling))


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised; weight decay is decoupled."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        update = orthogonalised(gradient.lerp(momentum, group["momentum"]))
        out, into = parameter.shape[-2:]
        parameter.mul_(1 - group["lr"] * group["decay"])
        parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * max(1, out / into) ** 0.5)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Each of matrices [..., out, in] with its singular values brought near 1, in bfloat16."""
    a, b, c = _QUINTIC
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-12)).bfloat16()
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Optimisers:
    """Both optimisers over one model, stepped together."""

    def __init__(self, model: TinyModel, options: OptimiserOptions) -> None:
        self._options = options
        self._model = model
        named = dict(model.named_parameters())
        matrices = [named.pop(name) for name in MUON_WEIGHTS]
        self._muon = Muon(
            matrices, lr=options.muon_rate, momentum=options.momentum, decay=options.muon_decay
        )
        self._adam = AdamW(
            named.values(),
            lr=options.adam_rate,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=next(model.parameters()).is_cuda,
        )

    def step(self, factor: float) -> None:
        """Clips the gradients, then one step at ``factor`` times the highest learning rates."""
        nn.utils.clip_grad_norm_(self._model.parameters(), self._options.clip)
        for optimiser, rate in (
            (self._muon, self._options.muon_rate),
            (self._adam, self._options.adam_rate),
        ):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])
