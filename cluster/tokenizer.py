"""The tokenizer of a served model: its vocabulary, from local data only.

The vocabulary comes from an explicit tokenizer file, else the checkpoint's tokenizer.json, else the
packaged o200k; nothing is ever downloaded. Two encoders come out of it: tiktoken's, which encodes
all text, and openai-harmony's, which lays conversations out.

openai-harmony takes no ranks but o200k's own (it checks their sha256), and its encoder takes time
quadratic in the length of a word: 16 s for 160 kB of one letter, with the interpreter locked. So it
only ever lays out short placeholders (``harmony.py``), and its tokens are encoded again here.
"""

import codecs
import os
import re
from pathlib import Path
from threading import Lock
from typing import Final, Self

import tiktoken
from openai_harmony import HarmonyEncoding, HarmonyEncodingName, load_harmony_encoding

from moeray.vocabulary.harmony_tokens import FIRST_SPECIAL, SPECIAL_TOKENS
from moeray.vocabulary.o200k import (
    PATTERN,
    VocabularyError,
    load_ranks,
    packaged_ranks,
    packaged_ranks_path,
    ranks_from_tokenizer_json,
)

TOKENIZER_JSON: Final = "tokenizer.json"
_ENCODINGS_BASE: Final = "TIKTOKEN_ENCODINGS_BASE"
_environment_lock: Final = Lock()

# tiktoken's regular expressions overflow their stack on a million white-space characters in a row.
_LONG_SPACE: Final = re.compile(r"\s{400000}")


class HarmonyTokenizer:
    """Text to token ids and back. Immutable, so threads may share it."""

    def __init__(self, encoding: tiktoken.Encoding, harmony: HarmonyEncoding) -> None:
        self.encoding = encoding
        self.harmony = harmony

    @classmethod
    def load(cls, *, tokenizer_file: Path | None = None, checkpoint: Path | None = None) -> Self:
        """Load from ``tokenizer_file`` (a tokenizer.json or a tiktoken file), else from the
        tokenizer.json in the folder ``checkpoint``, else from the packaged vocabulary.

        Raises VocabularyError, which names the file and what was expected of it.
        """
        ranks = load_ranks(*resolve_ranks(tokenizer_file=tokenizer_file, checkpoint=checkpoint))
        encoding = tiktoken.Encoding(
            "o200k_harmony",
            pat_str=PATTERN,
            mergeable_ranks=ranks,
            special_tokens=SPECIAL_TOKENS,
        )
        return cls(encoding, _load_harmony())

    def encode(self, text: str) -> list[int]:
        """Encode as plain text: what spells a special token is text too.

        White space is cut into runs of 400,000 characters, a limit that only it can reach.
        """
        tokens: list[int] = []
        start = 0
        for run in _LONG_SPACE.finditer(text):
            tokens += self.encoding.encode_ordinary(text[start : run.end()])
            start = run.end()
        return tokens + self.encoding.encode_ordinary(text[start:])

    def encode_with_specials(self, text: str) -> list[int]:
        """Encode, reading ``<|start|>`` and its like as special tokens. For trusted text only."""
        return self.encoding.encode(text, allowed_special="all")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a text token; empty for special tokens and ids that are not tokens."""
        if not 0 <= token < FIRST_SPECIAL:
            return b""
        try:
            return self.encoding.decode_single_token_bytes(token)
        except KeyError:
            return b""


class TextDecoder:
    """Token bytes to text, whole characters only; broken UTF-8 becomes U+FFFD."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """The characters that ``data`` completes."""
        return self._utf8.decode(data)

    def flush(self) -> str:
        """End the text: an incomplete character becomes U+FFFD. The decoder starts afresh."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def resolve_ranks(*, tokenizer_file: Path | None, checkpoint: Path | None) -> tuple[bytes, str]:
    """Find the vocabulary: a tiktoken file's content, and the name of the file it came from."""
    if tokenizer_file is not None:
        return _read_ranks(tokenizer_file), str(tokenizer_file)
    if checkpoint is not None and (path := checkpoint / TOKENIZER_JSON).exists():
        return ranks_from_tokenizer_json(path), str(path)
    return packaged_ranks(), str(packaged_ranks_path())


def _read_ranks(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VocabularyError(f"{path}: cannot be read: {error.strerror}") from error
    is_json = path.suffix == ".json" or data.lstrip().startswith(b"{")
    return ranks_from_tokenizer_json(path) if is_json else data


def _load_harmony() -> HarmonyEncoding:
    # The library takes its folder from the environment only. The packaged file is checked first:
    # without it the library would try to download one.
    packaged_ranks()
    with _environment_lock:
        before = os.environ.get(_ENCODINGS_BASE)
        os.environ[_ENCODINGS_BASE] = str(packaged_ranks_path().parent)
        try:
            return load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
        finally:
            if before is None:
                del os.environ[_ENCODINGS_BASE]
            else:
                os.environ[_ENCODINGS_BASE] = before
