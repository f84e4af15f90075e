"""Times of the MoE kernels by configuration: what the tables in kernels/moe_*_rows.py come from.

``python -m tests.bench.kernels.moe_sweep [--models 20b 120b] [--rows 1 8 ...] [--best 4]``. Router
and experts, as ``tests.bench.kernels.moe`` measures them. First all configurations are compiled, in
parallel; one that does not fit the GPU's shared memory is left out.
"""

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from moeray.kernels.expert_weights import ExpertWeights
from moeray.kernels.moe_few_rows import FewRowsConfig, experts_few_rows
from moeray.kernels.moe_many_rows import ManyRowsConfig, experts_many_rows
from moeray.kernels.routing import HALF_ROWS
from moeray.kernels.scaled_rows import HalfRows
from tests.bench.kernels.models import MODELS, Dimensions
from tests.bench.kernels.moe import COPIES, Layer, benchmark, routed, rows_of
from tests.bench.kernels.timing import fastest

Config = FewRowsConfig | ManyRowsConfig

FEW = ((16, 2), (16, 2, 3), (16, 2, 4), (16, 2, 5), (16, 1, 6), (16, 4, 3), (32, 4), (64, 4))
"""Weight rows, warps, steps ahead."""
MANY: dict[int, tuple[tuple[Any, ...], ...]] = {
    8: ((2, 4, 4, 8, 0, True), (4, 3, 4, 8, 0, True)),
    16: (
        (2, 4, 4, 8, 0, True),
        (4, 3, 4, 8, 0, True),
        (2, 3, 4, 16, 16, False, 128),
        (2, 3, 4, 16, 16, False, 168),
    ),
    32: (
        (2, 3, 4, 8, 0, True, 128),
        (1, 4, 4, 16, 16, False, 128),
        (2, 3, 4, 16, 16, False, 168),
    ),
    64: ((1, 4, 4, 16, 16, False, 168), (2, 3, 4, 16, 0, False, 168), (2, 3, 4, 16, 16)),
    128: ((1, 4, 4, 32), (1, 4, 4, 32, 16), (2, 3, 4, 32)),
}
"""By choices of a program: chunks, loads under way, warps, least choices, extra, float8, registers;
of 128 weight rows."""
SENSIBLE = {8: (0, 6), 16: (0.2, 17), 32: (7, 65), 64: (24, 130), 128: (60, 4096)}
"""By choices of a program: choices per expert between which it is tried."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=[model.name for model in MODELS])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 128, 256, 1024, 8192])
    parser.add_argument("--best", type=int, default=4)
    parser.add_argument("--processes", type=int, default=14)
    options = parser.parse_args()
    models = [model for model in MODELS if model.name in options.models]
    compile_all(models, options.rows, options.processes)
    for model in models:
        layers = [Layer.random(model, seed) for seed in range(COPIES)]
        held = [layer.packed() for layer in layers]
        for rows in options.rows:
            _report(model, layers, held, rows, options.best)


def compile_all(models: Sequence[Dimensions], rows: Sequence[int], processes: int) -> None:
    """Fills Triton's cache, in parallel: compiling takes longer than measuring.

    The models' expert kernels are the same, so it is done for the first one.
    """
    model = models[0]
    jobs = {
        (count if isinstance(config, FewRowsConfig) else 32, config)
        for each in models
        for count in rows
        for config in configs(count, count * each.top_k / each.experts)
    }
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        list(pool.map(partial(_compile, model), *zip(*jobs, strict=True)))


def configs(rows: int, choices_per_expert: float) -> Iterator[Config]:
    if rows <= HALF_ROWS:
        for choice in FEW:
            yield FewRowsConfig(*choice)
    for height, choices in MANY.items():
        least, most = SENSIBLE[height]
        if least <= choices_per_expert <= most:
            for choice in choices:
                yield ManyRowsConfig(height, 128, *choice)


def _report(
    model: Dimensions, layers: list[Layer], held: list[ExpertWeights], rows: int, best: int
) -> None:
    floor = benchmark(model, layers, held, rows, None).floor_us
    inputs = rows_of(model, rows)
    timed = fastest(
        configs(rows, rows * model.top_k / model.experts),
        lambda config: [
            partial(_run, layers[i % COPIES], held[i % COPIES], x, config)
            for i, x in enumerate(inputs)
        ],
    )
    for time, config in timed[:best]:
        print(f"{model.name} {rows:5} {time:9.1f} us {floor / time:5.2f} {config}", flush=True)


def _compile(model: Dimensions, rows: int, config: Config) -> None:
    layer = Layer.random(model, 0)
    try:
        _run(layer, layer.packed(), rows_of(model, rows)[0], config)
    except OutOfResources:
        return
    finally:
        del layer
        torch.cuda.empty_cache()


def _run(layer: Layer, held: ExpertWeights, x: Tensor, config: Config) -> Tensor:
    experts, weights, scaled = routed(layer, x)
    if isinstance(config, FewRowsConfig):
        halves = scaled if isinstance(scaled, HalfRows) else None
        return experts_few_rows(x, experts, weights, held, halves=halves, config=config)
    return experts_many_rows(x, experts, weights, held, scaled=scaled, config=config)


if __name__ == "__main__":
    main()
