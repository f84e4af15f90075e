"""A case of a kernel: an op, its reference, and arguments for both.

The reference gets the same arguments with every floating tensor widened to float64, so that it is
the truth to far more digits than any kernel computes.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Outputs = Tensor | tuple[Tensor, ...]
BFLOAT16_ERROR = 5e-3
"""What bfloat16 inputs, outputs and products cost, as a norm."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Random tensors on one device; the same numbers on every device."""

    device: torch.device
    generator: torch.Generator

    @property
    def bfloat16(self) -> torch.dtype:
        """Float32 on a CPU, where Triton's interpreter cuts off what bfloat16 should round."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @classmethod
    def of(cls, name: str, device: torch.device) -> "Draw":
        return cls(device, torch.Generator().manual_seed(zlib.crc32(name.encode())))

    def normal(
        self, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16
    ) -> Tensor:
        values = torch.randn(shape, generator=self.generator) * scale
        return values.to(dtype).to(self.device)

    def integers(
        self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int32
    ) -> Tensor:
        """From low to high - 1."""
        values = torch.randint(low, high, shape, generator=self.generator)
        return values.to(dtype).to(self.device)

    def permutation(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.generator).to(self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCase:
    """One call of an op and of its reference."""

    name: str
    op: Callable[..., Outputs]
    reference: Callable[..., Outputs]
    arguments: Callable[[Draw], dict[str, Any]]
    error: float = BFLOAT16_ERROR
    """The most that the norm of the difference may be, of the norm of the truth, in each output.
    0: every element is equal, as of integers."""
    full_size: bool = False
    """Too large for the interpreter."""

    def __str__(self) -> str:
        return self.name

    def check(self, device: torch.device) -> None:
        """Runs both and compares. AssertionError says which output is off, and by how much."""
        arguments = self.arguments(Draw.of(self.name, device))
        # First the truth: an op may write into what it is given.
        truth = _outputs(self.reference(**_widened(arguments)))
        got = _outputs(self.op(**arguments))
        assert len(got) == len(truth)
        for i, (own, want) in enumerate(zip(got, truth, strict=True)):
            assert own.shape == want.shape, f"output {i}: {own.shape}, not {want.shape}"
            off = relative_error(own, want)
            assert off <= self.error, f"output {i}: off by {off:.2e}, more than {self.error:.0e}"


def relative_error(got: Tensor, truth: Tensor) -> float:
    """The norm of the difference by the norm of the truth; infinite where got has a NaN."""
    difference = (got.double() - truth.double()).norm().item()
    norm = truth.double().norm().item()
    if difference != difference:
        return float("inf")
    return difference / norm if norm else difference


def _outputs(outputs: Outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _widened(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _wide(value) for name, value in arguments.items()}


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor):
        # A copy, because the op may write into its own.
        return value.double() if value.dtype.is_floating_point else value.clone()
    return value
