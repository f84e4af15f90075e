"""What an engine replica is told when it is deployed: the settings, resolved for this cluster."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moeray.cluster.autoscaling import AutoscalingRules
from moeray.cluster.config import Settings

Device = Literal["cpu", "cuda"]
DType = Literal["float32", "bfloat16"]

_DEFAULT_OUTPUT_TOKENS = 4096
_DEFAULT_OUTPUT_TOKENS_EMBEDDED = 1024
"""The embedded model is tiny: asked for what it was not trained on, it may ramble without an end,
and what it was trained on takes less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A checkpoint that was validated. ``path`` is its folder; lengths are in tokens."""

    name: str
    path: Path
    embedded: bool
    context_length: int
    vocabulary_size: int
    sliding_window: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One engine deployment. Sizes are in tokens, times in seconds."""

    model: ModelFacts
    ranks: int
    device: Device
    dtype: DType
    cluster_token: bytes
    """What gateways and engines prove to each other that they know."""
    loopback: bool
    """Whether the whole cluster is on this machine, so that engines need not be reachable from
    elsewhere."""
    default_max_output_tokens: int
    settings: Settings

    @classmethod
    def resolve(
        cls,
        settings: Settings,
        model: ModelFacts,
        *,
        gpus_per_node: int,
        cluster_token: bytes,
        loopback: bool,
    ) -> "EngineSpec":
        """Settle what the settings leave open, given the GPUs of the cluster's largest node.

        Raises ValueError where the settings ask for what the cluster does not have.
        """
        device: Device
        if settings.device == "auto":
            device = "cuda" if gpus_per_node else "cpu"
        else:
            device = settings.device
        ranks = settings.ranks or _default_ranks(device, gpus_per_node)
        if device == "cuda" and ranks > gpus_per_node:
            raise ValueError(f"ranks: {ranks} need as many GPUs on a node; found {gpus_per_node}")
        default_output = (
            _DEFAULT_OUTPUT_TOKENS_EMBEDDED if model.embedded else _DEFAULT_OUTPUT_TOKENS
        )
        auto_dtype: DType = "bfloat16" if device == "cuda" else "float32"
        return cls(
            model=model,
            ranks=ranks,
            device=device,
            dtype=auto_dtype if settings.dtype == "auto" else settings.dtype,
            cluster_token=cluster_token,
            loopback=loopback,
            default_max_output_tokens=settings.default_max_output_tokens or default_output,
            settings=settings,
        )

    @property
    def placement_bundles(self) -> list[dict[str, float]]:
        """Resources of one engine: the leader's bundle, then one for each rank.

        CPU ranks ask for fractions: whole CPUs would never fit on a small machine, and torch's
        threads are set in the rank anyway.
        """
        rank = {"CPU": 0.1, "GPU": 1.0} if self.device == "cuda" else {"CPU": 0.1}
        return [{"CPU": 0.1}, *(rank.copy() for _ in range(self.ranks))]

    @property
    def autoscaling(self) -> AutoscalingRules | None:
        """How engines scale. None: their number is fixed."""
        settings = self.settings
        if settings.max_engines is None:
            return None
        return AutoscalingRules(
            min_engines=1 if settings.min_engines is None else settings.min_engines,
            max_engines=settings.max_engines,
            target_kv_usage=settings.target_kv_usage,
            target_waiting_tokens=settings.target_waiting_tokens,
            scale_up_delay_s=settings.scale_up_delay_s,
            scale_down_delay_s=settings.scale_down_delay_s,
            scale_to_zero_delay_s=settings.scale_to_zero_delay_s,
        )


def _default_ranks(device: Device, gpus_per_node: int) -> int:
    if device == "cpu":
        return 2
    return max(n for n in (1, 2, 4, 8) if n <= max(1, gpus_per_node))
