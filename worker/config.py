"""How one engine is set up: sizes and devices, checked once, frozen after."""

from dataclasses import dataclass
from pathlib import Path

EXPERT_GROUPS = 8
"""Experts form this many fixed groups whatever the number of ranks (see combine order)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine's settings. Raises ValueError where they contradict each other."""

    model: Path
    """A checkpoint folder in Hugging Face's gpt-oss layout."""
    ranks: int = 1
    """Expert-parallel ranks: 1, 2, 4 or 8."""
    device: str = "cpu"
    """"cpu" or "cuda"."""
    dtype: str = "float32"
    """"float32" or "bfloat16": of the dense weights, activations and KV cache."""
    block_tokens: int = 16
    """Tokens in one KV block."""
    kv_tokens_per_rank: int = 65536
    """KV cache of one rank, in tokens of the full-attention layers."""
    max_running_per_rank: int = 64
    """Sequences that run at once on one rank."""
    step_tokens_per_rank: int = 512
    """Rows that one rank runs in one step."""
    threads_per_rank: int = 1
    """torch's threads in a CPU rank."""

    def __post_init__(self) -> None:
        if self.ranks < 1 or EXPERT_GROUPS % self.ranks:
            raise ValueError(f"ranks: {self.ranks} does not divide {EXPERT_GROUPS} expert groups")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device: {self.device!r} is neither 'cpu' nor 'cuda'")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype: {self.dtype!r} is neither 'float32' nor 'bfloat16'")
        for name in ("block_tokens", "max_running_per_rank", "threads_per_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is below 1")
        if self.kv_tokens_per_rank < 2 * self.block_tokens:
            raise ValueError(f"kv_tokens_per_rank: {self.kv_tokens_per_rank} is below two blocks")
        if self.step_tokens_per_rank < self.max_running_per_rank:
            raise ValueError(
                f"step_tokens_per_rank: {self.step_tokens_per_rank} is below"
                f" max_running_per_rank ({self.max_running_per_rank}): decodes would starve"
            )
