"""The vocabulary in both layouts: tiktoken's and Hugging Face's encode alike."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers

from moeray.vocabulary import o200k
from moeray.vocabulary.harmony_tokens import SPECIAL_TOKENS
from moeray.vocabulary.o200k import VocabularyError

CORPUS = [
    "",
    " ",
    "Hello, world! It's 2025-11-01; we'll see what they've done, HE'LL too.",
    "naïve café — Ελληνικά, русский, العربية, हिन्दी, 中文分詞, 日本語のテキスト, 한국어",
    "🙂👩‍👩‍👧‍👦🇮🇹 e\u0301 \u200b\ufeff \x00\x7f\x85",
    "def f(x):\n\treturn {'a': [1, 22, 333, 4444, 1_000_000]}  # ok\r\n\r\n\n",
    "   leading\n\n\n   and trailing   ",
    "https://example.org/a/b/?q=1&r=%20//\n//\n",
    "ALLCAPSandCamelCaseAndǅ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    return o200k.load_ranks(o200k.packaged_ranks(), "packaged")


@pytest.fixture(scope="module")
def encoding(ranks: dict[bytes, int]) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "o200k_harmony",
        pat_str=o200k.PATTERN,
        mergeable_ranks=ranks,
        special_tokens=SPECIAL_TOKENS,
        explicit_n_vocab=201088,
    )


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    o200k.write_tokenizer_json(path)
    return path


def samples(ranks: dict[bytes, int]) -> list[str]:
    generator = random.Random(7)
    tokens = list(ranks)
    mixed = [
        b"".join(generator.choices(tokens, k=generator.randint(1, 16))).decode(errors="ignore")
        for _ in range(1000)
    ]
    return CORPUS + mixed


def test_the_packaged_file_is_whole(ranks: dict[bytes, int]) -> None:
    assert len(ranks) == 199_998
    assert ranks[b"!"] == 0
    assert o200k.serialize_ranks(ranks) == o200k.packaged_ranks()


def test_a_damaged_packaged_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "o200k_base.tiktoken"
    damaged.write_bytes(b"IQ== 0\n")
    monkeypatch.setattr(o200k, "packaged_ranks_path", lambda: damaged)
    with pytest.raises(VocabularyError, match=re.escape(str(damaged))):
        o200k.packaged_ranks()


def test_hugging_face_tokenizers_encode_as_tiktoken(
    tokenizer_json: Path, encoding: tiktoken.Encoding, ranks: dict[bytes, int]
) -> None:
    theirs = tokenizers.Tokenizer.from_file(str(tokenizer_json))
    for text in samples(ranks):
        expected = encoding.encode_ordinary(text)
        assert theirs.encode(text, add_special_tokens=False).ids == expected, text
        assert theirs.decode(expected, skip_special_tokens=False) == text


def test_merges_alone_reach_every_token(
    tokenizer_json: Path, encoding: tiktoken.Encoding, ranks: dict[bytes, int]
) -> None:
    """Without ``ignore_merges``, so that a wrong pair shows."""
    document = json.loads(tokenizer_json.read_bytes())
    document["model"]["ignore_merges"] = False
    theirs = tokenizers.Tokenizer.from_str(json.dumps(document))
    generator = random.Random(3)
    for token in generator.sample(list(ranks), 5000):
        text = token.decode(errors="ignore")
        if text.encode() == token:
            expected = encoding.encode_ordinary(text)
            assert theirs.encode(text, add_special_tokens=False).ids == expected, token


def test_transformers_loads_it_and_knows_the_special_tokens(
    tokenizer_json: Path, encoding: tiktoken.Encoding
) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_json))
    text = "<|start|>user<|message|>It's 3.14!\n<|end|><|start|>assistant<|channel|>final"
    expected = encoding.encode(text, allowed_special="all")
    assert theirs.encode(text, add_special_tokens=False) == expected
    assert theirs.decode(expected) == text
    assert theirs.convert_tokens_to_ids("<|call|>") == 200012


def test_tokenizer_json_gives_the_ranks_back(tokenizer_json: Path) -> None:
    assert o200k.ranks_from_tokenizer_json(tokenizer_json) == o200k.packaged_ranks()


def small_tokenizer() -> dict[str, Any]:
    """A byte-level tokenizer.json with the 256 bytes only and all of Harmony's special tokens."""
    return {
        "added_tokens": [{"id": i, "content": name} for name, i in SPECIAL_TOKENS.items()],
        "model": {"type": "BPE", "vocab": {o200k._spell(bytes([b])): b for b in range(256)}},
    }


def test_a_small_vocabulary_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(small_tokenizer()))
    ranks = o200k.load_ranks(o200k.ranks_from_tokenizer_json(path), str(path))
    assert ranks == {bytes([b]): b for b in range(256)}


def without_byte_alphabet(document: dict[str, Any]) -> None:
    document["model"]["vocab"]["\n"] = 256


def with_other_return_id(document: dict[str, Any]) -> None:
    for entry in document["added_tokens"]:
        if entry["content"] == "<|return|>":
            entry["id"] = 5


def without_call(document: dict[str, Any]) -> None:
    document["added_tokens"] = [
        entry for entry in document["added_tokens"] if entry["content"] != "<|call|>"
    ]


def without_added_tokens(document: dict[str, Any]) -> None:
    del document["added_tokens"]


def as_unigram(document: dict[str, Any]) -> None:
    document["model"] = {"type": "Unigram", "vocab": [["a", 0.0]]}


def with_a_gap(document: dict[str, Any]) -> None:
    document["model"]["vocab"]["aa"] = 300


def without_a_byte(document: dict[str, Any]) -> None:
    vocab = document["model"]["vocab"]
    vocab["aa"] = vocab.pop("a")


def with_text_id(document: dict[str, Any]) -> None:
    document["model"]["vocab"]["aa"] = "256"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (without_byte_alphabet, "byte-level alphabet"),
        (with_other_return_id, "<|return|> has id 5, expected 200002"),
        (without_call, "<|call|> has id None, expected 200012"),
        (without_added_tokens, "added_tokens"),
        (as_unigram, "type BPE"),
        (with_a_gap, "ids 0 to 256"),
        (without_a_byte, "no token for byte 0x61"),
        (with_text_id, "expected a number"),
    ],
)
def test_a_wrong_tokenizer_json_is_refused_by_name(
    tmp_path: Path, spoil: Any, expected: str
) -> None:
    document = small_tokenizer()
    spoil(document)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    with pytest.raises(VocabularyError, match=re.escape(expected)) as error:
        o200k.ranks_from_tokenizer_json(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"[1]", b'"text"', b"[" * 100_000])
def test_what_is_no_tokenizer_json_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(VocabularyError, match=r"expected a tokenizer\.json") as error:
        o200k.ranks_from_tokenizer_json(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="No such file"):
        o200k.ranks_from_tokenizer_json(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("line", [b"IQ==", b"IQ== x", b"!!! 1", b"IQ== 1 2"])
def test_a_broken_line_of_a_tiktoken_file_is_named(line: bytes) -> None:
    with pytest.raises(VocabularyError, match=r"file\.tiktoken: line 2"):
        o200k.load_ranks(b"IQ== 0\n" + line, "file.tiktoken")
