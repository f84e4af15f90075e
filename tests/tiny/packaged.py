"""The trained weights as the packaged file holds them, bfloat16 rows and packed experts; and back.

Training can start from a packaged file. What it rounded away is lost then, which is little: the
model was trained to do without.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from moeray.kernels.reference import dequantize_mxfp4
from moeray.worker.checkpoint_layout import layer_prefix
from tests.tiny.model import EXPERT_MATRICES, TinyModel
from tests.tiny.mxfp4 import pack_mxfp4
from tests.tiny.vocabulary import Vocabulary

CHECKPOINT_NAMES = {
    "attention_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "sinks": "self_attn.sinks",
    "router": "mlp.router.weight",
    "router_bias": "mlp.router.bias",
    "gate_up_bias": "mlp.experts.gate_up_proj_bias",
    "down_bias": "mlp.experts.down_proj_bias",
}
"""The checkpoint's names of the stacked weights, after a layer's prefix; but for the experts'
matrices, which become two tensors each."""
CHECKPOINT_NAMES |= {name: f"self_attn.{name}_proj.weight" for name in "qkvo"}
CHECKPOINT_NAMES |= {f"{name}_bias": f"self_attn.{name}_proj.bias" for name in "qkvo"}


WHOLE = {
    "embed": "embed_tokens.rows",
    "unembed": "lm_head.rows",
    "final_norm": "model.norm.weight",
}
"""The packaged file's names of the weights that are of no layer."""


def packaged_tensors(model: TinyModel, vocabulary: Vocabulary) -> dict[str, Tensor]:
    """The packaged file's tensors, on the CPU: token_ids int32 [V], the rows of embed_tokens and
    lm_head bfloat16 [V + 1, H], and every other tensor under its name in the checkpoint."""
    weights = {name: tensor.detach().cpu() for name, tensor in model.named_parameters()}
    tensors = {
        "token_ids": torch.from_numpy(vocabulary.token_ids),
        **{stored: weights[name].bfloat16() for name, stored in WHOLE.items()},
    }
    for layer in range(model.shape.layers):
        prefix = layer_prefix(layer)
        for name, published in CHECKPOINT_NAMES.items():
            tensors[prefix + published] = weights[name][layer].bfloat16()
        for name in EXPERT_MATRICES:
            blocks, scales = pack_mxfp4(weights[name][layer])
            tensors[f"{prefix}mlp.experts.{name}_proj_blocks"] = blocks
            tensors[f"{prefix}mlp.experts.{name}_proj_scales"] = scales
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def load_packaged(model: TinyModel, path: Path) -> None:
    """Gives ``model`` the weights of the packaged file ``path``, which is of its shape."""
    with safe_open(path, framework="pt") as file:
        for name, parameter in model.named_parameters():
            if name in WHOLE:
                values = file.get_tensor(WHOLE[name])
            else:
                prefixes = (layer_prefix(layer) for layer in range(model.shape.layers))
                values = torch.stack([_stored(file, prefix, name) for prefix in prefixes])
            parameter.copy_(values.float())


def packaged_vocabulary(path: Path) -> Vocabulary:
    """The stored tokens of the packaged file ``path``."""
    with safe_open(path, framework="np") as file:
        return Vocabulary(file.get_tensor("token_ids"))


def _stored(file: safe_open, prefix: str, name: str) -> Tensor:
    if name not in EXPERT_MATRICES:
        return file.get_tensor(prefix + CHECKPOINT_NAMES[name])
    packed = (
        file.get_tensor(f"{prefix}mlp.experts.{name}_proj_{part}") for part in ("blocks", "scales")
    )
    return dequantize_mxfp4(*packed, torch.float32)


def export(model: TinyModel, vocabulary: Vocabulary, path: Path) -> None:
    """Writes the packaged file; it appears whole."""
    partial = path.with_suffix(".partial")
    save_file(packaged_tensors(model, vocabulary), partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(path)
