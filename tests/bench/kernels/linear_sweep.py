"""Times of linear layers of few rows by configuration: what ``LinearConfig.of`` comes from.

``python -m tests.bench.kernels.linear_sweep [--rows 1 2 8] [--best 4]``, beside cuBLAS.
"""

import argparse
from collections.abc import Iterator
from functools import partial

import torch
from torch.nn import functional as F

from moeray.kernels.linear import LinearConfig, linear
from tests.bench.kernels.timing import copies_for, fastest, microseconds

SIZES = {"qkv": (2880, 5120), "output projection": (4096, 2880), "unembedding": (2880, 201088)}
MULTIPLY_ADD = ((1, 1024, 4), (2, 1024, 4), (2, 512, 2), (4, 1024, 4), (4, 2048, 8), (8, 2048, 8))
"""Outputs, inputs, warps."""
TENSOR_CORES = (
    (16, 512, 8, 3),
    (16, 256, 4, 5),
    (32, 512, 8, 3),
    (32, 512, 8, 4),
    (32, 256, 4, 5),
    (64, 512, 8, 2),
)
"""Outputs, inputs, warps, stages."""
PROGRAMS = (None, 660, 1320)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 8])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--best", type=int, default=4)
    options = parser.parse_args()
    for name in options.sizes:
        for rows in options.rows:
            _report(name, rows, options.best)


def configs(rows: int, out_features: int) -> Iterator[LinearConfig]:
    for outputs, inputs, warps in MULTIPLY_ADD:
        if outputs * rows <= 8:
            for programs in PROGRAMS if out_features > 2**15 else (None,):
                yield LinearConfig(
                    tensor_cores=False, outputs=outputs, inputs=inputs, warps=warps,
                    programs=programs,
                )  # fmt: skip
    if rows > 1:
        for outputs, inputs, warps, stages in TENSOR_CORES:
            yield LinearConfig(
                tensor_cores=True, outputs=outputs, inputs=inputs, warps=warps, stages=stages
            )


def _report(name: str, rows: int, best: int) -> None:
    in_features, out_features = SIZES[name]
    weights = [
        torch.randn(out_features, in_features, device="cuda", dtype=torch.bfloat16)
        for _ in range(copies_for(2 * in_features * out_features))
    ]
    x = torch.randn(rows, in_features, device="cuda", dtype=torch.bfloat16)
    peer = microseconds([partial(F.linear, x, weight) for weight in weights])
    timed = fastest(
        configs(rows, out_features),
        lambda config: [partial(linear, x, weight, config=config) for weight in weights],
    )
    print(f"{name} {rows}: cuBLAS {peer:.1f} us", flush=True)
    for time, config in timed[:best]:
        print(f"  {time:8.1f} us {config}", flush=True)


if __name__ == "__main__":
    main()
