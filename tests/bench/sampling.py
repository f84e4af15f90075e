"""Time of sampling over gpt-oss's vocabulary, by what the rows ask for.

Run as `python -m tests.bench.sampling [--rows 1 8 64] [--device cpu] [--repeats 40]`. Prints
microseconds per row, the least and the median of the repeats, in which the kinds take turns so that
they share whatever else the machine does: on a CPU of the thread's own time, else of the clock's.
"""

import argparse
import time
from dataclasses import replace
from statistics import median

import numpy as np
import torch

from moeray.vocabulary.harmony_tokens import END, VOCABULARY_SIZE
from moeray.worker.sampling import sample
from tests.worker.sample_rows import Row, batch

SEEN = {token: token % 3 for token in range(0, 3000, 3)}
KINDS = {
    "plain": Row(ids=(END,)),
    "greedy": Row(ids=(END,), temperature=0),
    "temperature 0.7": Row(ids=(END,), temperature=0.7),
    "min_p": Row(ids=(END,), min_p=0.05),
    "top_k 50": Row(ids=(END,), top_k=50),
    "top_p 0.9": Row(ids=(END,), top_p=0.9),
    "penalties, 1000 tokens": Row(ids=(END,), penalised=SEEN, presence_penalty=0.5),
    "5 logprobs": Row(ids=(END,), top_logprobs=5),
    "header": Row(ids=(35644, 17196), text=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"microseconds per row on {options.device}, by rows at once")
    print(f"{'':24}" + "".join(f"{rows:>16}" for rows in options.rows))
    columns = [_measure(rows, options.device, options.repeats) for rows in options.rows]
    for name in KINDS:
        print(
            f"{name:24}"
            + "".join(f"{column[name][0]:8.0f}{column[name][1]:8.0f}" for column in columns)
        )


def _measure(rows: int, device: str, repeats: int) -> dict[str, tuple[float, float]]:
    clock = time.thread_time if device == "cpu" else time.perf_counter
    # Logits of a spread like gpt-oss's.
    source = np.random.default_rng(0)
    values = source.normal(0, 2.5, (rows, VOCABULARY_SIZE)).astype(np.float32)
    logits = torch.from_numpy(values).to(device)
    samples = {
        name: batch([replace(row, seed=i, position=i) for i in range(rows)])
        for name, row in KINDS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in KINDS}
    for _ in range(repeats + 2):
        for name, wanted in samples.items():
            start = clock()
            sample(logits, wanted)
            times[name].append(1e6 / rows * (clock() - start))
    return {name: (min(values[2:]), median(values[2:])) for name, values in times.items()}


if __name__ == "__main__":
    main()
