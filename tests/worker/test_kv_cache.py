"""Cache tensors have the planned sizes, layer by layer."""

from pathlib import Path

import torch

from moeray.worker.checkpoint_shape import config_json
from moeray.worker.config import EngineConfig
from moeray.worker.kv_cache import KvCache
from moeray.worker.model_config import ModelConfig
from tests.random_model import SHAPE
from tests.worker.paged_run import CPU


def test_allocate() -> None:
    config = ModelConfig.parse(config_json(SHAPE), Path("config.json"))
    engine = EngineConfig(model=Path("model"), max_running_per_rank=4, kv_tokens_per_rank=8192)
    kv = KvCache.allocate(config, engine, CPU, torch.bfloat16)
    windowed, full = kv.plan.window_blocks, kv.plan.full_blocks
    assert windowed < full == 513
    assert [len(layer.keys) for layer in kv.layers] == [windowed, full, windowed, full]
    for layer in kv.layers:
        assert layer.keys.shape == layer.values.shape
        assert layer.keys.shape[1:] == (engine.block_tokens, config.kv_heads, config.head_dim)
        assert layer.keys.dtype == torch.bfloat16
        assert not layer.keys.any()
        assert layer.keys.data_ptr() != layer.values.data_ptr()
