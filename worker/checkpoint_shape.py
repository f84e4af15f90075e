"""The sizes of the checkpoints that Moeray makes, and the config.json that goes with each."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from moeray.vocabulary.harmony_tokens import END_OF_TEXT, RETURN, VOCABULARY_SIZE
from moeray.worker.checkpoint_layout import TensorSpec, expected_tensors
from moeray.worker.model_config import ARCHITECTURE, ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointShape:
    """Sizes of a gpt-oss model. Lengths are in tokens; even layers are windowed, as in gpt-oss."""

    layers: int
    experts: int
    hidden_size: int
    intermediate_size: int
    query_heads: int
    kv_heads: int
    head_dim: int
    experts_per_token: int = 4
    vocabulary_size: int = VOCABULARY_SIZE
    context_length: int = 131072
    sliding_window: int = 128


class CheckpointSize(StrEnum):
    """Named sizes: the embedded model, and OpenAI's two."""

    TINY = "tiny"
    GPT_OSS_20B = "20b"
    GPT_OSS_120B = "120b"

    @property
    def shape(self) -> CheckpointShape:
        match self:
            case CheckpointSize.TINY:
                return CheckpointShape(
                    layers=6,
                    experts=16,
                    hidden_size=192,
                    intermediate_size=192,
                    query_heads=8,
                    kv_heads=4,
                    head_dim=32,
                )
            case CheckpointSize.GPT_OSS_20B:
                return _published(layers=24, experts=32)
            case CheckpointSize.GPT_OSS_120B:
                return _published(layers=36, experts=128)


def _published(*, layers: int, experts: int) -> CheckpointShape:
    return CheckpointShape(
        layers=layers,
        experts=experts,
        hidden_size=2880,
        intermediate_size=2880,
        query_heads=64,
        kv_heads=8,
        head_dim=64,
    )


def config_json(shape: CheckpointShape) -> dict[str, Any]:
    """The config.json of a checkpoint of that shape, with the keys of openai/gpt-oss-20b's."""
    config = {
        "architectures": [ARCHITECTURE],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "experts_per_token": shape.experts_per_token,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "layer_types": [
            "full_attention" if layer % 2 else "sliding_attention" for layer in range(shape.layers)
        ],
        "max_position_embeddings": shape.context_length,
        "model_type": "gpt_oss",
        "num_attention_heads": shape.query_heads,
        "num_experts_per_tok": shape.experts_per_token,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "num_local_experts": shape.experts,
        "output_router_logits": False,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": shape.sliding_window,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocabulary_size,
    }
    if shape.vocabulary_size == VOCABULARY_SIZE:
        # A smaller vocabulary, as tests use, does not hold these tokens.
        config |= {"eos_token_id": RETURN, "pad_token_id": END_OF_TEXT}
    return config


def shape_tensors(shape: CheckpointShape) -> dict[str, TensorSpec]:
    """Every tensor of a checkpoint of that shape, in the order of the model.

    Raises CheckpointError where no gpt-oss model has such a shape.
    """
    return expected_tensors(ModelConfig.parse(config_json(shape), Path("config.json")))
