"""Which tensors a gpt-oss checkpoint holds: names, shapes and dtypes in Hugging Face's layout.

One list for the reader that checks a checkpoint and the writer that makes one. Source of the names:
transformers ``models/gpt_oss`` and the published openai/gpt-oss-20b.
"""

import math
from dataclasses import dataclass

from moeray.worker.model_config import MXFP4_BLOCK, ModelConfig

DTYPE_BYTES = {"BF16": 2, "U8": 1}
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of one tensor; the dtype under its safetensors name."""

    shape: tuple[int, ...]
    dtype: str = "BF16"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def layer_prefix(layer: int) -> str:
    return f"model.layers.{layer}."


def expected_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Every tensor of the checkpoint, in the order of the model."""
    vocabulary = TensorSpec((config.vocabulary_size, config.hidden_size))
    tensors = {"model.embed_tokens.weight": vocabulary}
    for layer in range(config.layers):
        prefix = layer_prefix(layer)
        tensors |= {prefix + name: spec for name, spec in _layer_tensors(config).items()}
    tensors["model.norm.weight"] = TensorSpec((config.hidden_size,))
    tensors["lm_head.weight"] = vocabulary
    return tensors


def _layer_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    hidden, experts = config.hidden_size, config.experts
    query = config.query_heads * config.head_dim
    key_value = config.kv_heads * config.head_dim
    tensors = {
        "input_layernorm.weight": TensorSpec((hidden,)),
        "post_attention_layernorm.weight": TensorSpec((hidden,)),
        "self_attn.sinks": TensorSpec((config.query_heads,)),
        "mlp.router.weight": TensorSpec((experts, hidden)),
        "mlp.router.bias": TensorSpec((experts,)),
    }
    for name, out, width in (
        ("q_proj", query, hidden),
        ("k_proj", key_value, hidden),
        ("v_proj", key_value, hidden),
        ("o_proj", hidden, query),
    ):
        tensors[f"self_attn.{name}.weight"] = TensorSpec((out, width))
        tensors[f"self_attn.{name}.bias"] = TensorSpec((out,))
    for name, out, width in (
        ("gate_up_proj", 2 * config.intermediate_size, hidden),
        ("down_proj", hidden, config.intermediate_size),
    ):
        blocks = (experts, out, width // MXFP4_BLOCK)
        tensors[f"mlp.experts.{name}_blocks"] = TensorSpec((*blocks, MXFP4_BLOCK // 2), "U8")
        tensors[f"mlp.experts.{name}_scales"] = TensorSpec(blocks, "U8")
        tensors[f"mlp.experts.{name}_bias"] = TensorSpec((experts, out))
    return tensors
