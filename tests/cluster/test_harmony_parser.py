"""The output parser: golden cases, agreement with openai-harmony, and nothing lost on any input.

tests/golden/harmony_output.json spells special tokens out. Its events join neighbouring deltas of
one channel.
"""

import json
import re
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import openai_harmony as oh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeray.cluster.generation import Channel
from moeray.cluster.harmony_header import RecoveryKind
from moeray.cluster.harmony_parser import (
    Event,
    HarmonyParser,
    TextDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.vocabulary.harmony_tokens import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    FIRST_SPECIAL,
    MESSAGE,
    RETURN,
    START,
    VOCABULARY_SIZE,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "harmony_output.json"
CASES = json.loads(GOLDEN.read_text(encoding="utf-8"))
ENDERS = {END, CALL, RETURN}


@pytest.fixture(scope="module")
def tokenizer() -> HarmonyTokenizer:
    return HarmonyTokenizer.load()


def parse(tokenizer: HarmonyTokenizer, tokens: list[int]) -> tuple[HarmonyParser, list[Event]]:
    """Parse, and check what holds for any input."""
    parser = HarmonyParser(tokenizer.token_bytes)
    events = list(chain.from_iterable(parser.feed(token) for token in tokens))
    events += parser.finish()
    assert [token for event in events for token in event.token_ids] == tokens
    assert parser.usage.total == len(tokens)
    assert parser.finish() == []
    return parser, events


def readable(events: list[Event]) -> list[list[Any]]:
    """Events as the golden file has them."""
    lines: list[list[Any]] = []
    for event in events:
        match event:
            case TextDelta(channel, text, _):
                line = [channel.value, text]
            case ToolCallStart(index, name, _):
                line = [f"call {index}", name]
            case ToolCallArguments(index, text, _):
                line = [f"arguments {index}", text]
            case ToolCallEnd(index, _):
                line = [f"end {index}"]
        if lines and len(line) == 2 and lines[-1][0] == line[0]:
            lines[-1][1] += line[1]
        elif line[-1] != "":
            lines.append(line)
    return lines


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_golden_outputs(tokenizer: HarmonyTokenizer, case: dict[str, Any]) -> None:
    parser, events = parse(tokenizer, tokenizer.encode_with_specials(case["output"]))
    assert readable(events) == case["events"]
    assert {kind.value: n for kind, n in parser.recoveries.items()} == case["recoveries"]
    usage = {kind: n for kind in parser.usage.__slots__ if (n := getattr(parser.usage, kind))}
    assert usage == case["usage"]


def test_every_recovery_has_a_golden_case() -> None:
    assert {kind for case in CASES for kind in case["recoveries"]} == {
        k.value for k in RecoveryKind
    }


# Agreement with openai-harmony on well-formed output


def messages_of(events: list[Event]) -> list[tuple[str | None, str | None, str]]:
    """(channel, recipient, content) of each message; a call's channel is left to its header."""
    messages: list[tuple[str | None, str | None, str]] = []
    channel: str | None = None
    recipient: str | None = None
    content = ""
    for event in events:
        if isinstance(event, ToolCallStart):
            channel, recipient = "commentary", f"functions.{event.name}"
        elif isinstance(event, TextDelta):
            channel, recipient = event.channel.value, None
            content += event.text
        elif isinstance(event, ToolCallArguments):
            content += event.text
        if event.token_ids and event.token_ids[-1] in ENDERS:
            messages.append((channel, recipient, content))
            content = ""
    return messages


def library_messages(
    tokenizer: HarmonyTokenizer, tokens: list[int]
) -> list[tuple[str | None, str | None, str]]:
    parser = oh.StreamableParser(tokenizer.harmony, oh.Role.ASSISTANT)
    for token in tokens:
        parser.process(token)
    return [
        (message.channel, message.recipient, message.to_dict()["content"][0]["text"])
        for message in parser.messages
    ]


names = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)
contents = st.text(max_size=40)


@st.composite
def well_formed(draw: st.DrawFn) -> list[tuple[str, str, str]]:
    """Messages as (header, content, ender), each header after ``<|start|>assistant``."""
    messages = []
    for _ in range(draw(st.integers(1, 5))):
        content = draw(contents)
        if draw(st.booleans()):
            channel = draw(st.sampled_from(["analysis", "commentary", "final"]))
            header = f"<|channel|>{channel}<|message|>"
            messages.append((header, content, draw(st.sampled_from(["<|end|>", "<|return|>"]))))
            continue
        to = f" to=functions.{draw(names)}"
        kind = draw(st.sampled_from(["", " json", " <|constrain|>json", "<|constrain|>json"]))
        header = draw(
            st.sampled_from(
                [f"{to}<|channel|>commentary{kind}", f"<|channel|>commentary{to}{kind}"]
            )
        )
        messages.append((f"{header}<|message|>", content, "<|call|>"))
    return messages


@settings(deadline=None, max_examples=200)
@given(well_formed())
def test_well_formed_output_parses_as_the_library_parses_it(
    tokenizer: HarmonyTokenizer, messages: list[tuple[str, str, str]]
) -> None:
    tokens: list[int] = []
    for header, content, ender in messages:
        opening = "<|start|>assistant" if tokens else ""
        tokens += tokenizer.encode_with_specials(opening + header)
        tokens += tokenizer.encode(content)
        tokens += tokenizer.encode_with_specials(ender)
    parser, events = parse(tokenizer, tokens)
    assert not parser.recoveries
    assert messages_of(events) == library_messages(tokenizer, tokens)
    assert [content for _, _, content in messages_of(events)] == [m[1] for m in messages]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, FIRST_SPECIAL - 1), max_size=30))
def test_broken_utf8_reads_as_the_library_reads_it(
    tokenizer: HarmonyTokenizer, body: list[int]
) -> None:
    header = tokenizer.encode_with_specials("<|channel|>final<|message|>")
    tokens = [*header, *body, RETURN]
    _, events = parse(tokenizer, tokens)
    assert messages_of(events) == library_messages(tokenizer, tokens)


def rendered_answers(tokenizer: HarmonyTokenizer) -> list[list[int]]:
    """Answers laid out by the library itself."""

    def message(text: str, channel: str, recipient: str | None = None) -> oh.Message:
        made = oh.Message.from_role_and_content(oh.Role.ASSISTANT, text).with_channel(channel)
        if recipient is None:
            return made
        return made.with_recipient(recipient).with_content_type("<|constrain|>json")

    answers = [
        [message("Short.", "final")],
        [message("Thinking.\n\nMore.", "analysis"), message("世界 🙂 is the answer.", "final")],
        [
            message("I need a tool.", "analysis"),
            message("Let me look.", "commentary"),
            message('{"city": "Rome"}', "commentary", "functions.get_weather"),
        ],
        [
            message("{}", "commentary", "functions.a"),
            message("{}", "commentary", "functions.b-c.d"),
        ],
        [message("", "analysis"), message("", "final")],
    ]
    config = oh.RenderConversationConfig(auto_drop_analysis=False)
    rendered = [
        tokenizer.harmony.render_conversation(oh.Conversation.from_messages(answer), config)
        for answer in answers
    ]
    return [tokens[2:] for tokens in rendered]  # the prompt holds the first <|start|>assistant


def test_rendered_answers_parse_as_the_library_parses_them(tokenizer: HarmonyTokenizer) -> None:
    for tokens in rendered_answers(tokenizer):
        parser, events = parse(tokenizer, tokens)
        assert not parser.recoveries
        assert messages_of(events) == library_messages(tokenizer, tokens)


# Nothing lost on any input

CONTROLS = dict(
    zip([START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN], "SCMKEEE", strict=True)
)
# One private-use character for each control token, so that text cannot spell one.
SPELLED = {token: chr(0xE000 + ord(letter)) for token, letter in CONTROLS.items()}
OTHER = chr(0xE000 + ord("O"))
START_, CHANNEL_, MESSAGE_, CONSTRAIN_ = (SPELLED[t] for t in (START, CHANNEL, MESSAGE, CONSTRAIN))

TO = r"to=(?:functions\.)?[!-~]+"
TYPE = rf"\s[^\s\ue000-\ue0ff]+|{CONSTRAIN_}(?:[^\s\ue000-\ue0ff]|{CONSTRAIN_})*"
GOOD_HEADER = re.compile(
    rf"(?:\s*{TO}(?:{TYPE})?)?\s*{CHANNEL_}(?:analysis|commentary|final)"
    rf"(?:\s+{TO})?\s*(?:{TYPE})?\s*{MESSAGE_}"
)
WORDS = [
    *["assistant", "user", "final", "analysis", "commentary", "json", " json", " ", "\n", "word"],
    *[
        " to=functions.f",
        " to=functions.g",
        " to=user",
        "to=",
        "Hello",
        " world",
        "{}",
        "世界",
        "🙂",
    ],
]


def spell(tokenizer: HarmonyTokenizer, tokens: list[int]) -> str:
    """Text with each control token as one private character; whole characters only."""
    spelled = b"".join(
        tokenizer.token_bytes(token)
        if token < FIRST_SPECIAL
        else SPELLED.get(token, OTHER).encode()
        for token in tokens
    )
    return spelled.decode()


def text_out(event: Event) -> str:
    return event.text if isinstance(event, TextDelta | ToolCallArguments) else ""


def is_kept(spelled: str, text: str) -> bool:
    """Whether ``text`` is all of an event's text but for well-formed headers and roles."""
    # Other control tokens are passed over, wherever they are.
    without_roles = spelled.replace(OTHER, "").replace(f"{START_}assistant", "")
    candidates = {without_roles, GOOD_HEADER.sub("", without_roles)}
    return text in {re.sub("[\ue000-\ue0ff]", "", candidate) for candidate in candidates}


pieces = st.one_of(
    st.sampled_from([*CONTROLS, 200_000, 200_018, VOCABULARY_SIZE - 1]), st.sampled_from(WORDS)
)


@settings(deadline=None, max_examples=1000)
@given(st.lists(pieces, max_size=30))
def test_every_text_comes_out_unless_it_is_a_header(
    tokenizer: HarmonyTokenizer, parts: list[int | str]
) -> None:
    tokens = [
        token
        for part in parts
        for token in (tokenizer.encode(part) if isinstance(part, str) else [part])
    ]
    _, events = parse(tokenizer, tokens)
    for event in events:
        spelled = spell(tokenizer, list(event.token_ids))
        assert is_kept(spelled, text_out(event)), (event, spelled)


@settings(deadline=None, max_examples=500)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([*CONTROLS]),
            st.integers(0, VOCABULARY_SIZE - 1),
            st.integers(-(2**40), 2**40),
        ),
        max_size=60,
    )
)
def test_any_token_ids_parse(tokenizer: HarmonyTokenizer, tokens: list[int]) -> None:
    parse(tokenizer, tokens)


@settings(deadline=None, max_examples=200)
@given(st.lists(pieces, max_size=20), st.integers(0, 40))
def test_events_come_as_soon_as_tokens_do(
    tokenizer: HarmonyTokenizer, parts: list[int | str], cut: int
) -> None:
    """What was said does not depend on what is fed later."""
    tokens = [
        token
        for part in parts
        for token in (tokenizer.encode(part) if isinstance(part, str) else [part])
    ]
    whole, some = HarmonyParser(tokenizer.token_bytes), HarmonyParser(tokenizer.token_bytes)
    all_events = [event for token in tokens for event in whole.feed(token)]
    some_events = [event for token in tokens[:cut] for event in some.feed(token)]
    assert all_events[: len(some_events)] == some_events


@pytest.mark.parametrize(
    "opening", ["", "<|channel|>", " to=", "<|channel|>final", "<|constrain|>"]
)
def test_a_header_without_end_is_streamed(tokenizer: HarmonyTokenizer, opening: str) -> None:
    parser = HarmonyParser(tokenizer.token_bytes)
    tokens = tokenizer.encode_with_specials(opening) + tokenizer.encode(" word" * 400)
    events = [event for token in tokens for event in parser.feed(token)]
    assert sum(len(event.token_ids) for event in events) == len(tokens)
    assert sum(parser.recoveries.values()) == 1
    assert {event.channel for event in events if isinstance(event, TextDelta)} == {
        Channel.MALFORMED
    }


def test_a_character_over_several_tokens_comes_whole(tokenizer: HarmonyTokenizer) -> None:
    header = tokenizer.encode_with_specials("<|channel|>final<|message|>")
    body = tokenizer.encode("𓀀𒀀")
    assert len(body) > 2
    _, events = parse(tokenizer, header + body + [RETURN])
    assert [text_out(event) for event in events if text_out(event)] == ["𓀀", "𒀀"]
    assert events[0].token_ids[:3] == tuple(header)


def test_a_character_cut_off_by_the_end_of_a_header_is_replaced(
    tokenizer: HarmonyTokenizer,
) -> None:
    half = tokenizer.encode("𓀀")[0]
    tokens = [*tokenizer.encode_with_specials("<|channel|>fin"), half, MESSAGE, RETURN]
    _, events = parse(tokenizer, tokens)
    assert readable(events) == [["malformed", "fin\ufffd"]]


def test_recoveries_are_counted_by_kind(tokenizer: HarmonyTokenizer) -> None:
    tokens = tokenizer.encode_with_specials("<|channel|>final<|message|>a<|message|>b<|return|>c")
    parser, _ = parse(tokenizer, tokens)
    assert parser.recoveries == Counter(
        {RecoveryKind.CONTROL_TOKEN_IN_BODY: 1, RecoveryKind.STRAY_TOKEN_AFTER_END: 1}
    )
