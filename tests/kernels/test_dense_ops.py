"""Norms, few-row linear layers and QKV, beyond equality with their references."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from moeray.kernels.linear import LinearConfig, linear, norm_linear
from moeray.kernels.norm import add_rms_norm, rms_norm
from moeray.kernels.qkv import qkv_rope_write
from moeray.kernels.qkv_projection import qkv_projection
from tests.kernels.dense_cases import (
    EIGHT_OUTPUTS,
    EPS,
    MULTIPLY_ADD,
    ODD,
    TENSOR_CORES,
    TINY,
    cache_arguments,
)
from tests.kernels.op_cases import Draw


@pytest.fixture
def draw(request: pytest.FixtureRequest, device: torch.device) -> Draw:
    return Draw.of(request.node.name, device)


def test_norm_of_no_rows(draw: Draw) -> None:
    x, weight = draw.normal(0, 32), draw.normal(32)
    assert rms_norm(x, weight, EPS).shape == (0, 32)
    assert [part.shape for part in add_rms_norm(x, x, weight, EPS)] == [(0, 32)] * 2


def test_summed_is_the_plain_sum(draw: Draw, device: torch.device) -> None:
    x, residual = draw.normal(3, 32), draw.normal(3, 32)
    _, summed = add_rms_norm(x, residual, draw.normal(32), EPS)
    # The interpreter drops bits where a GPU rounds to nearest.
    off = 2**-7 if device.type == "cpu" else 0
    torch.testing.assert_close(summed, x + residual, rtol=off, atol=0)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"x": (2, 40)}, "weight"),
        ({"x": (3, 2, 32)}, "x"),
        ({"residual": (3, 32)}, "residual"),
    ],
)
def test_norm_refuses(changed: dict[str, tuple[int, ...]], named: str, draw: Draw) -> None:
    shapes = {"x": (2, 32), "residual": (2, 32), "weight": (32,), **changed}
    if "x" in changed:
        shapes["residual"] = changed["x"]
    with pytest.raises(ValueError, match=named):
        add_rms_norm(**{name: draw.normal(*shape) for name, shape in shapes.items()}, eps=EPS)


@pytest.mark.parametrize("config", [MULTIPLY_ADD, TENSOR_CORES], ids=["fma", "dot"])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
def test_rows_do_not_see_each_other(config: LinearConfig, norm: bool, draw: Draw) -> None:
    """A NaN stays in its row, and a row's bits do not depend on the others."""
    x, weight, bias = draw.normal(4, 72), draw.normal(20, 72), draw.normal(20)
    own = {"norm_weight": draw.normal(72), "eps": EPS} if norm else {}
    op = partial(norm_linear if norm else linear, weight=weight, bias=bias, config=config, **own)
    whole = op(x)
    x[1] = torch.nan
    spoiled = op(x)
    assert torch.equal(spoiled[[0, 2, 3]], whole[[0, 2, 3]])
    assert spoiled[1].isnan().all()
    # Two: a row alone is normed by the multiply-add kernel itself, and not rounded.
    assert torch.equal(op(x[2:].contiguous()), whole[2:])


@pytest.mark.parametrize("config", [MULTIPLY_ADD, TENSOR_CORES, None], ids=["fma", "dot", "own"])
def test_norm_of_rows_is_the_norm_kernel(config: LinearConfig | None, draw: Draw) -> None:
    x, gain, weight = draw.normal(2, 72, scale=40.0), draw.normal(72), draw.normal(20, 72)
    apart = linear(rms_norm(x, gain, EPS), weight, config=config)
    assert torch.equal(norm_linear(x, gain, EPS, weight, config=config), apart)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"x": (9, 64)}, "1 to 8 rows"),
        ({"x": (0, 64)}, "1 to 8 rows"),
        ({"x": (2, 72)}, "weight"),
        ({"x": (2, 60), "weight": (10, 60)}, "multiple of 8"),
        ({"bias": (11,)}, "bias"),
        ({"residual": (1, 10)}, "residual"),
    ],
)
def test_linear_refuses(changed: dict[str, tuple[int, ...]], named: str, draw: Draw) -> None:
    shapes = {"x": (2, 64), "weight": (10, 64), "bias": (10,), "residual": (2, 10), **changed}
    with pytest.raises(ValueError, match=named):
        linear(**{name: draw.normal(*shape) for name, shape in shapes.items()})


def test_linear_refuses_other_layouts(draw: Draw) -> None:
    x, weight = draw.normal(2, 64), draw.normal(64, 16)
    with pytest.raises(ValueError, match="weight"):
        linear(x, weight.t())
    with pytest.raises(ValueError, match="x"):
        linear(x.float(), draw.normal(16, 64))
    with pytest.raises(ValueError, match="norm_weight"):
        norm_linear(x, draw.normal(63), EPS, draw.normal(16, 64))


def test_float8_caches_hold_what_torch_would_store(draw: Draw) -> None:
    """Values are not rotated, so what is stored is one division and one rounding."""
    given = cache_arguments(draw, TINY, 3, float8=True)
    qkv = draw.normal(3, TINY.width)
    qkv_rope_write(qkv, **given)
    values = qkv.float().view(3, -1, TINY.dim)[:, -TINY.kv :]
    scales = values.abs().amax(-1) / 448
    stored = given["value_scales"].flatten(0, 1)[given["slots"]]
    torch.testing.assert_close(stored, scales, rtol=1e-6, atol=0)
    want = (values / scales[..., None]).to(torch.float8_e4m3fn).float()
    got = given["value_cache"].flatten(0, 1)[given["slots"]].float()
    # Quotients between two neighbours may fall to either side.
    assert (got != want).float().mean() < 0.02
    torch.testing.assert_close(got, want, rtol=2**-3, atol=2**-9)


def test_rows_that_share_a_slot_leave_one_of_theirs(draw: Draw) -> None:
    given = cache_arguments(draw, ODD, 3, float8=False)
    given["slots"][:] = 5
    qkv = draw.normal(3, ODD.width)
    before = given["value_cache"].clone()
    qkv_rope_write(qkv, **given)
    left = given["value_cache"].flatten(0, 1)
    values = qkv.view(3, -1, ODD.dim)[:, -ODD.kv :]
    assert (left[5] == values).any(0).all()
    others = torch.arange(len(left), device=left.device) != 5
    assert torch.equal(left[others], before.flatten(0, 1)[others])


@pytest.mark.parametrize("config", [MULTIPLY_ADD, EIGHT_OUTPUTS, TENSOR_CORES, None])
def test_linear_is_the_same_every_time(
    config: LinearConfig | None, draw: Draw, device: torch.device
) -> None:
    in_features = 2880 if device.type == "cuda" and config is None else 136
    x, weight, gain = draw.normal(2, in_features), draw.normal(33, in_features), draw.normal(2880)
    call = partial(norm_linear, x, gain[:in_features], EPS, weight, config=config)
    assert torch.equal(call(), call())


@pytest.mark.parametrize("config", [EIGHT_OUTPUTS, TENSOR_CORES], ids=["eight", "sixteen"])
def test_products_keep_every_input(config: LinearConfig, draw: Draw) -> None:
    """Each input counts once, with its own weight: the sums are exact."""
    in_features = 136
    x = torch.zeros(8, in_features, dtype=torch.bfloat16, device=draw.device)
    weight = draw.integers(-8, 8, 24, in_features).to(torch.bfloat16)
    for first in (0, 24, 64, 128):
        x.zero_()
        x[:, first : first + 8] = torch.eye(8, device=draw.device)
        assert torch.equal(linear(x, weight, config=config), weight[:, first : first + 8].t())


@pytest.mark.parametrize("rows", [1, 3])
def test_projection_is_the_same_every_time(rows: int, draw: Draw) -> None:
    call = partial(qkv_projection, **_projection(draw, rows), config=TENSOR_CORES)
    assert torch.equal(call(), call())


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("slots", (2,), torch.int32),
        ("cosine", (2, 16), torch.float32),
        ("value_cache", (2, 16, 2, 8), torch.bfloat16),
        ("weight", (160, 64), torch.bfloat16),
        ("bias", (8,), torch.bfloat16),
        ("key_scales", (2, 16, 2), torch.float32),
    ],
)
def test_projection_refuses(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, draw: Draw
) -> None:
    given = _projection(draw, 2)
    given[name] = torch.zeros(shape, dtype=dtype, device=draw.device)
    with pytest.raises(ValueError, match=name):
        qkv_projection(**given)


def test_projection_refuses_heads_that_do_not_add_up(draw: Draw) -> None:
    with pytest.raises(ValueError, match="weight"):
        qkv_projection(**{**_projection(draw, 2), "query_heads": ODD.queries - 1})


def test_captured_calls_follow_their_inputs(draw: Draw, device: torch.device) -> None:
    """A graph of dependent launches sees what was written just before each."""
    if device.type == "cpu":
        pytest.skip("graphs are of GPUs")
    x, weight, gain = draw.normal(1, 2880), draw.normal(2880, 2880, scale=0.02), draw.normal(2880)

    def steps() -> Tensor:
        held = x
        for _ in range(8):
            normed, held = add_rms_norm(linear(held, weight), held, gain, EPS)
            held = norm_linear(normed, gain, EPS, weight, config=TENSOR_CORES)
        return held

    steps()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = steps()
    for _ in range(3):
        x.copy_(draw.normal(1, 2880))
        graph.replay()
        assert torch.equal(captured, steps())


def _projection(draw: Draw, rows: int) -> dict[str, Any]:
    return {
        "x": draw.normal(rows, ODD.hidden),
        "norm_weight": draw.normal(ODD.hidden),
        "eps": EPS,
        "weight": draw.normal(ODD.width, ODD.hidden),
        "bias": draw.normal(ODD.width),
        **cache_arguments(draw, ODD, rows, float8=False),
    }
