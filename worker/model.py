"""gpt-oss's forward pass for one rank of an expert-parallel group.

Attention is data-parallel: a rank runs it for its own rows over its own KV cache. Experts are
divided: every rank gathers all rows, routes them, runs the experts it holds and adds those up in
float32; the ranks exchange these subtree sums and each adds them for its own rows. The order of
additions is the same for any number of ranks (``tree_sum``).

No state but the weights: a batch and a cache are passed in, logits come out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from moeray.kernels import reference as ops
from moeray.worker.batch import Batch, PagedRows
from moeray.worker.checkpoint import Checkpoint
from moeray.worker.checkpoint_layout import layer_prefix
from moeray.worker.communicator import Communicator
from moeray.worker.config import EXPERT_GROUPS
from moeray.worker.kv_cache import KvCache, LayerCache
from moeray.worker.model_config import ModelConfig
from moeray.worker.unembedding import Unembedding


@dataclass(frozen=True, slots=True)
class Linear:
    """weight [out, in] and bias [out]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The experts of one layer that this rank holds; shapes as in ops.expert_outputs."""

    gate_up_blocks: Tensor
    gate_up_scales: Tensor
    gate_up_bias: Tensor
    down_blocks: Tensor
    down_scales: Tensor
    down_bias: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer's weights."""

    windowed: bool
    attention_norm: Tensor
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    sinks: Tensor
    mlp_norm: Tensor
    router: Linear
    """float32 in any model: near-ties between experts decide a row's path."""
    experts: Experts


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeTables:
    """Cosine and sine [P, D / 2] of a batch's positions."""

    cosine: Tensor
    sine: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One rank's weights. ``forward`` is called by all ranks together, step by step."""

    config: ModelConfig
    communicator: Communicator
    embedding: Tensor
    layers: tuple[Layer, ...]
    final_norm: Tensor
    unembedding: Unembedding
    inverse_frequencies: Tensor

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        dtype: torch.dtype,
        communicator: Communicator,
    ) -> "Model":
        """Reads the dense weights in ``dtype`` and this rank's share of the experts, packed."""
        loader = _Loader(checkpoint, device, dtype, communicator)
        config = checkpoint.config
        yarn = config.yarn
        frequencies = ops.yarn_inverse_frequencies(
            head_dim=config.head_dim,
            theta=yarn.theta,
            factor=yarn.factor,
            original_context=yarn.original_context,
            beta_fast=yarn.beta_fast,
            beta_slow=yarn.beta_slow,
            truncate=yarn.truncate,
        )
        return cls(
            config=config,
            communicator=communicator,
            embedding=loader.dense("model.embed_tokens.weight"),
            layers=tuple(loader.layer(i) for i in range(config.layers)),
            final_norm=loader.dense("model.norm.weight"),
            unembedding=Unembedding.of(loader.dense("lm_head.weight")),
            inverse_frequencies=frequencies.to(device),
        )

    @torch.inference_mode()
    def forward(self, batch: Batch, kv: KvCache) -> Tensor:
        """The logits [K, vocabulary] float32 of batch.sample_rows. See ``last_hidden``."""
        return self.logits(self.last_hidden(batch, kv))

    @torch.inference_mode()
    def last_hidden(self, batch: Batch, kv: KvCache) -> Tensor:
        """Runs a batch through the layers, writing its keys and values to ``kv``.

        Returns the final hidden states [K, H] of batch.sample_rows. Every rank of the group calls
        this once a step, also with K = 0.
        """
        x = self.embedding[batch.tokens]
        scaling = ops.yarn_attention_scaling(self.config.yarn.factor)
        cosine, sine = ops.rope_tables(batch.positions, self.inverse_frequencies, scaling)
        rope = RopeTables(cosine=cosine, sine=sine)
        for layer, cache in zip(self.layers, kv.layers, strict=True):
            x = x + self._attention(layer, x, rope, batch, cache)
            x = x + self._mlp(layer, x)
        return x[batch.sample_rows]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """The final norm and the unembedding: hidden [K, H] to [K, vocabulary] float32."""
        normed = ops.rms_norm(hidden, self.final_norm, self.config.rms_norm_eps)
        return self.unembedding(normed)

    def _attention(
        self, layer: Layer, x: Tensor, rope: RopeTables, batch: Batch, cache: LayerCache
    ) -> Tensor:
        head_dim = self.config.head_dim
        normed = ops.rms_norm(x, layer.attention_norm, self.config.rms_norm_eps)
        queries, keys, values = (
            linear(normed).view(len(x), -1, head_dim) for linear in (layer.q, layer.k, layer.v)
        )
        queries = ops.apply_rope(queries, rope.cosine, rope.sine)
        keys = ops.apply_rope(keys, rope.cosine, rope.sine)
        paged: PagedRows = batch.window if layer.windowed else batch.full
        ops.write_kv(keys, values, cache.keys, cache.values, paged.slots)
        mixed = ops.paged_attention(
            queries,
            cache.keys,
            cache.values,
            batch.row_starts,
            batch.positions,
            paged.block_table,
            paged.first_blocks,
            layer.sinks,
            scale=head_dim**-0.5,
            window=self.config.sliding_window if layer.windowed else None,
        )
        return layer.o(mixed.flatten(1))

    def _mlp(self, layer: Layer, x: Tensor) -> Tensor:
        config, group = self.config, self.communicator
        rows = group.gather_rows(ops.rms_norm(x, layer.mlp_norm, config.rms_norm_eps))
        experts, weights = ops.route(
            rows, layer.router.weight, layer.router.bias, config.experts_per_token
        )
        share = expert_share(config, group)
        held = layer.experts
        outputs = ops.expert_outputs(
            rows,
            experts,
            held.gate_up_blocks,
            held.gate_up_scales,
            held.gate_up_bias,
            held.down_blocks,
            held.down_scales,
            held.down_bias,
            first_expert=share.start,
            limit=config.swiglu_limit,
            alpha=config.swiglu_alpha,
        )
        sums = ops.combine(
            outputs,
            experts,
            weights,
            group_experts=config.experts // EXPERT_GROUPS,
            first=share.start * EXPERT_GROUPS // config.experts,
            last=share.stop * EXPERT_GROUPS // config.experts,
        )
        return ops.tree_sum(group.exchange_sums(sums)).to(x.dtype)


def expert_share(config: ModelConfig, communicator: Communicator) -> range:
    """The experts that a rank holds: a run of whole groups, equally many on each rank."""
    each = config.experts // communicator.size
    return range(communicator.rank * each, (communicator.rank + 1) * each)


@dataclass(frozen=True, slots=True)
class _Loader:
    """Reads one rank's weights."""

    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype
    communicator: Communicator

    def dense(self, name: str) -> Tensor:
        return self.checkpoint.tensor(name, self.dtype, self.device)

    def linear(self, name: str, dtype: torch.dtype) -> Linear:
        return Linear(
            self.checkpoint.tensor(name + ".weight", dtype, self.device),
            self.checkpoint.tensor(name + ".bias", dtype, self.device),
        )

    def layer(self, index: int) -> Layer:
        prefix = layer_prefix(index)
        q, k, v, o = (self.linear(f"{prefix}self_attn.{n}_proj", self.dtype) for n in "qkvo")
        return Layer(
            windowed=self.checkpoint.config.windowed[index],
            attention_norm=self.dense(prefix + "input_layernorm.weight"),
            q=q,
            k=k,
            v=v,
            o=o,
            sinks=self.dense(prefix + "self_attn.sinks"),
            mlp_norm=self.dense(prefix + "post_attention_layernorm.weight"),
            router=self.linear(prefix + "mlp.router", torch.float32),
            experts=self.experts(prefix + "mlp.experts."),
        )

    def experts(self, prefix: str) -> Experts:
        share = expert_share(self.checkpoint.config, self.communicator)

        def held(name: str, dtype: torch.dtype) -> Tensor:
            return self.checkpoint.rows(prefix + name, share.start, share.stop, dtype, self.device)

        return Experts(
            gate_up_blocks=held("gate_up_proj_blocks", torch.uint8),
            gate_up_scales=held("gate_up_proj_scales", torch.uint8),
            gate_up_bias=held("gate_up_proj_bias", self.dtype),
            down_blocks=held("down_proj_blocks", torch.uint8),
            down_scales=held("down_proj_scales", torch.uint8),
            down_bias=held("down_proj_bias", self.dtype),
        )
