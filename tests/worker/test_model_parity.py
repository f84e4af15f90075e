"""The model against transformers' GptOss, from one folder: logits at prefill and at every step.

The comparison itself is tested too: each part of the model, broken alone, must fail it.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moeray.kernels import reference as ops
from moeray.worker.checkpoint import Checkpoint
from moeray.worker.communicator import SingleRank
from moeray.worker.model import Model
from tests.worker.paged_run import CPU, PagedRun
from tests.worker.parity import (
    TOLERANCE,
    error,
    make_loud,
    random_text,
    rewrite,
    transformers_logits,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_loud(tmp_path_factory.mktemp("parity") / "checkpoint")


@pytest.fixture(scope="module")
def texts() -> dict[str, list[int]]:
    lengths = {"long": 210, "longer": 275, "short": 45}
    return {name: random_text(length, seed=length) for name, length in lengths.items()}


@pytest.fixture(scope="module")
def wanted(folder: Path, texts: dict[str, list[int]]) -> dict[str, Tensor]:
    return transformers_logits(folder, texts)


class _Progress:
    """Feeds texts to a run chunk by chunk and compares every logit that comes out."""

    def __init__(
        self, folder: Path, texts: dict[str, list[int]], wanted: dict[str, Tensor]
    ) -> None:
        self.run = PagedRun(folder)
        self.done = dict.fromkeys(texts, 0)
        self._texts = texts
        self._wanted = wanted

    def step(self, *, padding: int = 0, **rows: int) -> None:
        chunks = {}
        for name, count in rows.items():
            start = self.done[name]
            chunks[name] = self._texts[name][start : start + count]
            self.done[name] += count
        got = self.run.step(chunks, padded_rows=sum(rows.values()) + padding)
        for name in rows:
            want = self._wanted[name][self.done[name] - 1]
            assert error(got[name], want) <= TOLERANCE, f"{name} at {self.done[name] - 1}"


def test_prefill_in_one_chunk(
    folder: Path, texts: dict[str, list[int]], wanted: dict[str, Tensor]
) -> None:
    _Progress(folder, texts, wanted).step(long=210)


def test_batched_chunked_and_decoded_past_the_window(
    folder: Path, texts: dict[str, list[int]], wanted: dict[str, Tensor]
) -> None:
    progress = _Progress(folder, texts, wanted)
    progress.step(long=100, short=3)
    progress.step(long=1, short=20, longer=60, padding=5)
    progress.step(long=79, short=1, longer=140, padding=1)
    while progress.done["short"] < 45:
        progress.step(long=1, short=1, longer=1, padding=progress.done["short"] % 4)
    while progress.done["long"] < 210:
        progress.step(longer=1, long=1)
    progress.step(longer=275 - progress.done["longer"])
    assert progress.done == {name: len(text) for name, text in texts.items()}


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 127},
        {"sliding_window": 129},
        {"swiglu_limit": 6.0},
        {"swiglu_alpha": 1.69},
        {"experts_per_token": 3},
        {"rms_norm_eps": 1e-3},
        {"yarn": {"factor": 31.0}},
        {"yarn": {"truncate": True}},
    ],
    ids=str,
)
def test_comparison_sees_a_small_change(
    change: dict[str, Any], folder: Path, texts: dict[str, list[int]], wanted: dict[str, Tensor]
) -> None:
    run = PagedRun(folder)
    config = run.model.config
    if "yarn" in change:
        change = {"yarn": dataclasses.replace(config.yarn, **change["yarn"])}
    checkpoint = dataclasses.replace(
        Checkpoint.open(folder), config=dataclasses.replace(config, **change)
    )
    run.model = Model.load(checkpoint, device=CPU, dtype=torch.float32, communicator=SingleRank())
    got = run.step({"long": texts["long"]})["long"]
    assert error(got, wanted["long"][-1]) > 2 * TOLERANCE


@pytest.mark.parametrize(
    "part",
    [
        "sinks",
        "q_proj.bias",
        "k_proj.bias",
        "v_proj.bias",
        "o_proj.bias",
        "router.bias",
        "gate_up_proj_bias",
        "down_proj_bias",
    ],
)
def test_comparison_sees_every_bias(
    part: str, folder: Path, tmp_path: Path, texts: dict[str, list[int]], wanted: dict[str, Tensor]
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    # Not the same for all: a constant on every expert or every sink would change little.
    rewrite(other, lambda name, t: t * 1.5 if name.endswith(part) else t)
    got = PagedRun(other).step({"long": texts["long"]})["long"]
    assert error(got, wanted["long"][-1]) > 2 * TOLERANCE


def _no_sinks(*args: Any, **kwargs: Any) -> Tensor:
    return _paged_attention(*args[:7], torch.full_like(args[7], -torch.inf), **kwargs)


def _swiglu_of_halves(gate_up: Tensor, *, limit: float, alpha: float) -> Tensor:
    halves = gate_up.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    return _clamped_swiglu(halves, limit=limit, alpha=alpha)


def _swiglu_swapped(gate_up: Tensor, *, limit: float, alpha: float) -> Tensor:
    swapped = gate_up.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return _clamped_swiglu(swapped, limit=limit, alpha=alpha)


def _swiglu_gate_unclamped(gate_up: Tensor, *, limit: float, alpha: float) -> Tensor:
    gate, up = gate_up[..., ::2], gate_up[..., 1::2].clamp(min=-limit, max=limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


def _swiglu_up_unclamped(gate_up: Tensor, *, limit: float, alpha: float) -> Tensor:
    gate, up = gate_up[..., ::2].clamp(max=limit), gate_up[..., 1::2]
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


def _swiglu_without_one(gate_up: Tensor, *, limit: float, alpha: float) -> Tensor:
    gate = gate_up[..., ::2].clamp(max=limit)
    return gate * torch.sigmoid(alpha * gate) * gate_up[..., 1::2].clamp(min=-limit, max=limit)


def _high_nibble_first(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return _dequantize(blocks << 4 | blocks >> 4, scales, dtype)


def _scales_an_octave_off(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return _dequantize(blocks, scales + 1, dtype)


def _rope_of_neighbours(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    halves = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    turned = _apply_rope(halves, cosine, sine)
    return turned.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def _softmax_over_all(x: Tensor, weight: Tensor, bias: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    experts, _ = _route(x, weight, bias, top_k)
    logits = torch.nn.functional.linear(x.float(), weight.float(), bias.float())
    return experts, logits.softmax(-1).gather(1, experts)


_paged_attention = ops.paged_attention
_clamped_swiglu = ops.clamped_swiglu
_dequantize = ops.dequantize_mxfp4
_apply_rope = ops.apply_rope
_route = ops.route


@pytest.mark.parametrize(
    ("op", "broken"),
    [
        ("paged_attention", _no_sinks),
        ("clamped_swiglu", _swiglu_of_halves),
        ("clamped_swiglu", _swiglu_swapped),
        ("clamped_swiglu", _swiglu_gate_unclamped),
        ("clamped_swiglu", _swiglu_up_unclamped),
        ("clamped_swiglu", _swiglu_without_one),
        ("dequantize_mxfp4", _high_nibble_first),
        ("dequantize_mxfp4", _scales_an_octave_off),
        ("apply_rope", _rope_of_neighbours),
        ("yarn_attention_scaling", lambda factor: 1.0),
        ("route", _softmax_over_all),
    ],
)
def test_comparison_sees_a_broken_op(
    op: str,
    broken: Callable[..., Any],
    folder: Path,
    texts: dict[str, list[int]],
    wanted: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops, op, broken)
    got = PagedRun(folder).step({"long": texts["long"]})["long"]
    assert error(got, wanted["long"][-1]) > 2 * TOLERANCE
