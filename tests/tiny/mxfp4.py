"""MXFP4 in training: weights rounded to what the packed checkpoint can hold, and packed.

One block is 32 values along the last dimension. Its scale is the smallest power of two with which
no value is above e2m1's greatest, 6; values go to the nearest, ties to the even code (OCP
Microscaling Formats specification 1.0).
"""

import torch
from torch import Tensor

from moeray.kernels.reference import MXFP4_BLOCK, MXFP4_VALUES

_E8M0_BIAS = 127
_GREATEST = MXFP4_VALUES[-1]


class _FakeQuantise(torch.autograd.Function):
    """Rounds forward; the gradient passes as if it had not (straight-through estimator)."""

    @staticmethod
    def forward(ctx: object, weight: Tensor) -> Tensor:
        return quantised_mxfp4(weight)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def fake_quantise_mxfp4(weight: Tensor) -> Tensor:
    """The values [..., n] that packed ``weight`` [..., n] stands for, in weight's dtype."""
    return _FakeQuantise.apply(weight)


def quantised_mxfp4(weight: Tensor) -> Tensor:
    """As fake_quantise_mxfp4, without a gradient."""
    blocks, exponents = _scaled_blocks(weight)
    return torch.ldexp(_rounded(blocks), exponents).flatten(-2).to(weight.dtype)


def pack_mxfp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [..., n] as blocks [..., n / 32, 16] and scales [..., n / 32], uint8.

    The layout is that of moeray.kernels.reference.dequantize_mxfp4, which gives back exactly
    ``quantised_mxfp4(weight)``.
    """
    blocks, exponents = _scaled_blocks(weight)
    rounded = _rounded(blocks)
    magnitudes = torch.tensor(MXFP4_VALUES, device=weight.device)
    codes = torch.searchsorted(magnitudes, rounded.abs().contiguous())
    codes = (codes + 8 * (rounded < 0)).to(torch.uint8)
    packed = codes[..., ::2] | codes[..., 1::2] << 4
    return packed, (exponents[..., 0] + _E8M0_BIAS).to(torch.uint8)


def _scaled_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks [..., n / 32, 32] divided by their scales, and the scales' exponents [..., 1]."""
    blocks = weight.float().unflatten(-1, (-1, MXFP4_BLOCK))
    mantissa, exponent = torch.frexp(blocks.abs().amax(-1, keepdim=True) / _GREATEST)
    # max / 6 = mantissa * 2 ** exponent with mantissa in [0.5, 1): at 0.5 it is a power of two.
    exponent = (exponent - (mantissa == 0.5).int()).clamp(-_E8M0_BIAS + 1, _E8M0_BIAS)
    return torch.ldexp(blocks, -exponent), exponent


def _rounded(values: Tensor) -> Tensor:
    """To the nearest e2m1 value; torch.round goes to even, and e2m1's codes are linear by parts."""
    size = values.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return (torch.round(size / step) * step).clamp(max=_GREATEST).copysign(values)
