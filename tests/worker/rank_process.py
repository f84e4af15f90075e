"""One rank of a group as a process of its own: prints what it computed as JSON.

Run as ``python rank_process.py ROLE RANK SIZE PORT FOLDER``.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

from moeray.worker.communicator import connect
from tests.worker.paged_run import CPU, PagedRun, greedy

STEPS = 24
PADDED_ROWS = 64


def prompts_of(rank: int, size: int) -> dict[str, list[int]]:
    """Six prompts, dealt to the ranks; their names tell them apart."""
    generator = torch.Generator().manual_seed(11)
    every = {
        f"prompt {i}": torch.randint(480, (length,), generator=generator).tolist()
        for i, length in enumerate((1, 5, 9, 2, 14, 7))
    }
    return {name: p for i, (name, p) in enumerate(every.items()) if i % size == rank}


def sums_of(rank: int, size: int) -> torch.Tensor:
    """What one rank puts into an exchange: [size * 3, 5] float32."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(size * 3, 5, generator=generator)


def main(role: str, rank: int, size: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    group = connect(
        rank=rank, size=size, host="127.0.0.1", port=port, prefix=role, device=CPU, timeout_s=30
    )
    if role == "leaves" and rank == 1:
        return
    if role == "leaves":
        try:
            group.gather_rows(torch.zeros(1, 1))
            print(json.dumps("no error"))
        except RuntimeError:
            print(json.dumps("RuntimeError"))
        return
    rows = group.gather_rows(torch.full((2, 3), float(rank)))
    parts = group.exchange_sums(sums_of(rank, size))
    answers = greedy(
        PagedRun(folder, group), prompts_of(rank, size), steps=STEPS, padded_rows=PADDED_ROWS
    )
    digest = hashlib.sha256(parts.numpy().tobytes()).hexdigest()
    print(json.dumps({"rows": rows.tolist(), "parts": digest, "answers": answers}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), Path(sys.argv[5]))
