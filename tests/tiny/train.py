"""Trains the embedded model on one GPU, in runs that each go on where the last one ended.

``python -m tests.tiny.train --out DIR --steps-total N --minutes M``; a later run adds
``--resume DIR``. The folder gets the vocabulary, the state, the weights alone in small files, and
weights.safetensors, the packaged file.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

from moeray.worker.checkpoint_shape import CheckpointShape, CheckpointSize
from tests.tiny.batches import ROW_TOKENS, Workers
from tests.tiny.check import HeldOutCheck
from tests.tiny.loss import Losses
from tests.tiny.model import ModelOptions, TinyModel
from tests.tiny.optimiser import OptimiserOptions
from tests.tiny.packaged import export, load_packaged, packaged_vocabulary
from tests.tiny.replay import ReplayBuffer
from tests.tiny.trainer import Trainer
from tests.tiny.vocabulary import PROBLEMS, Vocabulary

TOY = CheckpointShape(
    layers=2,
    experts=8,
    hidden_size=64,
    intermediate_size=32,
    query_heads=4,
    kv_heads=2,
    head_dim=16,
)
SHAPES = {"tiny": CheckpointSize.TINY.shape, "toy": TOY}
REPORT_STEPS = 50
REFILL_STEPS = 16
REFILL_BLOCKS = 24
SAVE_SECONDS = 120
USED_EXPERT = 0.01
"""The share of its layer's choices from which an expert counts as used."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="the folder of the run before")
    parser.add_argument("--start", type=Path, help="a packaged file, instead of random weights")
    parser.add_argument("--steps-total", type=int)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--batch-rows", type=int, default=256)
    parser.add_argument("--buffer-rows", type=int, default=200_000)
    parser.add_argument("--first-rows", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--source", default="trained")
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--vocabulary-problems", type=int, default=PROBLEMS)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--muon-rate", type=float, default=0.02)
    parser.add_argument("--adam-rate", type=float, default=3e-3)
    parser.add_argument("--decay-share", type=float, default=0.35)
    parser.add_argument("--check-problems", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true")
    chosen = parser.parse_args()
    if chosen.start and (chosen.resume or chosen.vocabulary):
        parser.error("--start goes with neither --resume nor --vocabulary")
    return chosen


def vocabulary_file(chosen: argparse.Namespace) -> Path:
    """The list of stored tokens: the given one, the resumed run's, or a new one in ``out``."""
    file: Path = chosen.out / "vocabulary.json"
    given = chosen.vocabulary or (chosen.resume and chosen.resume / file.name)
    if chosen.start:
        packaged_vocabulary(chosen.start).save(file)
    elif given and given != file:
        Vocabulary.load(given).save(file)
    if not file.exists():
        command = [sys.executable, "-m", "tests.tiny.vocabulary", str(file)]
        command += ["--source", chosen.source, "--problems", str(chosen.vocabulary_problems)]
        command += ["--processes", str(max(chosen.workers, 1))]
        subprocess.run(command, check=True)
    return file


def trainer_of(chosen: argparse.Namespace, vocabulary: Vocabulary) -> Trainer:
    torch.manual_seed(chosen.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # bfloat16 products are slower than float32's on a CPU.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    how = ModelOptions(dtype=dtype, compiled=not chosen.no_compile)
    model = TinyModel(SHAPES[chosen.shape], vocabulary.stored, how).to(device)
    rates = OptimiserOptions(
        muon_rate=chosen.muon_rate, adam_rate=chosen.adam_rate, decay_share=chosen.decay_share
    )
    if chosen.start is not None:
        load_packaged(model, chosen.start)
    if chosen.resume is None and chosen.steps_total is None:
        raise SystemExit("--steps-total is needed unless a run is resumed")
    trainer = Trainer(model, rates, total_steps=chosen.steps_total or 0)
    if chosen.resume is not None:
        trainer.resume(chosen.resume, total_steps=chosen.steps_total)
    return trainer


def seed_of(chosen: argparse.Namespace, trainer: Trainer) -> int:
    """Of what a run draws. Another one in every run, also in one that starts from a packaged file
    if it is given another --seed.
    """
    return 1000 * (1 + chosen.seed) + trainer.run


class Loop:
    """Trains until the steps or the minutes are over."""

    def __init__(
        self, chosen: argparse.Namespace, trainer: Trainer, vocabulary: Vocabulary, began: float
    ) -> None:
        self._chosen, self._trainer, self._vocabulary = chosen, trainer, vocabulary
        self._device = next(trainer.model.parameters()).device
        self._buffer = ReplayBuffer(chosen.buffer_rows, self._device, seed_of(chosen, trainer))
        self._ends = began + 60 * chosen.minutes
        self._began = began
        self._mark = (time.monotonic(), trainer.step, 0)

    def run(self, workers: Workers) -> None:
        while self._buffer.added < self._chosen.first_rows:
            self._buffer.add([workers.next()])
        print(f"{self._seconds():.0f} s: {self._buffer.added} rows, training begins", flush=True)
        self._mark = (time.monotonic(), self._trainer.step, self._buffer.added)
        saved = time.monotonic()
        while not self._trainer.done and time.monotonic() < self._ends:
            if self._trainer.step % REFILL_STEPS == 0:
                self._buffer.add(list(workers.ready(REFILL_BLOCKS)))
            losses = self._trainer.train(self._buffer.draw(self._chosen.batch_rows))
            if self._trainer.step % REPORT_STEPS == 0:
                # Reading the losses waits for the device, so that the time is the steps' own.
                self._report(losses)
            if time.monotonic() - saved > SAVE_SECONDS:
                self._trainer.save(self._chosen.out)
                saved = time.monotonic()

    def finish(self) -> None:
        self._trainer.save(self._chosen.out)
        export(self._trainer.model, self._vocabulary, self._chosen.out / "weights.safetensors")
        buffer = self._buffer
        long = f"{buffer.dropped} samples were too long"
        print(f"{buffer.samples} samples, {long}, {buffer.unstored} tokens unstored", flush=True)

    def _report(self, losses: Losses) -> None:
        answers = losses.answers.item()
        if not answers == answers:
            raise SystemExit(f"step {self._trainer.step}: the loss is not a number")
        then, step, rows = self._mark
        now, added = time.monotonic(), self._buffer.added
        elapsed, steps = now - then, self._trainer.step - step
        tokens = steps * self._chosen.batch_rows * ROW_TOKENS / elapsed
        load = losses.routing.load
        used = int((load > USED_EXPERT).sum())
        print(
            f"{self._seconds():.0f} s step {self._trainer.step}: answers {answers:.4f}"
            f" unknown {losses.unknown.item():.3f} balance {losses.routing.balance.item():.2f}"
            f" z {losses.routing.z.item():.1f} experts {used}/{load.numel()}"
            f" rate {self._trainer.schedule.factor(self._trainer.step):.3f}"
            f" {tokens / 1e6:.3f} Mtok/s {(added - rows) / elapsed:.0f} new rows/s"
            f" uses {self._buffer.drawn / max(added, 1):.2f}",
            flush=True,
        )
        self._mark = (now, self._trainer.step, added)

    def _seconds(self) -> float:
        return time.monotonic() - self._began


def main() -> None:
    began = time.monotonic()
    chosen = options()
    chosen.out.mkdir(parents=True, exist_ok=True)
    file = vocabulary_file(chosen)
    vocabulary = Vocabulary.load(file)
    trainer = trainer_of(chosen, vocabulary)
    print(f"{vocabulary.stored} stored tokens, run {trainer.run} from step {trainer.step}")
    loop = Loop(chosen, trainer, vocabulary, began)
    seed = seed_of(chosen, trainer)
    workers = Workers(chosen.source, file, count=chosen.workers, seed=seed)
    try:
        loop.run(workers)
    finally:
        workers.close()
    loop.finish()
    if chosen.check_problems:
        check = HeldOutCheck(chosen.source, vocabulary, problems=chosen.check_problems)
        print("held out: low, medium, high", flush=True)
        torch.cuda.empty_cache()
        for line in check.report(check.run(trainer.model)):
            print(line, flush=True)
        print(f"{time.monotonic() - began:.0f} s: checked", flush=True)


if __name__ == "__main__":
    main()
