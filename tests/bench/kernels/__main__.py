"""Every kernel against the physical limit, and against a peer where there is one.

``python -m tests.bench.kernels [--only OP ...] [--json FILE]`` on a GPU. The floor of an op is the
greater of its bytes at 4.3 TB/s and its operations at 750 TFLOP/s: an H200's, as measured with a
copy and a large product. OpenAI's triton_kernels stand beside the MoE layer where vLLM's wheel is
installed, which holds them.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import triton

from tests.bench.kernels import attention, dense, moe, tokens
from tests.bench.kernels.benchmark import Benchmark, Figure


def benchmarks() -> Iterator[Benchmark]:
    for room in (moe, dense, attention, tokens):
        yield from room.benchmarks()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="OP", help="ops whose name starts so")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("needs a GPU")
    print(_HEADING, flush=True)
    figures = []
    for benchmark in benchmarks():
        if not options.only or benchmark.op.startswith(tuple(options.only)):
            figures.append(benchmark.measure())
            print(_line(figures[-1]), flush=True)
            torch.cuda.empty_cache()
            if options.json:
                # After each, so that a run that is cut short leaves what it has measured.
                options.json.write_text(json.dumps(_records(figures), indent=1) + "\n")


_HEADING = f"{'op':32}{'model':7}{'rows':>7}{'us':>10}{'floor':>10}{'share':>7}  peer"


def _line(figure: Figure) -> str:
    peer = "" if figure.peer_us is None else f"{figure.peer_us:.1f} {figure.peer}"
    times = f"{figure.us:10.1f}{figure.floor_us:10.1f}{figure.fraction:7.2f}"
    return f"{figure.op:32}{figure.model:7}{figure.rows:7}{times}  {peer} {figure.note}".rstrip()


def _records(figures: list[Figure]) -> list[dict[str, object]]:
    device = torch.cuda.get_device_name()
    versions = {"torch": torch.__version__, "triton": triton.__version__, "vllm": _vllm()}
    return [{**asdict(figure), "device": device, "versions": versions} for figure in figures]


def _vllm() -> str | None:
    try:
        return version("vllm")
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
