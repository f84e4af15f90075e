"""FlashAttention-3 (Shah et al., 2024) as a peer of attention, as vLLM 0.24's wheel holds it.

The call is that of ``flash_attn_varlen_func`` there, of the operator itself, so that nothing else
of vLLM is imported. vLLM schedules the work anew in each call for a model with windowed layers;
here that is done once before, where the operator allows it: a step's layers could share it.
"""

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

NAME = "FlashAttention-3"
_LIBRARY = "vllm_flash_attn/_vllm_fa3_C.abi3.so"
_UNUSED = (
    "k_new",
    "v_new",
    "q_v",
    "out",
    "cu_seqlens_k_new",
    "seqused_q",
    "kv_batch_idx",
    "leftpad_k",
    "rotary_cos",
    "rotary_sin",
    "seqlens_rotary",
    "q_descale",
    "k_descale",
    "v_descale",
    "pack_gqa",
    "cp_tot_seqused_k",
)


@cache
def available() -> bool:
    """Whether vLLM's wheel is installed beside a GPU for it; makes its operators known to torch."""
    vllm = find_spec("vllm")
    if vllm is None or torch.cuda.get_device_capability()[0] != 9:
        return False
    for folder in vllm.submodule_search_locations or ():
        if (library := Path(folder) / _LIBRARY).exists():
            torch.ops.load_library(library)
            return True
    return False


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    rows: int,
    lengths: Tensor,
    longest: int,
    block_table: Tensor | None,
    sinks: Tensor,
    scale: float,
    window: int | None,
) -> Callable[[], Tensor]:
    """Causal attention of the last ``rows`` of each sequence: a call that gives [S * rows, Hq, D].

    queries [S * rows, Hq, D] bfloat16; lengths [S]: keys of each sequence, the longest has
    ``longest``; keys and values: pages [P, B, Hkv, D] of the block_table [S, columns], or without
    one all keys in turn, [sum of lengths, Hkv, D].
    """
    sequences, lengths = len(lengths), lengths.int()
    starts = torch.arange(0, sequences * rows + 1, rows, dtype=torch.int32, device=queries.device)
    key_starts = torch.cat((lengths.new_zeros(1), lengths.cumsum(0, dtype=torch.int32)))
    behind = -1 if window is None else window - 1
    schedule = None
    if block_table is not None:
        heads = queries.shape[1], *keys.shape[2:]
        schedule = _schedule(rows, lengths, longest, starts, heads, keys.shape[1], behind)
    call = partial(
        torch.ops._vllm_fa3_C.fwd,
        **dict.fromkeys(_UNUSED),
        q=queries,
        k=keys,
        v=values,
        cu_seqlens_q=starts,
        cu_seqlens_k=key_starts if block_table is None else None,
        seqused_k=None if block_table is None else lengths,
        max_seqlen_q=rows,
        max_seqlen_k=longest,
        page_table=None if block_table is None else block_table.int(),
        softmax_scale=scale,
        is_causal=True,
        window_size_left=behind,
        window_size_right=-1 if window is None else 0,
        softcap=0.0,
        is_rotary_interleaved=True,
        scheduler_metadata=schedule,
        num_splits=0,  # as many as it chooses
        sm_margin=0,
        s_aux=sinks,
        cp_world_size=1,
        cp_rank=0,
    )
    return lambda: call()[0]


def _schedule(
    rows: int,
    lengths: Tensor,
    longest: int,
    starts: Tensor,
    heads: tuple[int, int, int],
    block_tokens: int,
    behind: int,
) -> Tensor:
    """Of paged calls with these sizes; each call leaves it as it was."""
    query_heads, kv_heads, head_dim = heads
    return torch.ops._vllm_fa3_C.get_scheduler_metadata(  # type: ignore[no-any-return]
        batch_size=len(lengths),
        max_seqlen_q=rows,
        max_seqlen_k=longest,
        num_heads=query_heads,
        num_heads_k=kv_heads,
        headdim=head_dim,
        headdim_v=head_dim,
        qkv_dtype=torch.bfloat16,
        seqused_k=lengths,
        cu_seqlens_q=starts,
        cu_seqlens_k=None,
        cu_seqlens_k_new=None,
        seqused_q=None,
        leftpad_k=None,
        page_size=block_tokens,
        max_seqlen_k_new=0,
        is_causal=True,
        window_size_left=behind,
        window_size_right=-1 if behind < 0 else 0,
        has_softcap=False,
        num_splits=0,
        pack_gqa=None,
        sm_margin=0,
    )
