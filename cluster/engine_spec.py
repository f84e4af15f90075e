"""What an engine replica is told when it is deployed: the settings, resolved for this cluster."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moeray.cluster.config import Settings

Device = Literal["cpu", "cuda"]
DType = Literal["float32", "bfloat16"]

_DEFAULT_OUTPUT_TOKENS = 4096
_DEFAULT_OUTPUT_TOKENS_EMBEDDED = 256
"""The embedded model's weights are random: it would fill any limit with noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A checkpoint that was validated. ``path`` is its folder."""

    name: str
    path: Path
    embedded: bool


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


def _default_ranks(device: Device, gpus_per_node: int) -> int:
    if device == "cpu":
        return 2
    return max(n for n in (1, 2, 4, 8) if n <= max(1, gpus_per_node))
