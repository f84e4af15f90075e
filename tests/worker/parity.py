"""What the parity tests share: a checkpoint whose every part is heard, and transformers' logits."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GptOssForCausalLM, Mxfp4Config

from moeray.worker.checkpoint_shape import CheckpointShape
from tests.worker.paged_run import SMALL, make_small

TOLERANCE = 1e-4
"""Of the greatest logit, in float32."""


def make_loud(path: Path, shape: CheckpointShape = SMALL) -> Path:
    """A checkpoint with weights far from Moeray's small ones: each part moves the logits."""
    make_small(path, shape)
    rewrite(path, _louder)
    return path


def rewrite(folder: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    for shard in folder.glob("*.safetensors"):
        tensors = {name: change(name, tensor) for name, tensor in load_file(shard).items()}
        save_file(tensors, shard, metadata={"format": "pt"})


def random_text(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SMALL.vocabulary_size, (length,), generator=generator).tolist()


def transformers_logits(
    folder: Path, texts: Mapping[str, Sequence[int]], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """transformers' logits [tokens, vocabulary] of each text, float32."""
    reference = GptOssForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=Mxfp4Config(dequantize=True),
        attn_implementation="eager",
        # The other implementations may compute in bfloat16.
        experts_implementation="eager",
    )
    reference = reference.eval()
    for parameter in reference.parameters():
        # Older versions leave the dequantised experts in bfloat16. Not `reference.to(dtype)`: that
        # would round RoPE's frequencies too, and double transformers' error.
        parameter.data = parameter.data.to(dtype)
    with torch.inference_mode():
        return {
            name: reference(torch.tensor([list(text)])).logits[0].float()
            for name, text in texts.items()
        }


def error(got: Tensor, want: Tensor) -> float:
    """The greatest difference, as a share of the greatest logit."""
    return float((got - want).abs().max() / want.abs().max())


def _louder(name: str, tensor: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(len(name))
    if tensor.dtype == torch.uint8:
        # Two octaves up, and scales that differ from block to block.
        if name.endswith("scales"):
            octaves = torch.randint(0, 4, tensor.shape, generator=generator, dtype=torch.uint8)
            return tensor + octaves
        return tensor
    if name.endswith("bias"):
        return tensor * 25
    if name.endswith("sinks"):
        return tensor * 3
    if name.endswith("norm.weight"):
        return (1 + 0.3 * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
    if name.endswith("o_proj.weight"):
        return tensor * 8
    if name.endswith("router.weight"):
        return tensor * 3
    return tensor
