"""Times of the attention kernels by configuration: what their choice of one comes from.

``python -m tests.bench.kernels.attention_sweep [--only OP ...] [--best 6]``, with the sizes and
inputs of ``tests.bench.kernels.attention``. A configuration that does not fit the GPU is left out.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor

from moeray.kernels.attention_decode import DecodeConfig
from moeray.kernels.attention_prefill import PrefillConfig
from tests.bench.kernels.attention import Sizes, benchmark, copies
from tests.bench.kernels.timing import Call, fastest

Config = DecodeConfig | PrefillConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="OP", help="ops whose name starts so")
    parser.add_argument("--best", type=int, default=6)
    options = parser.parse_args()
    for sizes in _sizes():
        if options.only and not sizes.name.startswith(tuple(options.only)):
            continue
        calls = [inputs.call() for inputs in copies(sizes)]
        # None is what the op chooses by itself.
        times = fastest((None, *_configs(sizes)), partial(_configured, calls))
        floor = benchmark(sizes).floor_us
        print(f"{sizes.name}: {sizes.sequences} of {sizes.context}, floor {floor:.1f} us")
        for i, (us, config) in enumerate(times):
            if i < options.best or config is None:
                print(f"  {us:9.1f} us {floor / us:5.2f}  {config or 'as chosen'}", flush=True)
        del calls
        torch.cuda.empty_cache()


def _sizes() -> Iterator[Sizes]:
    for fp8 in (False, True):
        for sequences, context in ((64, 8192), (8, 8192), (1, 8192), (256, 1024)):
            yield Sizes(sequences=sequences, context=context, rows=1, windowed=False, fp8=fp8)
        yield Sizes(sequences=64, context=8192, rows=1, windowed=True, fp8=fp8)
        for windowed in (False, True):
            yield Sizes(sequences=1, context=8192, rows=8192, windowed=windowed, fp8=fp8)


def _configs(sizes: Sizes) -> Iterator[Config]:
    if sizes.rows > 1:
        for tile, keys, warps, stages in (
            (128, 64, 4, 3),
            (128, 64, 4, 5),
            (128, 64, 8, 3),
            (128, 64, 8, 5),
            (64, 64, 4, 3),
            (64, 64, 4, 5),
            (64, 128, 4, 3),
            (128, 32, 4, 3),
            (128, 128, 8, 3),
            (256, 64, 8, 3),
        ):
            yield PrefillConfig(tile_queries=tile, block_keys=keys, warps=warps, stages=stages)
        return
    most = -(-sizes.keys // 128)
    for splits, (keys, warps, stages) in product(
        sorted({min(n, most) for n in (1, 2, 4, 8, 16, 32)}),
        ((64, 4, 3), (64, 4, 5), (64, 4, 7), (128, 4, 3), (128, 4, 5), (128, 8, 5), (64, 2, 5)),
    ):
        yield DecodeConfig(
            block_keys=keys, splits=splits, least_tiles=1, warps=warps, stages=stages
        )


def _configured(calls: Sequence[Callable[..., Tensor]], config: Config | None) -> list[Call]:
    return [partial(call, config=config) for call in calls]


if __name__ == "__main__":
    main()
