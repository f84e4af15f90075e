"""config.json: both spellings are read, and what differs from gpt-oss is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from moeray.worker.checkpoint_shape import CheckpointSize, config_json
from moeray.worker.model_config import CheckpointError, ModelConfig, YarnConfig

SOURCE = Path("some/config.json")


def _config(**changes: Any) -> dict[str, Any]:
    config = config_json(CheckpointSize.GPT_OSS_20B.shape) | changes
    return {key: value for key, value in config.items() if value != "absent"}


def test_reads_gpt_oss_20b() -> None:
    config = ModelConfig.parse(_config(), SOURCE)
    assert (config.layers, config.experts, config.experts_per_token) == (24, 32, 4)
    assert (config.hidden_size, config.intermediate_size) == (2880, 2880)
    assert (config.query_heads, config.kv_heads, config.head_dim) == (64, 8, 64)
    assert config.windowed == (True, False) * 12
    assert (config.vocabulary_size, config.context_length) == (201088, 131072)
    assert (config.sliding_window, config.swiglu_limit, config.swiglu_alpha) == (128, 7.0, 1.702)
    assert config.yarn == YarnConfig(
        theta=150000.0,
        factor=32.0,
        original_context=4096,
        beta_fast=32.0,
        beta_slow=1.0,
        truncate=False,
    )


def test_reads_rope_parameters_as_newer_transformers_writes_them() -> None:
    rope = _config()["rope_scaling"] | {"rope_theta": 5.0}
    config = _config(rope_scaling="absent", rope_theta="absent", rope_parameters=rope)
    assert ModelConfig.parse(config, SOURCE).yarn.theta == 5.0


def test_transformers_reads_and_writes_the_same_config(tmp_path: Path) -> None:
    from transformers import AutoConfig

    written = tmp_path / "config.json"
    written.write_text(json.dumps(_config()))
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert ModelConfig.parse(again, SOURCE) == ModelConfig.read(written)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "architectures is .*Llama.*GptOssForCausalLM"),
        ({"architectures": "absent"}, "architectures is missing, expected .*GptOssForCausalLM"),
        ({"model_type": "llama"}, "model_type is 'llama', expected 'gpt_oss'"),
        ({"hidden_size": 2900}, "hidden_size is 2900, expected a multiple of 32"),
        ({"hidden_size": "2880"}, "hidden_size is '2880', expected a positive integer"),
        ({"hidden_size": True}, "hidden_size is True, expected a positive integer"),
        ({"hidden_size": "absent"}, "hidden_size is missing, expected a positive integer"),
        ({"intermediate_size": 16}, "intermediate_size is 16, expected a multiple of 32"),
        ({"head_dim": 63}, "head_dim is 63, expected a multiple of 2"),
        ({"num_attention_heads": 60}, "num_attention_heads is 60, expected a multiple of 8"),
        ({"num_local_experts": 12}, "num_local_experts is 12, expected a multiple of 8"),
        ({"num_experts_per_tok": 33}, "num_experts_per_tok is 33, expected at most 32"),
        ({"num_hidden_layers": 23}, "layer_types is .*, expected 23 of"),
        ({"layer_types": ["dense"] * 24}, "layer_types is .*dense.*full_attention"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0, expected a positive number"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True, expected False"),
        ({"attention_bias": False}, "attention_bias is False, expected True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
        ({"quantization_config": "absent"}, "quantization_config is missing"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config.quant_method is"),
        ({"rope_scaling": "absent"}, "rope_scaling is missing"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.rope_type is 'linear'"),
        ({"rope_theta": "absent"}, "rope_theta is missing"),
    ],
    ids=str,
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        ModelConfig.parse(_config(**changes), SOURCE)
    assert str(SOURCE) in str(caught.value)


@pytest.mark.parametrize("key", ["attention_factor", "mscale"])
def test_refuses_rope_that_would_be_ignored(key: str) -> None:
    rope = _config()["rope_scaling"] | {key: 2.0}
    with pytest.raises(CheckpointError, match=f"rope_scaling.{key} is 2.0"):
        ModelConfig.parse(_config(rope_scaling=rope), SOURCE)


@pytest.mark.parametrize(("content", "message"), [("{", "not valid JSON"), ("[]", "holds list")])
def test_refuses_what_is_no_object(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.read(path)


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: file is missing"):
        ModelConfig.read(tmp_path / "config.json")
