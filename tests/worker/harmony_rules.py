"""Channel rules with the token ids that gpt-oss uses, for tests of the engine's side."""

from collections.abc import Sequence
from functools import cache

import tiktoken

from moeray.vocabulary.harmony_tokens import SPECIAL_TOKENS
from moeray.vocabulary.o200k import PATTERN, load_ranks, packaged_ranks, packaged_ranks_path
from moeray.worker.request import BodyKind, ChannelRules, Header


@cache
def encoding() -> tiktoken.Encoding:
    """o200k_harmony from the packaged vocabulary."""
    return tiktoken.Encoding(
        "o200k_harmony",
        pat_str=PATTERN,
        mergeable_ranks=load_ranks(packaged_ranks(), str(packaged_ranks_path())),
        special_tokens=SPECIAL_TOKENS,
    )


def encode(text: str) -> tuple[int, ...]:
    """The tokens of text in which special tokens are spelled out."""
    return tuple(encoding().encode(text, allowed_special="all"))


def rules(*, tools: Sequence[str] = (), thinking_budget: int | None = None) -> ChannelRules:
    """The rules of a request that declares these tools."""
    headers = [
        Header(encode("<|channel|>analysis<|message|>"), BodyKind.ANALYSIS),
        Header(encode("<|channel|>final<|message|>"), BodyKind.FINAL),
    ]
    if tools:
        headers.append(Header(encode("<|channel|>commentary<|message|>"), BodyKind.COMMENTARY))
    for tool in tools:
        for opening in (
            f" to=functions.{tool}<|channel|>commentary",
            f"<|channel|>commentary to=functions.{tool}",
        ):
            for content_type in ("", "<|constrain|>json", " <|constrain|>json"):
                path = encode(f"{opening}{content_type}<|message|>")
                headers.append(Header(path, BodyKind.TOOL_CALL))
    return ChannelRules(
        turn_opening=encode("<|start|>assistant"),
        headers=tuple(headers),
        thinking_budget=thinking_budget,
    )
