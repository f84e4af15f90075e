"""The dimensions of gpt-oss that kernels are measured at."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    name: str
    experts: int
    hidden: int = 2880
    width: int = 2880
    top_k: int = 4
    query_heads: int = 64
    kv_heads: int = 8
    head_dim: int = 64
    vocabulary: int = 201088


MODELS = (Dimensions(name="20b", experts=32), Dimensions(name="120b", experts=128))
