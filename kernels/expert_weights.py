"""The experts of one layer that a rank holds, as the MoE kernels want them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from moeray.kernels.mxfp4_layout import Mxfp4Weight, pack_mxfp4, pair_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWeights:
    """Experts first_expert to first_expert + e - 1 of all E, packed once when they are loaded.

    Hidden size H, expert width I, both multiples of 64. The experts form groups of
    ``group_experts``; held is an aligned run of 1, 2, 4 or 8 of them.
    """

    gate_up: Mxfp4Weight
    """e matrices [2 I, H]; rows in eights of gates and ups."""
    gate_up_bias: Tensor
    """bfloat16 [e, 2 I], in the same eights."""
    down: Mxfp4Weight
    """e matrices [H, I]."""
    down_bias: Tensor
    """bfloat16 [e, H]."""
    first_expert: int
    group_experts: int
    limit: float
    alpha: float
    _tickets: Tensor
    """int32 zeros, one for each tile of the output; kernels leave them zero."""

    @classmethod
    def pack(
        cls,
        gate_up_blocks: Tensor,
        gate_up_scales: Tensor,
        gate_up_bias: Tensor,
        down_blocks: Tensor,
        down_scales: Tensor,
        down_bias: Tensor,
        *,
        first_expert: int,
        group_experts: int,
        limit: float,
        alpha: float,
    ) -> "ExpertWeights":
        """From a checkpoint's tensors, shaped as for ``reference.expert_outputs``.

        Raises ValueError where the held experts are no aligned run of groups, or where
        ``pack_mxfp4`` refuses a shape.
        """
        held = gate_up_blocks.shape[0]
        groups = held // group_experts
        if held % group_experts or groups not in (1, 2, 4, 8) or first_expert % held:
            raise ValueError(
                f"gate_up_blocks: experts {first_expert} to {first_expert + held - 1} are no "
                f"aligned run of 1, 2, 4 or 8 groups of {group_experts}"
            )
        down = pack_mxfp4(down_blocks, down_scales, paired=False)
        return cls(
            gate_up=pack_mxfp4(gate_up_blocks, gate_up_scales, paired=True),
            gate_up_bias=pair_rows(gate_up_bias),
            down=down,
            down_bias=down_bias.contiguous(),
            first_expert=first_expert,
            group_experts=group_experts,
            limit=limit,
            alpha=alpha,
            _tickets=torch.zeros(down.rows, dtype=torch.int32, device=down_blocks.device),
        )

    def hidden_growth(self, most: float) -> float:
        """The power of two that brings hidden values, which SwiGLU's limit bounds, below ``most``,
        the greatest of numbers of few bits."""
        return float(2.0 ** math.floor(math.log2(most / (self.limit * (self.limit + 1)))))

    @property
    def groups(self) -> int:
        """Of experts, that are held."""
        return self.gate_up.experts // self.group_experts

    def tickets(self, tiles: int) -> Tensor:
        return self._tickets[:tiles]
