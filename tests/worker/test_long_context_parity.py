"""The model against transformers past 4096 positions, where YaRN's stretching matters."""

import dataclasses
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
from tests.worker.parity import TOLERANCE, error, make_loud, random_text, transformers_logits

PREFILL = 4140
"""Tokens computed in chunks, beyond the original context of 4096."""
DECODED = 20
CHUNK = 1035


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_loud(tmp_path_factory.mktemp("long") / "checkpoint")


@pytest.fixture(scope="module")
def text() -> list[int]:
    return random_text(PREFILL + DECODED, seed=4)


@pytest.fixture(scope="module")
def wanted(folder: Path, text: list[int]) -> Tensor:
    return transformers_logits(folder, {"text": text})["text"]


def _run(folder: Path) -> PagedRun:
    return PagedRun(folder, kv_tokens=8192, step_tokens=CHUNK)


def test_chunked_prefill_and_decode(folder: Path, text: list[int], wanted: Tensor) -> None:
    run, done = _run(folder), 0
    for rows in [CHUNK] * (PREFILL // CHUNK) + [1] * DECODED:
        got = run.step({"text": text[done : done + rows]})["text"]
        done += rows
        assert error(got, wanted[done - 1]) <= TOLERANCE, f"at {done - 1}"
    assert done == len(text)


def _prefill(run: PagedRun, text: list[int]) -> Tensor:
    for start in range(0, PREFILL, CHUNK):
        got = run.step({"text": text[start : start + CHUNK]})["text"]
    return got


@pytest.mark.parametrize(
    "change",
    [{"factor": 31.5}, {"beta_fast": 31.0}, {"beta_slow": 1.1}, {"original_context": 4000}],
    ids=str,
)
def test_comparison_sees_other_yarn(
    change: dict[str, Any], folder: Path, text: list[int], wanted: Tensor
) -> None:
    run = _run(folder)
    config = run.model.config
    other = dataclasses.replace(config, yarn=dataclasses.replace(config.yarn, **change))
    checkpoint = dataclasses.replace(Checkpoint.open(folder), config=other)
    run.model = Model.load(checkpoint, device=CPU, dtype=torch.float32, communicator=SingleRank())
    assert error(_prefill(run, text), wanted[PREFILL - 1]) > 2 * TOLERANCE


def test_comparison_sees_missing_attention_scaling(
    folder: Path, text: list[int], wanted: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "yarn_attention_scaling", lambda factor: 1.0)
    assert error(_prefill(_run(folder), text), wanted[PREFILL - 1]) > 2 * TOLERANCE
