"""The model against transformers' GptOss, from one folder: logits at prefill and at every step."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GptOssForCausalLM, Mxfp4Config

from moeray.worker.checkpoint import Checkpoint
from moeray.worker.communicator import SingleRank
from moeray.worker.model import Model
from tests.worker.paged_run import CPU, SMALL, PagedRun, make_small

TOLERANCE = 1e-4
"""Of the greatest logit."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights far from Moeray's small ones, so that each part of the model moves the logits."""
    path = make_small(tmp_path_factory.mktemp("parity") / "checkpoint")
    _rewrite(path, _louder)
    return path


def _rewrite(folder: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    for shard in folder.glob("*.safetensors"):
        tensors = {name: change(name, tensor) for name, tensor in load_file(shard).items()}
        save_file(tensors, shard, metadata={"format": "pt"})


def _louder(name: str, tensor: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(len(name))
    if tensor.dtype == torch.uint8:
        # Two octaves up, and scales that differ from block to block.
        if name.endswith("scales"):
            octaves = torch.randint(0, 4, tensor.shape, generator=generator, dtype=torch.uint8)
            return tensor + octaves
        return tensor
    if name.endswith("bias"):
        return tensor * 25
    if name.endswith("sinks"):
        return tensor * 3
    if name.endswith("norm.weight"):
        return (1 + 0.3 * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
    if name.endswith("o_proj.weight"):
        return tensor * 8
    if name.endswith("router.weight"):
        return tensor * 3
    return tensor


@pytest.fixture(scope="module")
def texts() -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = {"long": 210, "longer": 275, "short": 45}
    return {
        name: torch.randint(SMALL.vocabulary_size, (length,), generator=generator).tolist()
        for name, length in lengths.items()
    }


@pytest.fixture(scope="module")
def wanted(folder: Path, texts: dict[str, list[int]]) -> dict[str, Tensor]:
    """transformers' logits [tokens, vocabulary] of each text."""
    reference = GptOssForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=Mxfp4Config(dequantize=True),
        attn_implementation="eager",
        # The other implementations may compute in bfloat16.
        experts_implementation="eager",
    )
    # Older versions leave the dequantised experts in bfloat16, which holds them exactly.
    reference = reference.eval().to(CPU, torch.float32)
    with torch.no_grad():
        return {name: reference(torch.tensor([text])).logits[0] for name, text in texts.items()}


def _error(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


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
            assert _error(got[name], want) <= TOLERANCE, f"{name} at {self.done[name] - 1}"


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
    assert _error(got, wanted["long"][-1]) > 2 * TOLERANCE


@pytest.mark.parametrize("part", ["sinks", "q_proj.bias", "router.bias", "down_proj_bias"])
def test_comparison_sees_every_part(
    part: str, folder: Path, tmp_path: Path, texts: dict[str, list[int]], wanted: dict[str, Tensor]
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    _rewrite(other, lambda name, t: t + 0.1 if name.endswith(part) else t)
    got = PagedRun(other).step({"long": texts["long"]})["long"]
    assert _error(got, wanted["long"][-1]) > 2 * TOLERANCE
