"""What an answer's rows become: stop strings and tokens, log-probabilities, usage."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeray.cluster.generation import GenerationRequest, SamplingParams
from moeray.cluster.stop_strings import StopStrings
from moeray.cluster.token_log import TokenLog
from moeray.cluster.whole_answer import WholeAnswer
from moeray.engine.v1 import engine_pb2
from moeray.v1 import inference_pb2 as pb
from moeray.vocabulary.harmony_tokens import FIRST_SPECIAL, RETURN

from .fake_engine import logprobs_of
from .running_gateway import said, tokenizer

STOP = engine_pb2.FINISH_REASON_STOP
LENGTH = engine_pb2.FINISH_REASON_LENGTH
HIEROGLYPH = "𓀀"


@cache
def header() -> list[int]:
    return tokenizer().encode_with_specials("<|channel|>final<|message|>")


def asked(**fields: object) -> GenerationRequest:
    return GenerationRequest(
        model="",
        messages=(),
        sampling=SamplingParams(seed=0),
        current_date="2026-01-01",
        include_token_ids=True,
        **fields,  # type: ignore[arg-type]
    )


def rows(
    tokens: Sequence[int], cuts: Sequence[int] | None = None, *, reason: int = STOP
) -> list[engine_pb2.StepRow]:
    """Rows cut at ``cuts`` (default: one token each) with the log-probabilities of their firsts."""
    inside = {cut for cut in cuts if 0 < cut < len(tokens)} if cuts is not None else None
    edges = range(len(tokens) + 1) if inside is None else sorted({0, *inside, len(tokens)})
    made = [
        engine_pb2.StepRow(
            first_index=start,
            token_ids=tokens[start:end],
            logprobs=logprobs_of(start, tokens[start]),
        )
        for start, end in pairwise(edges)
    ]
    made[-1].finish_reason = reason  # type: ignore[assignment]
    return made


def answer(request: GenerationRequest, said_rows: list[engine_pb2.StepRow]) -> pb.Answer:
    """Feeds row by row, as far as the log wants; checks what holds for any answer."""
    log = TokenLog(tokenizer().token_bytes, request, StopStrings(request.stop), prompt_tokens=5)
    whole = WholeAnswer()
    for row in said_rows:
        for event in log.extend([row]):
            whole.add(event)
        if log.is_over:
            break
    assert log.is_over
    assert list(log.extend([])) == []
    for event in log.close(3):
        whole.add(event)
    usage = whole.first.usage
    assert (usage.prompt_tokens, usage.cached_tokens) == (5, 3)
    assert len(whole.first.token_ids) == usage.output_tokens
    return whole.first


def test_a_stop_string_over_several_tokens_ends_the_answer() -> None:
    tokens = said(("analysis", "STOP HERE is no stop here."), ("final", "Say STOP HERE, I said."))
    cut = len(tokenizer().encode("Say STOP HERE"))
    result = answer(asked(stop=("STOP HERE", "never")), rows(tokens))
    assert (result.analysis, result.final) == ("STOP HERE is no stop here.", "Say ")
    assert result.finished == pb.Finished(reason=pb.FINISH_REASON_STOP, stop="STOP HERE")
    assert result.usage.final_tokens == cut
    end = len(tokens) - len(tokenizer().encode("Say STOP HERE, I said.")) - 1 + cut
    assert list(result.token_ids) == tokens[:end]


def test_a_stop_string_inside_one_token() -> None:
    (token,) = tokenizer().encode(" information")
    result = answer(asked(stop=("form",)), rows([*header(), token, RETURN]))
    assert (result.final, result.usage.output_tokens) == (" in", len(header()) + 1)
    assert result.finished.stop == "form"


def test_a_stop_string_over_the_bytes_of_a_character() -> None:
    text = f"a{HIEROGLYPH}b"
    tokens = tokenizer().encode(text)
    assert len(tokens) > len(text)
    result = answer(asked(stop=(f"{HIEROGLYPH}b",)), rows([*header(), *tokens, RETURN]))
    assert (result.final, result.finished.stop) == ("a", f"{HIEROGLYPH}b")


@pytest.mark.parametrize("reason", [STOP, LENGTH])
def test_what_was_held_back_comes_out_when_the_message_ends_otherwise(reason: int) -> None:
    tokens = said(("final", "Say STOP"))
    spoken = tokens if reason == STOP else tokens[:-1]
    result = answer(asked(stop=("STOP HERE",)), rows(spoken, reason=reason))
    assert result.final == "Say STOP"
    assert result.finished.WhichOneof("matched") is None
    assert list(result.token_ids) == spoken


def test_a_stop_string_does_not_go_on_from_one_message_to_the_next() -> None:
    tokens = said(("final", "Say STOP"), ("final", " HERE"))
    result = answer(asked(stop=("STOP HERE",)), rows(tokens))
    assert result.final == "Say STOP HERE"
    assert result.finished.WhichOneof("matched") is None


def test_stop_strings_match_behind_the_least_output() -> None:
    tokens = said(("final", "one two one two one two"))
    text = tokenizer().encode("one two one two one two")
    least = len(header()) + len(tokenizer().encode("one two one"))
    result = answer(asked(stop=("two",), min_output_tokens=least), rows(tokens))
    assert result.final == "one two one "
    assert result.usage.output_tokens == least + 1
    # What began before the minimum is no match.
    result = answer(asked(stop=(" one two",), min_output_tokens=least), rows(tokens))
    assert result.final == "one two one two"
    assert result.usage.output_tokens == len(header()) + len(text)


def test_a_stop_token_counts_and_says_nothing() -> None:
    tokens = [*header(), *tokenizer().encode("It is"), *tokenizer().encode(" four")]
    stop = tokens[-1]
    result = answer(asked(stop_token_ids=frozenset({stop}), top_logprobs=2), rows(tokens))
    assert result.final == "It is"
    assert result.finished == pb.Finished(reason=pb.FINISH_REASON_STOP, stop_token_id=stop)
    assert result.usage.final_tokens == 3
    assert list(result.token_ids) == tokens
    assert [each.token.token_id for each in result.logprobs] == tokenizer().encode("It is")


def test_a_stop_token_that_did_not_end_the_answer_is_text() -> None:
    # The engine lets it pass in analysis, and before the least output.
    tokens = said(("analysis", " four"), ("final", " four four"))
    stop = frozenset(tokenizer().encode(" four"))
    result = answer(asked(stop_token_ids=stop, ignore_eos=True), rows(tokens[:-2], reason=LENGTH))
    assert (result.analysis, result.final) == (" four", " four")
    result = answer(asked(stop_token_ids=stop), rows(tokens[:-1]))
    assert (result.analysis, result.final) == (" four", " four")
    assert result.finished.stop_token_id == tokenizer().encode(" four")[0]
    # A row may hold what passed and what ended it.
    assert answer(asked(stop_token_ids=stop), rows(tokens[:-1], [])).final == " four"


def test_a_stop_token_inside_a_character_leaves_what_is_known_of_it() -> None:
    first, second, *_ = tokenizer().encode(HIEROGLYPH)
    tokens = [*header(), first, second]
    result = answer(asked(stop_token_ids=frozenset({second})), rows(tokens))
    assert result.final == "\ufffd" and list(result.token_ids) == tokens


def test_the_models_own_end_matches_nothing() -> None:
    result = answer(asked(stop=("x",), stop_token_ids=frozenset({3})), rows(said(("final", "y"))))
    assert result.finished == pb.Finished(reason=pb.FINISH_REASON_STOP)


def test_logprobs_come_for_text_of_bodies_and_nothing_else() -> None:
    tokens = said(("analysis", f"So {HIEROGLYPH}."), tool=("f", '{"a": 1}'))
    sampled = rows(tokens, reason=engine_pb2.FINISH_REASON_TOOL_CALL)
    result = answer(asked(top_logprobs=2), sampled)
    bodies = tokenizer().encode(f"So {HIEROGLYPH}.") + tokenizer().encode('{"a": 1}')
    assert [each.token.token_id for each in result.logprobs] == bodies
    given_bytes = b"".join(each.token.token for each in result.logprobs)
    assert given_bytes.decode() == result.analysis + result.tool_calls[0].arguments
    for each in result.logprobs:
        assert tokens[round(-8 * each.token.logprob)] == each.token.token_id
        assert [likely.token_id for likely in each.top] == [each.token.token_id, 17]
        assert each.top[1].token == tokenizer().token_bytes(17) and each.top[1].logprob == -99.0
    assert not answer(asked(), sampled).logprobs


def test_forced_tokens_have_no_logprobs() -> None:
    tokens = said(("final", "one two three four"))
    result = answer(asked(top_logprobs=0), rows(tokens, [len(header()), len(header()) + 2]))
    assert [each.token.token_id for each in result.logprobs] == [tokens[3], tokens[5]]


words = st.lists(st.sampled_from(["ab", " ab", "a", "b\n", HIEROGLYPH, "é", " STOP"]), max_size=12)


@settings(deadline=None, max_examples=200)
@given(
    words.map("".join),
    st.lists(st.text(f"ab\n {HIEROGLYPH}é", min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(0, 12),
    st.lists(st.integers(0, 40), max_size=6),
)
def test_any_answer_ends_at_the_token_that_completes_a_stop_string(
    text: str, stops: list[str], least: int, cuts: list[int]
) -> None:
    body = tokenizer().encode(text)
    tokens = [*header(), *body, RETURN]
    request = asked(stop=tuple(stops), min_output_tokens=least, top_logprobs=1)
    skipped, end, sent, stop = "", len(body), text, None
    for count in range(1, len(body) + 1):
        so_far = tokenizer().encoding.decode(body[:count]).rstrip("\ufffd")
        if len(header()) + count <= least:
            skipped = so_far
            continue
        seen = so_far.removeprefix(skipped)
        starts = [(at, -len(s), s) for s in stops if (at := seen.find(s)) >= 0]
        if starts:
            at, _, stop = min(starts)
            end, sent = count, skipped + seen[:at]
            break
    result = answer(request, rows(tokens, cuts))
    assert result.final == sent
    assert result.finished == pb.Finished(reason=pb.FINISH_REASON_STOP, stop=stop)
    counted = [*header(), *body[:end], *([] if stop is not None else [RETURN])]
    assert list(result.token_ids) == counted
    # Row by row or token by token, the answer is the same.
    one_by_one = answer(request, rows(tokens))
    del result.logprobs[:]
    aligned = b"".join(each.token.token for each in one_by_one.logprobs)
    assert aligned.startswith(sent.encode())
    assert all(each.token.token_id < FIRST_SPECIAL for each in one_by_one.logprobs)
    del one_by_one.logprobs[:]
    assert one_by_one == result
