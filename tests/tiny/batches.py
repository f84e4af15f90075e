"""Packed rows of training samples, made by worker processes and kept in a replay buffer.

``python -m tests.tiny.batches`` is one worker: it draws problems, packs their samples into rows and
writes blocks of rows to its standard output, without end. A worker imports no torch. The trainer
draws rows from the buffer at random, while new rows overwrite the oldest, so that it never waits.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from random import Random
from threading import Thread
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from moeray.cluster.tokenizer import HarmonyTokenizer
from tests.tiny.problem_sources import problem_source
from tests.tiny.samples import UNSTORED_TOKEN, Sample, SampleWriter, drawn_effort
from tests.tiny.vocabulary import Vocabulary

ROW_TOKENS = 512
BLOCK_ROWS = 128
OPEN_ROWS = 24
_COUNTS = 3
_BLOCK_BYTES = 8 * _COUNTS + BLOCK_ROWS * ROW_TOKENS * 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """BLOCK_ROWS packed rows [n, ROW_TOKENS], and counts since the block before."""

    tokens: NDArray[np.uint16]
    """Local ids."""
    marks: NDArray[np.uint8]
    """Twice the document's number, which begins at 1 (0 is padding), plus 1 where learned."""
    samples: int
    dropped: int
    """Samples longer than a row."""
    unstored: int
    """Tokens without a row of their own that were not made so on purpose."""

    def to_bytes(self) -> bytes:
        counts = np.array([self.samples, self.dropped, self.unstored], np.int64)
        return counts.tobytes() + self.tokens.tobytes() + self.marks.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Block":
        counts = np.frombuffer(data, np.int64, _COUNTS)
        cells = BLOCK_ROWS * ROW_TOKENS
        tokens = np.frombuffer(data, np.uint16, cells, 8 * _COUNTS)
        marks = np.frombuffer(data, np.uint8, cells, 8 * _COUNTS + 2 * cells)
        samples, dropped, unstored = (int(count) for count in counts)
        return cls(
            tokens=tokens.reshape(BLOCK_ROWS, ROW_TOKENS),
            marks=marks.reshape(BLOCK_ROWS, ROW_TOKENS),
            samples=samples,
            dropped=dropped,
            unstored=unstored,
        )


class Packer:
    """Puts samples into rows, each into the first open row that has room."""

    def __init__(self, row_tokens: int = ROW_TOKENS, open_rows: int = OPEN_ROWS) -> None:
        self._row_tokens, self._open_rows = row_tokens, open_rows
        self._open: list[list[Sample]] = []
        self._used: list[int] = []

    def add(self, sample: Sample) -> list[Sample] | None:
        """Takes a sample of at most a row's length; gives a row when one had to be closed."""
        length = len(sample.tokens)
        for place, used in enumerate(self._used):
            if used + length <= self._row_tokens:
                self._open[place].append(sample)
                self._used[place] += length
                return None
        closed = None
        if len(self._open) == self._open_rows:
            fullest = self._used.index(max(self._used))
            self._used.pop(fullest)
            closed = self._open.pop(fullest)
        self._open.append([sample])
        self._used.append(length)
        return closed


def filled_row(
    samples: list[Sample], row_tokens: int = ROW_TOKENS
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """A row's token ids (vocabulary's, 0 for padding) and marks; see Block."""
    tokens, marks = np.zeros(row_tokens, np.int32), np.zeros(row_tokens, np.uint8)
    place = 0
    for number, sample in enumerate(samples, start=1):
        end = place + len(sample.tokens)
        tokens[place:end] = sample.tokens
        marks[place:end] = np.array(sample.learned, np.uint8) + 2 * number
        place = end
    return tokens, marks


def blocks(source: str, vocabulary: Vocabulary, seed: int) -> Iterator[Block]:
    """Endless blocks of rows; the same seed gives the same blocks."""
    random = Random(seed)
    writer, packer = SampleWriter(HarmonyTokenizer.load()), Packer()
    local_ids = vocabulary.local_ids()
    rows: list[list[Sample]] = []
    samples = dropped = 0
    for problem in problem_source(source)(seed):
        for sample in writer.samples(problem, drawn_effort(random), random):
            if len(sample.tokens) > ROW_TOKENS:
                dropped += 1
            else:
                samples += 1
                closed = packer.add(sample)
                if closed is not None:
                    rows.append(closed)
        if len(rows) >= BLOCK_ROWS:
            filled = [filled_row(row) for row in rows[:BLOCK_ROWS]]
            tokens = np.stack([row for row, _ in filled])
            local = local_ids[tokens]
            unstored = (local == vocabulary.stored) & (tokens != UNSTORED_TOKEN) & (tokens > 0)
            yield Block(
                tokens=local,
                marks=np.stack([marks for _, marks in filled]),
                samples=samples,
                dropped=dropped,
                unstored=int(unstored.sum()),
            )
            rows, samples, dropped = rows[BLOCK_ROWS:], 0, 0


class Workers:
    """Worker processes, and a thread for each that reads its blocks into one queue."""

    def __init__(self, source: str, vocabulary: Path, *, count: int, seed: int, ahead: int = 256):
        self._queue: Queue[bytes] = Queue(ahead)
        self._processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.tiny.batches", str(vocabulary)),
                    *("--source", source, "--seed", str(1000 * seed + worker)),
                ],
                stdout=subprocess.PIPE,
            )
            for worker in range(count)
        ]
        pipes = (process.stdout for process in self._processes)
        self._threads = [
            Thread(target=self._read, args=(pipe,), daemon=True) for pipe in pipes if pipe
        ]
        for thread in self._threads:
            thread.start()

    def ready(self, most: int) -> Iterator[Block]:
        """Blocks that wait already, at most ``most``."""
        for _ in range(most):
            try:
                yield Block.from_bytes(self._queue.get_nowait())
            except Empty:
                self._check()
                return

    def next(self) -> Block:
        """The next block; waits for it."""
        while True:
            try:
                return Block.from_bytes(self._queue.get(timeout=5))
            except Empty:
                self._check()

    def close(self) -> None:
        """Ends the processes and the threads; what they made and nobody took is lost."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        for thread in self._threads:
            while thread.is_alive():
                # A thread may wait for room.
                with suppress(Empty):
                    self._queue.get_nowait()
                thread.join(0.01)

    def _check(self) -> None:
        ended = [p.returncode for p in self._processes if p.poll() is not None]
        if len(ended) == len(self._processes):
            raise RuntimeError(f"every sample worker ended, with statuses {ended}")

    def _read(self, pipe: BinaryIO) -> None:
        with pipe:
            while len(data := pipe.read(_BLOCK_BYTES)) == _BLOCK_BYTES:
                self._queue.put(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--source", default="trained")
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    # The trainer's own thread comes first.
    os.nice(5)
    out = sys.stdout.buffer
    try:
        for block in blocks(options.source, Vocabulary.load(options.vocabulary), options.seed):
            out.write(block.to_bytes())
            out.flush()
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
