"""What config.json says of a gpt-oss model, checked.

Strict on purpose: a checkpoint that differs from what the model computes is refused by name, not
served with other mathematics.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeray.worker.config import EXPERT_GROUPS

ARCHITECTURE = "GptOssForCausalLM"
LAYER_TYPES = ("sliding_attention", "full_attention")
MXFP4_BLOCK = 32


class CheckpointError(Exception):
    """A checkpoint folder is not what it should be; the message names the file and both sides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnConfig:
    """YaRN's parameters, under the names of config.json."""

    theta: float
    factor: float
    original_context: int
    beta_fast: float
    beta_slow: float
    truncate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The sizes of a gpt-oss model. Lengths are in tokens."""

    vocabulary_size: int
    context_length: int
    hidden_size: int
    intermediate_size: int
    query_heads: int
    kv_heads: int
    head_dim: int
    experts: int
    experts_per_token: int
    windowed: tuple[bool, ...]
    """For each layer, whether it attends within the sliding window only."""
    sliding_window: int
    rms_norm_eps: float
    swiglu_limit: float
    swiglu_alpha: float
    yarn: YarnConfig

    @property
    def layers(self) -> int:
        return len(self.windowed)

    @classmethod
    def read(cls, path: Path) -> "ModelConfig":
        """Reads and checks config.json. Raises CheckpointError."""
        return cls.parse(read_json_object(path, "a gpt-oss config.json"), path)

    @classmethod
    def parse(cls, data: Mapping[str, Any], source: Path) -> "ModelConfig":
        """Checks what config.json holds; ``source`` names it in errors. Raises CheckpointError."""
        return _parse(_Reader(source, data))


class _Reader:
    """Takes values out of a JSON object and complains with the file's name and the key's path."""

    def __init__(self, path: Path, data: Mapping[str, Any], prefix: str = "") -> None:
        self._path = path
        self._data = data
        self._prefix = prefix

    def error(self, key: str, found: object, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path}: {self._prefix}{key} is {found!r}, expected {expected}"
        )

    def has(self, key: str) -> bool:
        return self._data.get(key) is not None

    def value(self, key: str, expected: str) -> Any:
        if key not in self._data:
            raise CheckpointError(
                f"{self._path}: {self._prefix}{key} is missing, expected {expected}"
            )
        return self._data[key]

    def positive_int(self, key: str) -> int:
        value = self.value(key, "a positive integer")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(key, value, "a positive integer")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        if default is not None and not self.has(key):
            return default
        value = self.value(key, "a positive number")
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self.error(key, value, "a positive number")
        return float(value)

    def exactly(self, key: str, expected: object) -> None:
        value = self.value(key, repr(expected))
        if type(value) is not type(expected) or value != expected:
            raise self.error(key, value, repr(expected))

    def object(self, key: str) -> "_Reader":
        value = self.value(key, "an object")
        if not isinstance(value, dict):
            raise self.error(key, value, "an object")
        return _Reader(self._path, value, f"{self._prefix}{key}.")


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError, which says that it should be ``what``."""
    if not path.is_file():
        raise CheckpointError(f"{path}: file is missing, expected {what}")
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}), expected {what}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds {type(data).__name__}, expected a JSON object")
    return data


def _parse(reader: _Reader) -> ModelConfig:
    reader.exactly("architectures", [ARCHITECTURE])
    reader.exactly("model_type", "gpt_oss")
    reader.exactly("hidden_act", "silu")
    for key, expected in (("attention_bias", True), ("tie_word_embeddings", False)):
        if reader.has(key):
            reader.exactly(key, expected)
    reader.object("quantization_config").exactly("quant_method", "mxfp4")
    config = ModelConfig(
        vocabulary_size=reader.positive_int("vocab_size"),
        context_length=reader.positive_int("max_position_embeddings"),
        hidden_size=reader.positive_int("hidden_size"),
        intermediate_size=reader.positive_int("intermediate_size"),
        query_heads=reader.positive_int("num_attention_heads"),
        kv_heads=reader.positive_int("num_key_value_heads"),
        head_dim=reader.positive_int("head_dim"),
        experts=reader.positive_int("num_local_experts"),
        experts_per_token=reader.positive_int("num_experts_per_tok"),
        windowed=_windowed(reader),
        sliding_window=reader.positive_int("sliding_window"),
        rms_norm_eps=reader.positive("rms_norm_eps"),
        swiglu_limit=reader.positive("swiglu_limit"),
        swiglu_alpha=reader.positive("swiglu_alpha", 1.702),
        yarn=_yarn(reader),
    )
    _check_sizes(reader, config)
    return config


def _windowed(reader: _Reader) -> tuple[bool, ...]:
    layers = reader.positive_int("num_hidden_layers")
    types = reader.value("layer_types", f"{layers} layer types")
    expected = f"{layers} of {' and '.join(LAYER_TYPES)}"
    if not isinstance(types, list) or len(types) != layers:
        raise reader.error("layer_types", types, expected)
    if not all(kind in LAYER_TYPES for kind in types):
        raise reader.error("layer_types", types, expected)
    return tuple(kind == "sliding_attention" for kind in types)


def _yarn(reader: _Reader) -> YarnConfig:
    """Both spellings: rope_parameters with rope_theta inside, rope_scaling with it beside."""
    rope = reader.object("rope_parameters" if reader.has("rope_parameters") else "rope_scaling")
    rope.exactly("rope_type", "yarn")
    for key in ("attention_factor", "mscale", "mscale_all_dim", "partial_rotary_factor"):
        if rope.has(key):
            raise rope.error(key, rope.value(key, ""), "no such key: gpt-oss does not set it")
    truncate = rope.value("truncate", "false") if rope.has("truncate") else True
    if not isinstance(truncate, bool):
        raise rope.error("truncate", truncate, "true or false")
    return YarnConfig(
        theta=(rope if rope.has("rope_theta") else reader).positive("rope_theta"),
        factor=rope.positive("factor"),
        original_context=rope.positive_int("original_max_position_embeddings"),
        beta_fast=rope.positive("beta_fast", 32.0),
        beta_slow=rope.positive("beta_slow", 1.0),
        truncate=truncate,
    )


def _check_sizes(reader: _Reader, config: ModelConfig) -> None:
    for key, value, unit in (
        ("hidden_size", config.hidden_size, MXFP4_BLOCK),
        ("intermediate_size", config.intermediate_size, MXFP4_BLOCK),
        ("head_dim", config.head_dim, 2),
        ("num_attention_heads", config.query_heads, config.kv_heads),
        ("num_local_experts", config.experts, EXPERT_GROUPS),
    ):
        if value % unit:
            raise reader.error(key, value, f"a multiple of {unit}")
    if config.experts_per_token > config.experts:
        raise reader.error(
            "num_experts_per_tok", config.experts_per_token, f"at most {config.experts}"
        )
