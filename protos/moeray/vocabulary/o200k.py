"""o200k, the byte-pair vocabulary of gpt-oss, in the two layouts it travels in.

tiktoken's file has one line per token, ``base64(bytes) rank``, and the rank is the token's id.
Hugging Face's ``tokenizer.json`` spells bytes as printable characters and lists the merges. Both
hold the same vocabulary; the special tokens are those of ``harmony_tokens``. Standard library only:
gateways and engines both import it, and nothing here downloads anything.

Source: ``o200k_base`` and ``o200k_harmony`` in tiktoken (MIT, see LICENSE.tiktoken); byte-level BPE
as in openai/gpt-2 ``encoder.py``.
"""

import base64
import binascii
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from moeray.vocabulary.harmony_tokens import END_OF_PROMPT, FIRST_SPECIAL, SPECIAL_TOKENS

RANKS_FILE: Final = "o200k_base.tiktoken"
RANKS_SHA256: Final = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"

PATTERN: Final = "|".join(
    [
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""",
        r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
        r"""\s*[\r\n]+""",
        r"""\s+(?!\S)""",
        r"""\s+""",
    ]
)
"""The regular expression that splits text into the pieces that byte-pair encoding works on."""


class VocabularyError(Exception):
    """A vocabulary file is not what it should be; the message names it and what was expected."""


def packaged_ranks_path() -> Path:
    """Where the packaged tiktoken file lies."""
    return Path(str(files("moeray.vocabulary").joinpath(RANKS_FILE)))


def packaged_ranks() -> bytes:
    """The packaged tiktoken file. Raises VocabularyError when it is missing or damaged."""
    path = packaged_ranks_path()
    data = _read(path)
    digest = hashlib.sha256(data).hexdigest()
    if digest != RANKS_SHA256:
        raise VocabularyError(f"{path}: sha256 is {digest}, expected {RANKS_SHA256}: reinstall")
    return data


def load_ranks(data: bytes, source: str) -> dict[bytes, int]:
    """Parse a tiktoken file into rank by token bytes, in the file's order.

    ``source`` names the file in errors. Raises VocabularyError unless every line is
    ``base64(bytes) rank``, the ranks are 0 to n-1 once each with n <= FIRST_SPECIAL, and all 256
    single bytes are tokens, so that any text can be encoded.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise VocabularyError(
                f"{source}: line {number} is not 'base64(bytes) rank', as in a tiktoken file"
            ) from None
    _check_ranks(ranks, source)
    return ranks


def ranks_from_tokenizer_json(path: Path) -> bytes:
    """Read a Hugging Face tokenizer.json and return its vocabulary as a tiktoken file.

    Merges are ignored: rank order says the same. Raises VocabularyError when the file is not JSON,
    holds no byte-level BPE model, or gives Harmony's special tokens other ids.
    """
    document = _read_json(path)
    specials = _added_tokens(document, path)
    for name, expected in SPECIAL_TOKENS.items():
        named = not name.startswith("<|reserved_")
        if (named or name in specials) and specials.get(name) != expected:
            raise VocabularyError(
                f"{path}: special token {name} has id {specials.get(name)}, expected {expected}, "
                "as in o200k_harmony"
            )
    ranks = _bpe_vocabulary(document, specials, path)
    _check_ranks(ranks, str(path))
    return serialize_ranks(ranks)


def serialize_ranks(ranks: dict[bytes, int]) -> bytes:
    """Write a tiktoken file: lines in order of rank."""
    lines = (
        base64.b64encode(token) + b" %d\n" % rank
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    )
    return b"".join(lines)


def write_tokenizer_json(path: Path) -> None:
    """Write the packaged vocabulary as a tokenizer.json in the layout of gpt-oss's checkpoints.

    ``tokenizers`` and ``transformers`` load it and encode as tiktoken does. Takes seconds: the
    merges are worked out from the ranks.
    """
    ranks = load_ranks(packaged_ranks(), str(packaged_ranks_path()))
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _special_entries(),
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": PATTERN},
                    "behavior": "Isolated",
                    "invert": False,
                },
                _byte_level(add_prefix_space=False, trim_offsets=True, use_regex=False),
            ],
        },
        "post_processor": _byte_level(add_prefix_space=True, trim_offsets=False, use_regex=True),
        "decoder": _byte_level(add_prefix_space=True, trim_offsets=True, use_regex=True),
        "model": _bpe_model(ranks),
    }
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def _bpe_model(ranks: dict[bytes, int]) -> dict[str, Any]:
    spelled = {token: _spell(token) for token in ranks}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        # A piece that is a token as a whole is that token, whether merges lead to it or not.
        "ignore_merges": True,
        "vocab": {spelled[token]: rank for token, rank in ranks.items()},
        "merges": [[spelled[left], spelled[right]] for left, right in _merges(ranks)],
    }


def _byte_level(*, add_prefix_space: bool, trim_offsets: bool, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": trim_offsets,
        "use_regex": use_regex,
    }


def _special_entries() -> list[dict[str, Any]]:
    # gpt-oss lists the special tokens up to the last one with a name.
    return [
        {
            "id": token,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for name, token in sorted(SPECIAL_TOKENS.items(), key=lambda item: item[1])
        if token <= END_OF_PROMPT
    ]


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that byte-pair encoding joins last in each token, in order of rank.

    A token that merges do not reach has no pair: it is only found whole.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) < 2:
            continue
        splits = [
            (token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in ranks and token[cut:] in ranks
        ]
        if len(splits) > 1:
            splits = _last_pair(token, rank, ranks)
        merges += splits
    return merges


def _last_pair(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Encode ``token`` with the ranks below its own; the two parts left, if they are two."""
    parts = [token[i : i + 1] for i in range(len(token))]
    # Ranks of neighbours joined; ``rank`` stands for no merge, because it is never reached here.
    joined = [ranks.get(token[i : i + 2], rank) for i in range(len(token) - 1)]
    while len(parts) > 2:
        lowest = min(joined)
        if lowest >= rank:
            return []
        at = joined.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del joined[at]
        if at < len(joined):
            joined[at] = ranks.get(parts[at] + parts[at + 1], rank)
        if at:
            joined[at - 1] = ranks.get(parts[at - 1] + parts[at], rank)
    return [(parts[0], parts[1])]


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the others from U+0100 upward."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in alphabet)
    return alphabet | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


_ALPHABET: Final = _byte_alphabet()
_SPELLING: Final = str.maketrans({chr(byte): char for byte, char in _ALPHABET.items()})
_BYTES: Final = {ord(char): byte for byte, char in _ALPHABET.items()}


def _spell(token: bytes) -> str:
    return token.decode("latin-1").translate(_SPELLING)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise VocabularyError(f"{path}: cannot be read: {error.strerror}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise VocabularyError(
            f"{path}: expected a tokenizer.json, but it is no JSON: {error}"
        ) from (error)
    if not isinstance(document, dict):
        raise VocabularyError(f"{path}: expected a tokenizer.json, a JSON object")
    return document


def _added_tokens(document: dict[str, Any], path: Path) -> dict[str, int]:
    entries = document.get("added_tokens")
    if not isinstance(entries, list):
        raise VocabularyError(f"{path}: expected a list 'added_tokens' of special tokens")
    tokens: dict[str, int] = {}
    for entry in entries:
        content, token = (
            (entry.get("content"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        )
        if not isinstance(content, str) or not isinstance(token, int):
            raise VocabularyError(f"{path}: expected 'content' and 'id' in each of 'added_tokens'")
        tokens[content] = token
    return tokens


def _bpe_vocabulary(
    document: dict[str, Any], specials: dict[str, int], path: Path
) -> dict[bytes, int]:
    model = document.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(vocab, dict):
        raise VocabularyError(f"{path}: expected 'model' of type BPE with a 'vocab'")
    ranks: dict[bytes, int] = {}
    for spelled, rank in vocab.items():
        if spelled in specials:
            continue
        try:
            token = bytes(map(_BYTES.__getitem__, map(ord, spelled)))
        except KeyError:
            raise VocabularyError(
                f"{path}: token {spelled!r} is not spelled in the byte-level alphabet"
            ) from None
        if not isinstance(rank, int):
            raise VocabularyError(f"{path}: token {spelled!r} has id {rank!r}, expected a number")
        ranks[token] = rank
    return ranks


def _check_ranks(ranks: dict[bytes, int], source: str) -> None:
    if not 256 <= len(ranks) <= FIRST_SPECIAL:
        raise VocabularyError(f"{source}: {len(ranks)} tokens, expected 256 to {FIRST_SPECIAL}")
    if set(ranks.values()) != set(range(len(ranks))):
        raise VocabularyError(
            f"{source}: expected the ids 0 to {len(ranks) - 1}, each once, for its {len(ranks)} "
            "text tokens"
        )
    missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if missing is not None:
        raise VocabularyError(f"{source}: no token for byte 0x{missing:02x}")
