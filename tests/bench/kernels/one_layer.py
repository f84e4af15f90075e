"""One call of the MoE layer at each of some numbers of rows, for profilers.

``ncu --clock-control none --set full -k regex:_grouped_product python -m
tests.bench.kernels.one_layer 256 8192``, or with ``--metrics gpu__time_duration.sum`` and without
``-k`` how long each kernel takes on its own.
"""

import argparse

import torch

from tests.bench.kernels.models import MODELS
from tests.bench.kernels.moe import Layer, layer_sums, rows_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+", type=int)
    parser.add_argument("--model", choices=[model.name for model in MODELS], default="20b")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("needs a GPU")
    (model,) = (model for model in MODELS if model.name == options.model)
    layer = Layer.random(model, seed=0)
    held = layer.packed()
    for rows in options.rows:
        layer_sums(layer, held, rows_of(model, rows)[0])
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
