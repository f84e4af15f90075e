"""The tensors of one rank's paged KV cache. Which block belongs to whom is the scheduler's matter.

Each layer has its own tensors; layers of one kind share block numbers. Block 0 is scratch (see
kv_plan.py).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moeray.worker.config import EngineConfig
from moeray.worker.kv_plan import KvPlan
from moeray.worker.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's keys and values, each [blocks, block_tokens, Hkv, D]."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCache:
    """The caches of all layers."""

    plan: KvPlan
    layers: tuple[LayerCache, ...]

    @classmethod
    def allocate(
        cls,
        model_config: ModelConfig,
        engine_config: EngineConfig,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "KvCache":
        """Zeroed caches: a masked position is multiplied by weight 0, so it must be finite."""
        plan = KvPlan.of(engine_config, model_config.context_length, model_config.sliding_window)

        def zeros(blocks: int) -> Tensor:
            shape = (blocks, plan.block_tokens, model_config.kv_heads, model_config.head_dim)
            return torch.zeros(shape, dtype=dtype, device=device)

        blocks = [plan.window_blocks if w else plan.full_blocks for w in model_config.windowed]
        return cls(plan=plan, layers=tuple(LayerCache(zeros(n), zeros(n)) for n in blocks))
