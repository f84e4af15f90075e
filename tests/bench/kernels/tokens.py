"""Token selection of a whole vocabulary, rows of one kind at a time.

The logits are normal with a spread of 2.5, and a few far above, as a trained model's are: most of
the mass lies on some dozens of tokens, and the rest is a long tail.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from moeray.kernels.token_selection import select_tokens
from tests.bench.kernels.benchmark import Benchmark
from tests.bench.kernels.timing import Call, copies_for

VOCABULARY = 201088
DEVICE = "cuda"
PEAKS = 64

Peer = Callable[[Tensor], Tensor]


def benchmarks() -> Iterator[Benchmark]:
    for kind, (options, peer, name) in KINDS.items():
        for rows in (1, 8, 64, 256):
            yield Benchmark(
                op=f"select_tokens_{kind}",
                model="both",
                rows=rows,
                bytes=rows * VOCABULARY * 4,
                flops=0,
                prepare=partial(_calls, rows, options),
                peer=name,
                prepare_peer=partial(_peer_calls, rows, peer),
            )


def _logits(rows: int) -> Tensor:
    logits = torch.randn(rows, VOCABULARY, device=DEVICE) * 2.5
    peaks = torch.randint(0, VOCABULARY, (rows, PEAKS), device=DEVICE)
    heights = 20 - 2.5 * torch.randn(rows, PEAKS, device=DEVICE).abs()
    return logits.scatter_(1, peaks, heights)


def _calls(rows: int, options: dict[str, float]) -> list[Call]:
    return [
        partial(select_tokens, _logits(rows), _keys(rows), **_tensors(rows, options))
        for _ in range(copies_for(rows * VOCABULARY * 4))
    ]


def _keys(rows: int) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (rows, 2), dtype=torch.int64, device=DEVICE)


def _tensors(rows: int, options: dict[str, float]) -> dict[str, Tensor]:
    return {
        name: torch.full(
            (rows,), value, dtype=torch.int32 if name == "top_k" else torch.float32, device=DEVICE
        )
        for name, value in options.items()
    }


def _peer_calls(rows: int, peer: Peer) -> list[Call]:
    return [partial(peer, _logits(rows)) for _ in range(copies_for(rows * VOCABULARY * 4))]


def _greedy(logits: Tensor) -> Tensor:
    return logits.argmax(1)


def _sampled(logits: Tensor) -> Tensor:
    return logits.softmax(1).multinomial(1)


def _top_k(logits: Tensor) -> Tensor:
    values, ids = logits.topk(50, dim=1)
    return ids.gather(1, values.softmax(1).multinomial(1))


def _top_p(logits: Tensor) -> Tensor:
    values, ids = logits.sort(dim=1, descending=True)
    shares = values.softmax(1)
    shares = shares.masked_fill(shares.cumsum(1) - shares >= 0.9, 0)
    return ids.gather(1, shares.multinomial(1))


def _min_p(logits: Tensor) -> Tensor:
    shares = logits.softmax(1)
    limit = 0.05 * shares.amax(1, keepdim=True)
    return shares.masked_fill(shares < limit, 0).multinomial(1)


KINDS: dict[str, tuple[dict[str, float], Peer, str]] = {
    "greedy": ({"temperature": 0.0}, _greedy, "torch argmax"),
    "temperature": ({"temperature": 1.0}, _sampled, "torch softmax, multinomial"),
    "top_k": ({"temperature": 1.0, "top_k": 50.0}, _top_k, "torch topk, multinomial"),
    "top_p": ({"temperature": 1.0, "top_p": 0.9}, _top_p, "torch sort, multinomial"),
    "min_p": ({"temperature": 1.0, "min_p": 0.05}, _min_p, "torch softmax, multinomial"),
}
