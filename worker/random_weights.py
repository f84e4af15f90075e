"""Random weights that leave routing close to uniform, in every layer and also after many steps.

An untrained model routes badly when what all rows share outweighs what tells them apart. So the
residual stream is led by large token-specific embeddings; what the layers add to it is small, and
so are the biases; router rows have one length, so that no expert is preferred; unembedding rows
too, so that greedy decoding does not gather on few tokens.
"""

import math

import torch
from torch import Tensor

from moeray.kernels.reference import MXFP4_VALUES
from moeray.worker.checkpoint_layout import TensorSpec
from moeray.worker.checkpoint_shape import CheckpointShape, shape_tensors

RESIDUAL_GAIN = 0.5
"""Root mean square of what all layers together add to the residual stream, roughly; the embeddings
have 1."""
BIAS_STD = 0.02
LOGIT_STD = 2.0
_MXFP4_RMS = math.sqrt(sum(v * v for v in MXFP4_VALUES) / len(MXFP4_VALUES))
_E8M0_BIAS = 127


class RandomWeights:
    """Draws the tensors of one checkpoint. Each depends on the seed, its index and the device.

    The bits are drawn on ``device``: the same seed gives the same on the same kind of device.
    """

    def __init__(self, shape: CheckpointShape, seed: int, device: torch.device) -> None:
        self.shape = shape
        self.seed = seed
        self.device = device
        self._specs = shape_tensors(shape)
        self._indices = {name: index for index, name in enumerate(self._specs)}

    def tensor(self, name: str) -> Tensor:
        """The tensor ``name`` on the CPU, in its own dtype."""
        index, spec = self._indices[name], self._specs[name]
        generator = torch.Generator(self.device)
        generator.manual_seed((self.seed * 1_000_003 + index) % 2**63)
        if spec.dtype == "U8":
            return self._packed(name, spec, generator).cpu()
        drawn = self._dense(name, spec.shape, generator)
        return drawn.to(torch.bfloat16).cpu()

    def _dense(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape, device=self.device)
        drawn = torch.randn(shape, generator=generator, device=self.device)
        if name.endswith("bias"):
            return drawn * BIAS_STD
        if name.endswith("router.weight"):
            return _unit_rows(drawn)
        if name.startswith("lm_head"):
            return _unit_rows(drawn) * LOGIT_STD
        if name.endswith("o_proj.weight"):
            return drawn * (self._block_gain() / math.sqrt(shape[-1]))
        if name.endswith("_proj.weight"):
            return drawn / math.sqrt(shape[-1])
        return drawn  # embeddings and sinks

    def _packed(self, name: str, spec: TensorSpec, generator: torch.Generator) -> Tensor:
        if name.endswith("blocks"):
            low, high = 0, 256
        else:
            # Scales of two neighbouring powers of two, at most what the wanted deviation needs.
            down = name.endswith("down_proj_scales")
            width = self.shape.intermediate_size if down else self.shape.hidden_size
            gain = self._block_gain() if down else 1.0
            high = _E8M0_BIAS + 1 + math.floor(math.log2(gain / math.sqrt(width) / _MXFP4_RMS))
            low = high - 2
        return torch.randint(
            low, high, spec.shape, dtype=torch.uint8, generator=generator, device=self.device
        )

    def _block_gain(self) -> float:
        """Of one attention or expert block: there are two in each layer."""
        return RESIDUAL_GAIN / math.sqrt(2 * self.shape.layers)


def _unit_rows(drawn: Tensor) -> Tensor:
    return drawn / drawn.square().sum(-1, keepdim=True).sqrt()
