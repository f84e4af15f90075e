"""Attention and the FP8 cache beyond op against reference: repeats, round trips, bad input."""

from typing import Any

import pytest
import torch

from moeray.kernels import reference
from moeray.kernels.attention_decode import DecodeConfig, decode_attention, decode_config
from moeray.kernels.attention_pages import AttentionShape
from moeray.kernels.attention_prefill import paged_attention, prefill_attention
from tests.kernels.attention_cases import TINY, Paged
from tests.kernels.op_cases import Draw, relative_error

DECODING = Paged(sequences=((70, 1), (3, 1), (40, 1)), **TINY)
PREFILLING = Paged(sequences=((30, 20), (9, 4)), **TINY)


def _arguments(paged: Paged, device: torch.device) -> dict[str, Any]:
    return paged.arguments(Draw.of("attention", device))


def test_decode_repeats_bit_for_bit_and_leaves_its_counters_zero(device: torch.device) -> None:
    arguments = _arguments(DECODING, device)
    config = DecodeConfig(block_keys=16, splits=3, least_tiles=1, warps=4, stages=3)
    counters = torch.zeros(3 * TINY["kv_heads"] + 5, dtype=torch.int32, device=device)
    first, second = (
        decode_attention(**arguments, counters=counters, config=config) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert not counters.any()


def test_both_kernels_agree_on_decoding_sequences(device: torch.device) -> None:
    arguments = _arguments(DECODING, device)
    decoded = paged_attention(**arguments, rows_each=1)
    assert relative_error(paged_attention(**arguments), decoded) < 5e-3


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("columns", [1, 8, 512, 8192])
@pytest.mark.parametrize("rows", [1, 8, 64, 512])
def test_decode_config_fills_the_device_and_no_more(
    rows: int, columns: int, windowed: bool
) -> None:
    shape = AttentionShape(
        rows=rows,
        sequences=rows,
        query_heads=64,
        kv_heads=8,
        head_dim=64,
        block_tokens=16,
        columns=columns,
        scaled=False,
    )
    config = decode_config(shape, 128 if windowed else None, 132)
    keys = min(columns * 16, 128) if windowed else columns * 16
    assert 1 <= config.splits <= 32
    assert config.least_tiles >= 1
    # Every split has work where a context fills its table.
    assert (config.splits - 1) * config.least_tiles * config.block_keys < keys
    if keys >= 8192:
        assert rows * 8 * config.splits >= 132


def test_fp8_cache_holds_what_was_written(device: torch.device) -> None:
    """Written by the reference, read by the ops: within e4m3's rounding of the bfloat16 cache."""
    draw = Draw.of("fp8", device)
    arguments = _arguments(PREFILLING, device)
    exact = reference.paged_attention(**arguments)
    shape = arguments["key_cache"].shape
    slots = draw.permutation(shape[0] * shape[1])
    contents = {}
    for name in ("key", "value"):
        contents[f"{name}s"] = arguments[f"{name}_cache"].flatten(0, 1)[slots].nan_to_num()
        arguments[f"{name}_cache"] = torch.zeros(shape, device=device).to(torch.float8_e4m3fn)
        arguments[f"{name}_scales"] = torch.zeros(shape[:3], device=device)
    pages = {name: arguments[name] for name in arguments if name.startswith(("key", "value"))}
    reference.write_kv(**contents, **pages, slots=slots)
    for attend in (prefill_attention, reference.paged_attention):
        off = relative_error(attend(**arguments), exact)
        assert 1e-3 < off < 5e-2


def _wrong(arguments: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    cache = arguments["key_cache"]
    scales = torch.ones(cache.shape[:3], device=cache.device)
    fp8 = {"key_cache": cache.to(torch.float8_e4m3fn), "value_cache": cache.to(torch.float8_e4m3fn)}
    return [
        ("queries", {"queries": arguments["queries"].flatten(1)}),
        ("queries", {"queries": arguments["queries"].transpose(0, 1).contiguous().transpose(0, 1)}),
        ("key_cache", {"key_cache": cache[..., :16]}),
        ("key_cache", {"key_cache": cache[:, :8].contiguous()}),
        ("value_cache", {"value_cache": cache[1:]}),
        ("value_cache", {"value_cache": cache.float()}),
        ("row_starts", {"row_starts": arguments["row_starts"][1:]}),
        ("positions", {"positions": arguments["positions"][1:]}),
        ("block_table", {"block_table": arguments["block_table"][0]}),
        ("first_blocks", {"first_blocks": arguments["first_blocks"][1:]}),
        ("sinks", {"sinks": arguments["sinks"][1:]}),
        ("scale", {"scale": 0.0}),
        ("window", {"window": 0}),
        ("key_scales", {"key_scales": scales}),
        ("key_scales", {**fp8, "value_scales": scales}),
        ("value_scales", {**fp8, "key_scales": scales, "value_scales": scales[1:]}),
    ]


def test_bad_input_is_named(device: torch.device) -> None:
    arguments = _arguments(DECODING, device)
    for name, wrong in _wrong(arguments):
        for attend in (decode_attention, prefill_attention):
            with pytest.raises(ValueError, match=f"^{name}: "):
                attend(**{**arguments, **wrong})
    with pytest.raises(ValueError, match=r"^rows_each: "):
        paged_attention(**arguments, rows_each=2)
    with pytest.raises(ValueError, match=r"^counters: "):
        decode_attention(**arguments, counters=torch.zeros(1, dtype=torch.int32, device=device))
