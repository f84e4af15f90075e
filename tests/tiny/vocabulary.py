"""Which tokens have rows of their own: those that training problems use, every number, control.

``python -m tests.tiny.vocabulary FILE`` draws problems in several processes and writes the list.
The same problems give the same list. No torch.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.vocabulary.harmony_tokens import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    MESSAGE,
    RETURN,
    START,
    VOCABULARY_SIZE,
)
from tests.tiny.problem_sources import problem_source
from tests.tiny.samples import EFFORTS, UNSTORED_TOKEN, SampleWriter

CONTROL_TOKENS = (RETURN, CONSTRAIN, CHANNEL, START, END, MESSAGE, CALL)
PROBLEMS = 60_000
SHARES = 60
"""Into so many equal parts the problems are divided, whatever the number of processes."""
_SEED = 7_000_000


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The stored tokens, ascending. A token's local id is its place; all others share one more."""

    token_ids: NDArray[np.int32]

    @property
    def stored(self) -> int:
        return len(self.token_ids)

    def local_ids(self) -> NDArray[np.uint16]:
        """The local id of each of the vocabulary's tokens."""
        table = np.full(VOCABULARY_SIZE, self.stored, np.uint16)
        table[self.token_ids] = np.arange(self.stored, dtype=np.uint16)
        return table

    def save(self, path: Path) -> None:
        """Writes the ids as a JSON list."""
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self.token_ids.tolist()) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        ids = json.loads(path.read_text(encoding="utf-8"))
        return cls(np.array(ids, np.int32))


def number_tokens(tokenizer: HarmonyTokenizer) -> set[int]:
    """The tokens of one, two and three digits."""
    texts = (f"{n:0{digits}}" for digits in (1, 2, 3) for n in range(10**digits))
    return {token for text in texts for token in tokenizer.encode(text)}


def collect(source: str, seed: int, count: int) -> set[int]:
    """The tokens of ``count`` training problems at every effort."""
    writer = SampleWriter(HarmonyTokenizer.load())
    found: set[int] = set()
    drawn = problem_source(source)(seed)
    for problem, _ in zip(drawn, range(count), strict=False):
        for effort in EFFORTS:
            for turn in writer.turns(problem, effort):
                found.update(writer.whole(turn).tokens)
    return found


def vocabulary_of(source: str, *, problems: int, processes: int) -> Vocabulary:
    """The tokens of ``problems`` training problems, with all numbers and control tokens."""
    found = number_tokens(HarmonyTokenizer.load()) | set(CONTROL_TOKENS)
    if processes == 1:
        found |= collect(source, _SEED, problems)
    else:
        shares = min(SHARES, problems)
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            jobs = [
                pool.submit(collect, source, _SEED + i, problems // shares) for i in range(shares)
            ]
            for job in jobs:
                found |= job.result()
    return Vocabulary(np.array(sorted(found - {UNSTORED_TOKEN}), np.int32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--source", default="trained")
    parser.add_argument("--problems", type=int, default=PROBLEMS)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    vocabulary = vocabulary_of(
        options.source, problems=options.problems, processes=options.processes
    )
    vocabulary.save(options.file)
    print(f"{vocabulary.stored} tokens are stored", flush=True)


if __name__ == "__main__":
    main()
