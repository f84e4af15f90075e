"""Token selection: rows of every kind, ties, masks, cold and hot rows, and lists that overflow."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moeray.kernels import token_reference
from moeray.kernels.token_selection import SelectionConfig, select_tokens
from tests.kernels.op_cases import Draw, OpCase

SMALL = SelectionConfig(rounds=2, warps=1)
Arguments = Callable[[Draw], dict[str, Any]]


def random_keys(draw: Draw, rows: int) -> Tensor:
    return draw.integers(-(2**63), 2**63 - 1, rows, 2, dtype=torch.int64)


def repeated(draw: Draw, values: list[float], rows: int, dtype: torch.dtype) -> Tensor:
    """[rows]: the values over and over."""
    return torch.tensor(values * rows, dtype=dtype)[:rows].to(draw.device)


def rows_of(
    rows: int,
    vocabulary: int,
    *,
    spread: float = 3.0,
    step: float | None = None,
    shift: float = 0.0,
    temperature: tuple[float, ...] = (1.0,),
    top_k: tuple[int, ...] | None = None,
    top_p: tuple[float, ...] | None = None,
    min_p: tuple[float, ...] | None = None,
    masked: bool = False,
    config: SelectionConfig | None = SMALL,
) -> Arguments:
    """Arguments of normal logits around ``shift``; multiples of ``step`` where ties are wanted."""

    def arguments(draw: Draw) -> dict[str, Any]:
        logits = draw.normal(rows, vocabulary, scale=spread, dtype=torch.float32) + shift
        if step is not None:
            logits = (logits / step).round() * step
        given: dict[str, Any] = {"logits": logits, "keys": random_keys(draw, rows)}
        for name, values, dtype in (
            ("temperature", temperature, torch.float32),
            ("top_k", top_k, torch.int32),
            ("top_p", top_p, torch.float32),
            ("min_p", min_p, torch.float32),
        ):
            if values is not None:
                given[name] = repeated(draw, list(values), rows, dtype)
        if masked:
            words = -(-vocabulary // 32)
            given["mask"] = draw.integers(-(2**31), 2**31 - 1, rows, words)
        return given | {"config": config}

    return arguments


def reference(*, config: object, **arguments: Any) -> tuple[Tensor, Tensor]:
    return token_reference.select_tokens(**arguments)


def case(name: str, arguments: Arguments, *, full_size: bool = False) -> OpCase:
    return OpCase(
        name=f"select_tokens-{name}",
        op=select_tokens,
        reference=reference,
        arguments=arguments,
        error=0.0,
        full_size=full_size,
    )


MIXED: dict[str, Any] = {
    "temperature": (1.0, 0.0, 0.7, 1.3, 0.2),
    "top_k": (0, 50, 7, 1),
    "top_p": (0.9, 1.0, 0.5, 0.95, 0.99, 0.999),
    "min_p": (0.0, 0.05, 0.0),
}

CASES = (
    case("one-token", rows_of(2, 1, temperature=(0.0, 1.0))),
    case("greedy-ties", rows_of(3, 515, step=2.0, temperature=(0.0,))),
    case("sampled", rows_of(6, 515, temperature=(1.0, 0.0, 0.5, 2.0))),
    case("cold-and-hot", rows_of(4, 300, temperature=(1e-3, 50.0, 1e-38), top_p=(0.9,))),
    case("top-k-ties", rows_of(5, 300, step=1.0, top_k=(0, 2, 20, 299, 300))),
    case("top-p", rows_of(6, 515, top_p=(0.5, 1.0, 0.9, 1e-9, 0.9999))),
    case("min-p", rows_of(6, 515, min_p=(0.5, 0.0, 0.05, 1.0))),
    case("mixed-masked", rows_of(8, 517, masked=True, **MIXED)),
    # Flat rows whose winner a filter mostly drops: all that a second reading decides.
    case(
        "second-reading",
        rows_of(
            20,
            200,
            spread=1.0,
            step=0.125,
            temperature=(1.0, 2.0, 0.5),
            top_k=(20, 60, 0, 90),
            top_p=(0.5, 0.8, 1.0),
            min_p=(0.1, 0.4, 0.2, 0.0, 0.6),
        ),
    ),
    case("all-equal", rows_of(3, 300, spread=0.0, top_k=(0, 9), top_p=(0.1, 0.3, 1.0))),
    case("beyond-bins", rows_of(3, 300, shift=150.0, top_k=(9,), top_p=(0.7,))),
    case("below-head", rows_of(3, 200, spread=30.0, top_p=(1 - 2**-16,), top_k=(0, 190))),
    case(
        "overflowing-list",
        rows_of(
            4,
            300,
            spread=0.2,
            top_k=(3, 30),
            top_p=(0.9,),
            masked=True,
            config=SelectionConfig(rounds=2, warps=1, listed=8),
        ),
    ),
    *(
        case(f"full-{rows}-{vocabulary}", arguments, full_size=True)
        for rows, vocabulary in ((1, 201088), (5, 201087), (64, 201088))
        for arguments in (rows_of(rows, vocabulary, config=None, masked=rows == 5, **MIXED),)
    ),
    case(
        "full-flat",
        rows_of(24, 201088, spread=1.0, step=0.25, config=None, **MIXED),
        full_size=True,
    ),
    case(
        "full-sampled",
        rows_of(256, 201088, temperature=(1.0, 0.0, 0.7), config=None),
        full_size=True,
    ),
    case("full-equal", rows_of(3, 201088, spread=0.0, config=None, **MIXED), full_size=True),
)
