"""gpt-oss for training, in plain torch: the maths of worker/model.py over whole rows.

Weights are stacked over the layers, so that the optimiser has few tensors. They are float32; each
step uses them as the checkpoint will hold them: experts rounded to MXFP4, the rest to bfloat16.
A row of the batch holds several documents; attention stays inside a document.

Letters in shapes: B rows, T positions, H hidden, L layers, E experts, I expert width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeray.kernels import reference as ops
from moeray.worker.checkpoint_shape import CheckpointShape
from tests.tiny.mxfp4 import fake_quantise_mxfp4

RMS_EPS = 1e-5
SWIGLU_LIMIT, SWIGLU_ALPHA = 7.0, 1.702
YARN_FACTOR = 32.0
EXPERT_MATRICES = ("gate_up", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A batch of packed rows, all [B, T]."""

    tokens: Tensor
    """int64 local ids."""
    documents: Tensor
    """int64; 0 is padding, equal numbers side by side are one document."""
    learned: Tensor
    """bool: this token is to be predicted from the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What attention needs to know of the rows, for all layers."""

    cosine: Tensor
    """[B, T, 1, D / 2] float32, as sine."""
    sine: Tensor
    full: Tensor
    """[B, 1, T, T] bool: query i sees key j."""
    windowed: Tensor
    real: Tensor
    """[B * T] float32: 1, or 0 for padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """The router's losses, summed over the layers, and the share of choices [L, E] of experts."""

    balance: Tensor
    z: Tensor
    load: Tensor


class Sizes(NamedTuple):
    """What one layer's maths needs of the shape."""

    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int


Layer = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """How the model computes. ``dtype`` is that of the matrix products."""

    dtype: torch.dtype = torch.bfloat16
    compiled: bool = True


class TinyModel(nn.Module):
    """The trainable model. ``stored`` tokens have rows of their own; one more row is shared."""

    def __init__(self, shape: CheckpointShape, stored: int, options: ModelOptions) -> None:
        super().__init__()
        self.shape, self.stored, self.options = shape, stored, options
        for name, tensor in initial_weights(shape, stored).items():
            setattr(self, name, nn.Parameter(tensor))
        frequencies = ops.yarn_inverse_frequencies(
            head_dim=shape.head_dim,
            theta=150_000.0,
            factor=YARN_FACTOR,
            original_context=4096,
            beta_fast=32.0,
            beta_slow=1.0,
            truncate=False,
        )
        self.register_buffer("frequencies", frequencies, persistent=False)
        self._sizes = Sizes(
            shape.query_heads,
            shape.kv_heads,
            shape.head_dim,
            shape.experts,
            shape.experts_per_token,
        )
        # One layer's function for all layers, so that it is compiled once.
        self._fast_layer: Layer = (
            torch.compile(run_layer, dynamic=False) if options.compiled else run_layer
        )

    def forward(self, rows: Rows, *, plain: bool = False) -> tuple[Tensor, Routing]:
        """The last layer's hidden states [B, T, H] float32, before the final norm.

        ``plain``: not compiled, for rows of ever other sizes.
        """
        layer = run_layer if plain else self._fast_layer
        places = self._places(rows)
        x = F.embedding(rows.tokens, self._used("embed").float())
        losses, loads = [], []
        for index, weights in enumerate(self._layer_weights()):
            seen = places.full if index % 2 else places.windowed
            x, balance, z, load = layer(
                x, weights, places.cosine, places.sine, seen, places.real, self._sizes
            )
            losses.append((balance, z))
            loads.append(load)
        balance, z = (torch.stack(each).sum() for each in zip(*losses, strict=True))
        return x, Routing(balance=balance, z=z, load=torch.stack(loads))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., H] to the logits [..., stored + 1] float32; the last is the shared row's."""
        return head_logits(hidden, *self.head_weights())

    def head_weights(self) -> tuple[Tensor, Tensor]:
        """The final norm's weight and the unembedding, as the checkpoint holds them."""
        return self._used("final_norm"), self._used("unembed")

    def _used(self, name: str) -> Tensor:
        """A weight as the checkpoint holds it, in the dtype of the computation."""
        return getattr(self, name).to(torch.bfloat16).to(self.options.dtype)

    def _layer_weights(self) -> list[dict[str, Tensor]]:
        stacked = {}
        for name in LAYER_WEIGHTS:
            if name in EXPERT_MATRICES:
                used = fake_quantise_mxfp4(getattr(self, name)).to(self.options.dtype)
            else:
                used = self._used(name)
            stacked[name] = used.unbind(0)
        layers = range(self.shape.layers)
        return [{name: tensors[i] for name, tensors in stacked.items()} for i in layers]

    @torch.no_grad()
    def _places(self, rows: Rows) -> Places:
        documents = rows.documents
        index = torch.arange(documents.shape[1], device=documents.device)
        begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
        positions = index - (index * begins).cummax(-1).values
        scaling = ops.yarn_attention_scaling(YARN_FACTOR)
        angles = positions.float()[..., None, None] * self.frequencies
        # Neighbouring documents differ, so equal numbers further apart must not meet either.
        starts = begins.cumsum(-1)
        distance = index[:, None] - index
        full = (starts[:, :, None] == starts[:, None, :]) & (distance >= 0)
        windowed = full & (distance < self.shape.sliding_window)
        return Places(
            cosine=angles.cos() * scaling,
            sine=angles.sin() * scaling,
            full=full[:, None],
            windowed=windowed[:, None],
            real=(documents > 0).flatten().float(),
        )


LAYER_WEIGHTS = (
    *("attention_norm", "q", "q_bias", "k", "k_bias", "v", "v_bias", "o", "o_bias", "sinks"),
    *("mlp_norm", "router", "router_bias", "gate_up", "gate_up_bias", "down", "down_bias"),
)


def weight_shapes(shape: CheckpointShape, stored: int) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter. gate_up's rows are interleaved, as in the checkpoint."""
    layers, hidden, experts = shape.layers, shape.hidden_size, shape.experts
    width, rows = shape.intermediate_size, stored + 1
    query, key = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    each: dict[str, tuple[int, ...]] = {"attention_norm": (hidden,), "mlp_norm": (hidden,)}
    for name, out, into in (
        ("q", query, hidden),
        ("k", key, hidden),
        ("v", key, hidden),
        ("o", hidden, query),
        ("router", experts, hidden),
    ):
        each |= {name: (out, into), f"{name}_bias": (out,)}
    for name, out, into in (("gate_up", 2 * width, hidden), ("down", hidden, width)):
        each |= {name: (experts, out, into), f"{name}_bias": (experts, out)}
    each["sinks"] = (shape.query_heads,)
    stacked = {name: (layers, *each[name]) for name in LAYER_WEIGHTS}
    ends = {"embed": (rows, hidden), "final_norm": (hidden,), "unembed": (rows, hidden)}
    return ends | stacked


def initial_weights(shape: CheckpointShape, stored: int) -> dict[str, Tensor]:
    """Weights to start from, float32: each block adds little to the embeddings at first."""
    gains = {"embed": 1.0, "unembed": 0.02}
    block = 0.5 / math.sqrt(2 * shape.layers)
    weights = {}
    for name, size in weight_shapes(shape, stored).items():
        if name.endswith("norm"):
            weights[name] = torch.ones(size)
        elif name.endswith("bias") or name == "sinks":
            weights[name] = torch.zeros(size)
        else:
            gain = gains.get(name, (block if name in ("o", "down") else 1.0) / math.sqrt(size[-1]))
            weights[name] = torch.randn(size) * gain
    return weights


def run_layer(
    x: Tensor,
    weights: dict[str, Tensor],
    cosine: Tensor,
    sine: Tensor,
    seen: Tensor,
    real: Tensor,
    sizes: Sizes,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer: x [B, T, H] float32 to the same, the two router losses and the load [E]."""
    x = x + _attention(x, weights, cosine, sine, seen, sizes)
    added, balance, z, load = _experts(x, weights, real, sizes)
    return x + added, balance, z, load


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return ops.rms_norm(x, weight, RMS_EPS).to(weight.dtype)


def _attention(
    x: Tensor, w: dict[str, Tensor], cosine: Tensor, sine: Tensor, seen: Tensor, sizes: Sizes
) -> Tensor:
    rows, length, _ = x.shape
    normed = _norm(x, w["attention_norm"])

    def projected(name: str) -> Tensor:
        return F.linear(normed, w[name], w[name + "_bias"]).view(rows, length, -1, sizes.head_dim)

    queries = _rotated(projected("q"), cosine, sine)
    keys, values = _rotated(projected("k"), cosine, sine), projected("v")
    # Query heads of one key-value head side by side, as rows of one matrix product.
    group = sizes.heads // sizes.kv_heads
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    queries = queries.view(rows, length, sizes.kv_heads, group, -1).permute(0, 2, 3, 1, 4)
    scores = queries.flatten(2, 3) @ keys.transpose(-1, -2)
    scores = scores.view(rows, sizes.heads, length, length).float() * sizes.head_dim**-0.5
    scores = scores.masked_fill(~seen, -math.inf)
    sinks = w["sinks"].float()[:, None, None]
    greatest = torch.maximum(scores.amax(-1, keepdim=True), sinks).detach()
    unnormalised = torch.exp(scores - greatest)
    total = unnormalised.sum(-1, keepdim=True) + torch.exp(sinks - greatest)
    shares = (unnormalised / total).to(values.dtype)
    mixed = shares.view(rows, sizes.kv_heads, group * length, length) @ values
    mixed = mixed.view(rows, sizes.heads, length, -1).transpose(1, 2).flatten(2)
    return F.linear(mixed, w["o"], w["o_bias"]).float()


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """RoPE in GPT-NeoX order on x [B, T, heads, D]."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return turned.to(x.dtype)


def _experts(
    x: Tensor, w: dict[str, Tensor], real: Tensor, sizes: Sizes
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All experts for every row, weighted by zero where not chosen: quicker than dispatch here."""
    flat = _norm(x, w["mlp_norm"]).flatten(0, 1)
    gates, balance, z, load = _routed(flat, w, real, sizes)
    # All gates' rows, then all ups': the products are the same, and their halves contiguous.
    gate_up, bias = w["gate_up"], w["gate_up_bias"]
    gate_up = torch.cat((gate_up[:, ::2].flatten(0, 1), gate_up[:, 1::2].flatten(0, 1)))
    bias = torch.cat((bias[:, ::2].flatten(), bias[:, 1::2].flatten()))
    gate, up = F.linear(flat, gate_up, bias).float().chunk(2, dim=-1)
    gate = gate.clamp(max=SWIGLU_LIMIT)
    up = up.clamp(min=-SWIGLU_LIMIT, max=SWIGLU_LIMIT)
    inner = gate * torch.sigmoid(SWIGLU_ALPHA * gate) * (up + 1)
    weighted = inner.unflatten(-1, (sizes.experts, -1)) * gates[..., None]
    down = w["down"].transpose(0, 1).flatten(1)
    out = F.linear(weighted.flatten(1).to(flat.dtype), down).float()
    out = out + gates @ w["down_bias"].float()
    return out.view(x.shape), balance, z, load


def _routed(
    flat: Tensor, w: dict[str, Tensor], real: Tensor, sizes: Sizes
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gate weights [B * T, E], zero where not chosen, the two losses and the load [E].

    Load balancing as in Switch Transformers (Fedus et al., 2021), over the top k; the z-loss as in
    ST-MoE (Zoph et al., 2022). In float32, as the engine routes.
    """
    logits = F.linear(flat.float(), w["router"].float(), w["router_bias"].float())
    with torch.no_grad():
        rest = logits
        for _ in range(sizes.top_k - 1):
            rest = rest.masked_fill(rest == rest.amax(-1, keepdim=True), -math.inf)
        chosen = logits >= rest.amax(-1, keepdim=True)
    gates = logits.masked_fill(~chosen, -math.inf).softmax(-1)
    count = real.sum().clamp(min=1)
    weight = real[:, None] / count
    load = (chosen * weight).sum(0) / sizes.top_k
    balance = sizes.experts * (load * (logits.softmax(-1) * weight).sum(0)).sum()
    z = (logits.logsumexp(-1).square() * weight[:, 0]).sum()
    return gates, balance, z, load


def head_logits(hidden: Tensor, norm: Tensor, unembed: Tensor) -> Tensor:
    """hidden [..., H] to logits [..., stored + 1], float32."""
    return F.linear(_norm(hidden, norm), unembed).float()
