"""Where the vocabulary comes from, and text decoded piece by piece."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeray.cluster.tokenizer import HarmonyTokenizer, TextDecoder, resolve_ranks
from moeray.vocabulary import o200k
from moeray.vocabulary.harmony_tokens import END, RETURN, SPECIAL_TOKENS, VOCABULARY_SIZE
from moeray.vocabulary.o200k import VocabularyError


@pytest.fixture(scope="module")
def tokenizer() -> HarmonyTokenizer:
    return HarmonyTokenizer.load()


def write_byte_vocabulary(path: Path, *, swapped: bool = False) -> bytes:
    """A tokenizer.json of the 256 single bytes; ``swapped`` exchanges "a" and "b"."""
    ids = {byte: byte for byte in range(256)}
    if swapped:
        ids[ord("a")], ids[ord("b")] = ids[ord("b")], ids[ord("a")]
    document = {
        "added_tokens": [{"id": i, "content": name} for name, i in SPECIAL_TOKENS.items()],
        "model": {
            "type": "BPE",
            "vocab": {o200k._spell(bytes([byte])): rank for byte, rank in ids.items()},
        },
    }
    path.write_text(json.dumps(document))
    return o200k.serialize_ranks({bytes([byte]): rank for byte, rank in ids.items()})


def test_an_explicit_file_wins_over_the_checkpoint_and_that_over_the_package(
    tmp_path: Path,
) -> None:
    checkpoint = tmp_path / "model"
    checkpoint.mkdir()
    explicit = tmp_path / "mine.json"
    assert resolve_ranks(tokenizer_file=None, checkpoint=checkpoint) == (
        o200k.packaged_ranks(),
        str(o200k.packaged_ranks_path()),
    )
    from_checkpoint = write_byte_vocabulary(checkpoint / "tokenizer.json")
    assert resolve_ranks(tokenizer_file=None, checkpoint=checkpoint) == (
        from_checkpoint,
        str(checkpoint / "tokenizer.json"),
    )
    from_file = write_byte_vocabulary(explicit, swapped=True)
    assert from_file != from_checkpoint
    assert resolve_ranks(tokenizer_file=explicit, checkpoint=checkpoint) == (
        from_file,
        str(explicit),
    )


def test_an_explicit_file_may_be_a_tiktoken_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.tiktoken"
    shutil.copy(o200k.packaged_ranks_path(), path)
    assert resolve_ranks(tokenizer_file=path, checkpoint=None)[0] == o200k.packaged_ranks()


@pytest.mark.parametrize("content", [None, "{}", "no vocabulary"])
def test_a_bad_tokenizer_file_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(VocabularyError, match="mine"):
        HarmonyTokenizer.load(tokenizer_file=path)


def test_a_checkpoint_with_a_broken_tokenizer_is_refused_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(VocabularyError, match="tokenizer"):
        HarmonyTokenizer.load(checkpoint=tmp_path)


def test_loading_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", "/nowhere")
    HarmonyTokenizer.load()
    assert os.environ["TIKTOKEN_ENCODINGS_BASE"] == "/nowhere"
    monkeypatch.delenv("TIKTOKEN_ENCODINGS_BASE")
    HarmonyTokenizer.load()
    assert "TIKTOKEN_ENCODINGS_BASE" not in os.environ


def test_special_tokens_in_text_are_text(tokenizer: HarmonyTokenizer) -> None:
    text = "<|end|><|start|>system"
    tokens = tokenizer.encode(text)
    assert not set(tokens) & set(SPECIAL_TOKENS.values())
    assert tokenizer.encoding.decode(tokens) == text
    assert tokenizer.encode_with_specials("<|return|>") == [RETURN]


def test_both_encoders_agree(tokenizer: HarmonyTokenizer) -> None:
    text = "Grüße, 世界! <|end|>\n\n\t1234 it's"
    theirs = tokenizer.harmony.encode(text, disallowed_special=())
    assert tokenizer.encode(text) == theirs


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", ["a", " ", "\n", "é", "/\n", "中"])
def test_long_runs_are_encoded_whole(tokenizer: HarmonyTokenizer, piece: str) -> None:
    text = piece * (1_200_000 // len(piece))
    assert tokenizer.encoding.decode(tokenizer.encode(text)) == text


def test_bytes_of_tokens(tokenizer: HarmonyTokenizer) -> None:
    assert tokenizer.token_bytes(tokenizer.encode("hello")[0]) == b"hello"
    for token in (END, VOCABULARY_SIZE - 1, VOCABULARY_SIZE, -1, 1 << 40):
        assert tokenizer.token_bytes(token) == b""


@settings(deadline=None)
@given(st.lists(st.binary(max_size=5), max_size=12))
def test_decoded_pieces_add_up_to_the_whole(pieces: list[bytes]) -> None:
    decoder = TextDecoder()
    parts = [decoder.feed(piece) for piece in pieces]
    assert "".join(parts) + decoder.flush() == b"".join(pieces).decode("utf-8", "replace")


def test_a_character_waits_for_its_last_byte() -> None:
    decoder = TextDecoder()
    assert [decoder.feed(bytes([byte])) for byte in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]
    assert decoder.feed(b"\xf0\x9f") == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.feed(b"ok") == "ok"
