"""What the channel automaton promises for every answer, whatever legal tokens are chosen."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeray.vocabulary.harmony_tokens import CALL, END, FIRST_SPECIAL, MESSAGE, RETURN
from moeray.worker.channels import ChannelAutomaton, Legal
from moeray.worker.request import BodyKind, ChannelRules, FinishReason
from tests.worker.harmony_rules import encode, rules

TEXT = 1234
ANALYSIS = encode("<|channel|>analysis<|message|>")
FINAL = encode("<|channel|>final<|message|>")
OPENING = encode("<|start|>assistant")
ENDER = {
    BodyKind.ANALYSIS: END,
    BodyKind.COMMENTARY: END,
    BodyKind.TOOL_CALL: CALL,
    BodyKind.FINAL: RETURN,
}


def parse(tokens: list[int], declared: ChannelRules) -> list[tuple[BodyKind, int, bool]]:
    """Kind, body length and whether it was ended, of each message; fails on illegal Harmony."""
    stream = (*declared.turn_opening, *tokens)
    by_path = {h.token_ids: h.kind for h in declared.headers}
    messages = []
    while stream:
        assert stream[: len(declared.turn_opening)] == declared.turn_opening
        stream = stream[len(declared.turn_opening) :]
        header_end = stream.index(MESSAGE) + 1
        kind = by_path[stream[:header_end]]
        stream = stream[header_end:]
        length = next((i for i, t in enumerate(stream) if t >= FIRST_SPECIAL), len(stream))
        ended = length < len(stream)
        assert not ended or stream[length] == ENDER[kind]
        stream = stream[length + 1 :]
        assert ENDER[kind] == END or not stream
        messages.append((kind, length, ended))
    return messages


def check_final_legality(tokens: list[int], legal: Legal, declared: ChannelRules) -> None:
    """What may follow inside a final body, by the rules as they are written."""
    first = len(tokens) - next((i for i, t in enumerate(tokens[::-1]) if t == MESSAGE), len(tokens))
    if tuple(tokens[first - len(FINAL) : first]) != FINAL:
        return
    enough = len(tokens) >= declared.min_output_tokens
    begun = len(tokens) > first
    assert legal.text
    assert legal.ids == ((RETURN,) if enough and begun and not declared.ignore_eos else ())
    excluded = declared.stop_token_ids if enough and not begun else frozenset()
    assert legal.excluded == tuple(sorted(excluded))


def generate(
    follower: ChannelAutomaton,
    source: random.Random,
    end_chance: float,
    declared: ChannelRules,
) -> list[int]:
    """An answer of random legal choices; what is forced is appended in whole chunks."""
    tokens: list[int] = []
    while follower.finish_reason is None:
        if forced := follower.forced():
            assert follower.legal() == Legal(False, forced[:1])
            chunk = forced
        else:
            legal = follower.legal()
            assert len(legal.ids) + legal.text * 2 > 1, "a single choice is forced"
            check_final_legality(tokens, legal, declared)
            for token in legal.excluded:
                with pytest.raises(ValueError, match="begins with it"):
                    follower.accept(token)
            ids = legal.ids if source.random() < end_chance or not legal.text else ()
            text = sorted({0, TEXT, TEXT + 1, FIRST_SPECIAL - 1} - set(legal.excluded))
            chunk = (source.choice(ids or text),)
        for token in chunk:
            assert follower.finish_reason is None
            goes_on = follower.accept(token)
            assert goes_on == (follower.finish_reason is None and not follower.forced())
            tokens.append(token)
        assert follower.produced_tokens == len(tokens)
    return tokens


@settings(max_examples=600, deadline=None)
@given(
    limit=st.one_of(st.integers(16, 120), st.integers(16, 700)),
    budget=st.one_of(st.none(), st.integers(0, 40), st.integers(0, 700)),
    tools=st.lists(
        st.sampled_from(["weather", "get_weather", "time", "a", "search_the_web_for_news"]),
        unique=True,
    ),
    seed=st.integers(0, 2**32),
    end_chance=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
)
def test_every_answer_is_legal_and_keeps_its_limits(
    limit: int, budget: int | None, tools: list[str], seed: int, end_chance: float
) -> None:
    declared = rules(tools=tuple(tools), thinking_budget=budget)
    follower = ChannelAutomaton(declared, max_output_tokens=limit)
    tokens = generate(follower, random.Random(seed), end_chance, declared)
    messages = parse(tokens, declared)
    counted = dict.fromkeys(BodyKind, 0)
    for kind, length, _ in messages:
        counted[kind] += length
    assert counted == {kind: follower.body_tokens(kind) for kind in BodyKind}
    assert len(tokens) <= limit
    assert budget is None or counted[BodyKind.ANALYSIS] <= budget
    headroom = min(64, limit // 4)
    kind, length, ended = messages[-1]
    assert kind in (BodyKind.FINAL, BodyKind.TOOL_CALL)
    assert all(k in (BodyKind.ANALYSIS, BodyKind.COMMENTARY) for k, _, _ in messages[:-1])
    assert kind is BodyKind.TOOL_CALL or length >= 1
    if follower.finish_reason is FinishReason.LENGTH:
        assert not ended and len(tokens) == limit and length >= headroom
    else:
        assert ended
        stop = FinishReason.STOP if kind is BodyKind.FINAL else FinishReason.TOOL_CALL
        assert follower.finish_reason is stop


@settings(max_examples=100, deadline=None)
@given(limit=st.integers(40, 600), budget=st.integers(0, 600))
def test_a_model_that_never_stops_thinking_uses_the_budget_in_full(limit: int, budget: int) -> None:
    follower = ChannelAutomaton(rules(thinking_budget=budget), max_output_tokens=limit)
    while follower.finish_reason is None:
        forced = follower.forced()
        legal = follower.legal()
        choices = [i for i in (ANALYSIS[1], FINAL[1]) if i in legal.ids]
        follower.accept(forced[0] if forced else TEXT if legal.text else choices[0])
    room = limit - len(ANALYSIS) - 1 - len(OPENING) - len(FINAL) - min(64, limit // 4)
    assert follower.body_tokens(BodyKind.ANALYSIS) == max(0, min(budget, room))


@settings(max_examples=600, deadline=None)
@given(
    limit=st.integers(16, 200),
    least_share=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    budget=st.one_of(st.none(), st.integers(0, 60)),
    stops=st.frozensets(st.sampled_from([0, TEXT, TEXT + 1]), max_size=3),
    ignore_eos=st.booleans(),
    tools=st.sampled_from([(), ("weather",)]),
    seed=st.integers(0, 2**32),
    end_chance=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_stop_tokens_least_length_and_ignored_ends_keep_their_rules(
    limit: int,
    least_share: float,
    budget: int | None,
    stops: frozenset[int],
    ignore_eos: bool,
    tools: tuple[str, ...],
    seed: int,
    end_chance: float,
) -> None:
    least = int(limit * least_share)
    declared = replace(
        rules(tools=tools, thinking_budget=budget),
        stop_token_ids=stops,
        ignore_eos=ignore_eos,
        min_output_tokens=least,
    )
    follower = ChannelAutomaton(declared, max_output_tokens=limit)
    tokens = generate(follower, random.Random(seed), end_chance, declared)
    # A stop token ends an answer without an ender; behind it nothing is left to parse.
    kind, length, ended = parse(tokens, declared)[-1]
    assert follower.body_tokens(kind) == length >= (kind is BodyKind.FINAL)
    if kind is BodyKind.TOOL_CALL:
        assert follower.finish_reason in (FinishReason.TOOL_CALL, FinishReason.LENGTH)
        return
    body = len(tokens) - length - ended
    at_work = [i for i in range(max(body, least), len(tokens)) if tokens[i] in stops]
    assert not at_work or at_work == [len(tokens) - 1] != [body]
    if follower.finish_reason is FinishReason.STOP:
        assert at_work or (ended and not ignore_eos)
        assert len(tokens) > least
    else:
        assert follower.finish_reason is FinishReason.LENGTH
        assert len(tokens) == limit and not at_work and not ended


@settings(max_examples=60, deadline=None)
@given(least=st.integers(0, 60), stops=st.booleans())
def test_the_end_is_legal_exactly_from_the_least_length_on(least: int, stops: bool) -> None:
    declared = replace(
        rules(thinking_budget=0),
        min_output_tokens=least,
        stop_token_ids=frozenset({TEXT + 1} if stops else ()),
    )
    follower = ChannelAutomaton(declared, max_output_tokens=80)
    while RETURN not in follower.legal().ids:
        follower.accept((*follower.forced(), TEXT)[0])
    assert follower.produced_tokens == max(least, len(FINAL) + 1)
