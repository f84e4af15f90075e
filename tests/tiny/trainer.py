"""One training step, and the state that a later run goes on from."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.tiny.loss import Losses, LossFunction
from tests.tiny.model import Rows, TinyModel
from tests.tiny.optimiser import OptimiserOptions, Optimisers, Schedule

STATE_FILE = "state.pt"
SMALL_FILES = 4
"""Into so many files the weights alone are divided: what travels may be 16 MiB a file."""


class Trainer:
    """A model with its optimisers. ``step`` counts over all runs."""

    def __init__(self, model: TinyModel, options: OptimiserOptions, *, total_steps: int) -> None:
        self.model = model
        self.schedule = Schedule(options=options, total_steps=total_steps)
        self.step = 0
        self.run = 0
        self._options = options
        self._optimisers = Optimisers(model, options)
        self._losses = LossFunction(model)

    @property
    def done(self) -> bool:
        return self.step >= self.schedule.total_steps

    def train(self, rows: Rows) -> Losses:
        """One step on ``rows``; the losses are before it, detached."""
        losses = self._losses(rows)
        losses.total.backward()
        self._optimisers.step(self.schedule.factor(self.step))
        self.step += 1
        return Losses(
            total=losses.total.detach(),
            answers=losses.answers.detach(),
            unknown=losses.unknown.detach(),
            routing=losses.routing,
        )

    def save(self, folder: Path) -> None:
        """Writes the whole state, and the weights alone in small files; each appears whole.

        Raises ValueError, and writes nothing, when a weight is not finite.
        """
        weights = {name: p.detach().cpu() for name, p in self.model.named_parameters()}
        if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
            raise ValueError(f"step {self.step}: weights are not finite: {', '.join(bad)}")
        place = {"step": self.step, "run": self.run, "total_steps": self.schedule.total_steps}
        state = {**place, "weights": weights, "optimisers": self._optimisers.state_dict()}
        _write(state, folder / STATE_FILE)
        for part, tensors in enumerate(_parts(weights)):
            _write({**place, "weights": tensors}, folder / _small_file(part))

    def resume(self, folder: Path, *, total_steps: int | None) -> None:
        """Goes on from what ``save`` wrote: the whole state where it is there, else the weights,
        with fresh optimisers and a short warmup. ``total_steps`` replaces the saved total."""
        device = next(self.model.parameters()).device
        whole = folder / STATE_FILE
        if whole.exists():
            state = torch.load(whole, map_location=device, weights_only=True)
            self._optimisers.load_state_dict(state["optimisers"])
        else:
            state = _small_state(folder, device)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(state["weights"][name].view_as(parameter))
        self.step, self.run = state["step"], state["run"] + 1
        self.schedule = Schedule(
            options=self._options,
            total_steps=total_steps or state["total_steps"],
            restarted_at=0 if "optimisers" in state else self.step,
        )


def _small_file(part: int) -> str:
    return f"resume-small-{part}.pt"


def _parts(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The weights, each flat and cut into SMALL_FILES nearly equal pieces."""
    cut = {name: tensor.flatten().tensor_split(SMALL_FILES) for name, tensor in weights.items()}
    return [
        {name: pieces[part].clone() for name, pieces in cut.items()} for part in range(SMALL_FILES)
    ]


def _small_state(folder: Path, device: torch.device) -> dict[str, Any]:
    files = [folder / _small_file(part) for part in range(SMALL_FILES)]
    parts = [torch.load(file, map_location=device, weights_only=True) for file in files]
    if len({part["step"] for part in parts}) > 1:
        raise ValueError(f"{folder}: the small files are of different steps")
    names = parts[0]["weights"]
    weights = {name: torch.cat([part["weights"][name] for part in parts]) for name in names}
    return {**parts[0], "weights": weights}


def _write(state: dict[str, Any], path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
