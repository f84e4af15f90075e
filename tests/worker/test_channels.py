"""The channel automaton: headers, enders, the thinking budget, headroom, and what is forced."""

from collections.abc import Iterable

import pytest

from moeray.vocabulary.harmony_tokens import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    FIRST_SPECIAL,
    MESSAGE,
    RETURN,
    SPECIAL_TOKENS,
    START,
    VOCABULARY_SIZE,
)
from moeray.worker.channels import ChannelAutomaton, Legal
from moeray.worker.request import BodyKind, ChannelRules, FinishReason, Header
from tests.worker.harmony_rules import encode, rules

TEXT = 1234
ANALYSIS = encode("<|channel|>analysis<|message|>")
COMMENTARY = encode("<|channel|>commentary<|message|>")
FINAL = encode("<|channel|>final<|message|>")
OPENING = encode("<|start|>assistant")
WEATHER = encode("<|channel|>commentary to=functions.weather <|constrain|>json<|message|>")


def automaton(
    *, tools: Iterable[str] = (), budget: int | None = None, limit: int = 400
) -> ChannelAutomaton:
    return ChannelAutomaton(
        rules(tools=tuple(tools), thinking_budget=budget), max_output_tokens=limit
    )


def accept_all(follower: ChannelAutomaton, tokens: Iterable[int]) -> None:
    for token in tokens:
        follower.accept(token)


def test_without_tools_the_first_token_is_forced_and_the_channel_is_chosen() -> None:
    follower = automaton()
    assert follower.forced() == (CHANNEL,)
    assert follower.legal() == Legal(False, (CHANNEL,))
    follower.accept(CHANNEL)
    assert follower.forced() == ()
    assert follower.legal() == Legal(False, tuple(sorted((ANALYSIS[1], FINAL[1]))))
    follower.accept(ANALYSIS[1])
    assert follower.forced() == (MESSAGE,)
    follower.accept(MESSAGE)
    assert follower.forced() == ()
    assert follower.legal() == Legal(True, (END,))


def test_forced_tokens_are_not_taken_until_accepted() -> None:
    follower = automaton(budget=0)
    assert follower.forced() == follower.forced() == FINAL
    follower.accept(FINAL[0])
    assert follower.forced() == FINAL[1:]
    assert follower.produced_tokens == 1


def test_a_whole_answer() -> None:
    follower = automaton()
    accept_all(follower, [*ANALYSIS, TEXT, TEXT, END])
    assert follower.forced() == (*OPENING, CHANNEL)
    accept_all(follower, [*OPENING, *FINAL, TEXT, TEXT, TEXT, RETURN])
    assert follower.finish_reason is FinishReason.STOP
    assert follower.body_tokens(BodyKind.ANALYSIS) == 2
    assert follower.body_tokens(BodyKind.FINAL) == 3
    assert follower.produced_tokens == 3 + 3 + 2 + 3 + 4
    assert follower.legal() == Legal(False, ())
    assert follower.forced() == ()
    with pytest.raises(ValueError, match="the answer ended"):
        follower.accept(TEXT)


def test_tools_open_headers_in_both_places_of_the_recipient() -> None:
    follower = automaton(tools=["weather", "time"])
    recipient = encode(" to=functions.weather")
    assert follower.legal() == Legal(False, tuple(sorted((CHANNEL, recipient[0]))))
    follower.accept(recipient[0])
    assert follower.forced() == encode(" to=functions.")[1:-1]
    for path in (
        " to=functions.weather<|channel|>commentary<|message|>",
        " to=functions.time<|channel|>commentary <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.weather<|constrain|>json<|message|>",
    ):
        follower = automaton(tools=["weather", "time"])
        accept_all(follower, encode(path))
        assert follower.legal() == Legal(True, (CALL,))
        accept_all(follower, [TEXT, CALL])
        assert follower.finish_reason is FinishReason.TOOL_CALL
        assert follower.body_tokens(BodyKind.TOOL_CALL) == 1


def test_headers_of_undeclared_tools_are_illegal() -> None:
    follower = automaton(tools=["weather"])
    with pytest.raises(ValueError, match="in a header"):
        accept_all(follower, encode(" to=functions.rocket<|channel|>commentary<|message|>"))
    assert not set(encode(" to")) & set(automaton().legal().ids)
    assert COMMENTARY[1] not in automaton().legal().ids


@pytest.mark.parametrize("header", [ANALYSIS, COMMENTARY, FINAL, WEATHER])
def test_in_bodies_only_the_own_ender_is_legal_among_special_tokens(header: tuple[int]) -> None:
    follower = automaton(tools=["weather"])
    accept_all(follower, header)
    accept_all(follower, [TEXT])
    (ender,) = follower.legal().ids
    for special in [*sorted({*SPECIAL_TOKENS.values()} - {ender}), VOCABULARY_SIZE, -1]:
        with pytest.raises(ValueError, match="illegal"):
            follower.accept(special)
    for token in (0, FIRST_SPECIAL - 1, ender):
        follower.accept(token)


def test_final_does_not_begin_with_its_ender() -> None:
    follower = automaton()
    accept_all(follower, FINAL)
    assert follower.legal() == Legal(True, ())
    with pytest.raises(ValueError, match="body of kind final"):
        follower.accept(RETURN)
    follower.accept(TEXT)
    assert follower.legal() == Legal(True, (RETURN,))


@pytest.mark.parametrize("illegal", [RETURN, START, TEXT, FINAL[1], CONSTRAIN])
def test_an_illegal_token_changes_nothing(illegal: int) -> None:
    follower, twin = automaton(tools=["weather"]), automaton(tools=["weather"])
    for token in (*ANALYSIS, TEXT, END, *OPENING, *WEATHER):
        legal = follower.legal()
        if illegal not in legal.ids and not (legal.text and illegal < FIRST_SPECIAL):
            with pytest.raises(ValueError, match="illegal"):
                follower.accept(illegal)
        assert follower.legal() == twin.legal()
        assert follower.forced() == twin.forced()
        assert follower.produced_tokens == twin.produced_tokens
        follower.accept(token)
        twin.accept(token)


def test_the_budget_ends_the_analysis_in_one_chunk() -> None:
    follower = automaton(budget=5)
    accept_all(follower, [*ANALYSIS, TEXT, TEXT, TEXT, TEXT])
    assert follower.forced() == ()
    follower.accept(TEXT)
    assert follower.forced() == (END, *OPENING, *FINAL)
    assert follower.legal() == Legal(False, (END,))
    accept_all(follower, follower.forced())
    assert follower.legal() == Legal(True, ())
    assert follower.body_tokens(BodyKind.ANALYSIS) == 5


def test_the_budget_counts_all_analysis_bodies_and_no_other() -> None:
    follower = automaton(tools=["weather"], budget=5)
    accept_all(follower, [*ANALYSIS, TEXT, TEXT, TEXT, END, *OPENING])
    accept_all(follower, [*COMMENTARY, *[TEXT] * 20, END, *OPENING])
    accept_all(follower, [*ANALYSIS, TEXT])
    assert follower.forced() == ()
    follower.accept(TEXT)
    assert follower.forced() == (END, *OPENING)
    assert follower.body_tokens(BodyKind.ANALYSIS) == 5


def test_after_the_budget_the_model_chooses_between_tools_commentary_and_final() -> None:
    follower = automaton(tools=["weather"], budget=1)
    accept_all(follower, [*ANALYSIS, TEXT, END, *OPENING])
    assert follower.legal().ids == tuple(sorted((CHANNEL, WEATHER[3])))
    follower.accept(CHANNEL)
    assert follower.legal().ids == tuple(sorted((COMMENTARY[1], FINAL[1])))
    accept_all(follower, [*WEATHER[1:], *[TEXT] * 30])
    assert follower.forced() == ()
    follower.accept(CALL)
    assert follower.finish_reason is FinishReason.TOOL_CALL


def test_budget_zero_opens_in_final() -> None:
    assert automaton(budget=0).forced() == FINAL
    follower = automaton(budget=0, tools=["weather"])
    follower.accept(CHANNEL)
    assert ANALYSIS[1] not in follower.legal().ids


def test_an_analysis_that_ends_itself_leaves_the_rest_of_the_budget() -> None:
    follower = automaton(budget=3)
    accept_all(follower, [*ANALYSIS, TEXT, TEXT, END, *OPENING, CHANNEL])
    assert ANALYSIS[1] in follower.legal().ids
    accept_all(follower, [*ANALYSIS[1:], TEXT])
    assert follower.forced() == (END, *OPENING, *FINAL)


@pytest.mark.parametrize(("limit", "headroom"), [(16, 4), (100, 25), (256, 64), (5000, 64)])
@pytest.mark.parametrize("header", [ANALYSIS, COMMENTARY])
def test_thinking_leaves_headroom_for_the_answer(
    limit: int, headroom: int, header: tuple[int, ...]
) -> None:
    # Tools make other headers legal but for the want of room.
    follower = automaton(tools=["weather"], limit=limit)
    accept_all(follower, header)
    while not follower.forced():
        follower.accept(TEXT)
    assert follower.forced() == (END, *OPENING, *FINAL)
    accept_all(follower, follower.forced())
    assert follower.headroom_tokens == headroom
    accept_all(follower, [TEXT] * (headroom - 1))
    assert follower.finish_reason is None
    follower.accept(TEXT)
    assert follower.finish_reason is FinishReason.LENGTH
    assert follower.produced_tokens == limit


def test_where_budget_and_room_end_together_only_final_follows() -> None:
    room = 100 - len(ANALYSIS) - 25 - 6
    follower = automaton(tools=["weather"], limit=100, budget=room)
    accept_all(follower, [*ANALYSIS, *[TEXT] * room])
    assert follower.forced() == (END, *OPENING, *FINAL)


def test_where_room_ends_only_final_follows_even_if_a_tool_header_is_as_short() -> None:
    tool = Header((CHANNEL, TEXT, MESSAGE), BodyKind.TOOL_CALL)
    declared = rules()
    declared = ChannelRules(
        turn_opening=declared.turn_opening, headers=(*declared.headers, tool), thinking_budget=None
    )
    follower = ChannelAutomaton(declared, max_output_tokens=100)
    accept_all(follower, [CHANNEL])
    assert TEXT in follower.legal().ids
    accept_all(follower, [*ANALYSIS[1:], *[TEXT] * (100 - 3 - 6 - 25)])
    assert follower.forced() == (END, *OPENING, *FINAL)


def test_a_header_is_legal_only_where_its_body_and_the_switch_fit() -> None:
    # 100 tokens: headroom 25, switch 6, analysis header 3 and one token of it: 35.
    for left, legal in ((35, True), (34, False)):
        follower = automaton(limit=100)
        accept_all(follower, ANALYSIS)
        accept_all(follower, [TEXT] * (100 - left - 3 - 3))
        accept_all(follower, [END, *OPENING])
        assert (follower.forced() == FINAL) is not legal
        accept_all(follower, FINAL if not legal else ANALYSIS)


def test_a_tool_header_is_legal_only_with_headroom_for_its_body() -> None:
    late = [*[TEXT] * (100 - 3 - 3 - 25 - len(WEATHER)), END, *OPENING]
    follower = automaton(tools=["weather"], limit=100)
    accept_all(follower, [*ANALYSIS, *late, *WEATHER])
    accept_all(follower, [TEXT] * 24)
    assert follower.finish_reason is None
    follower = automaton(tools=["weather"], limit=100)
    accept_all(follower, [*ANALYSIS, TEXT, *late, *WEATHER[:-4]])
    # Without its space the header is one token shorter, and fits.
    assert follower.legal().ids == (CONSTRAIN, MESSAGE)


def test_a_stop_on_the_last_token_is_a_stop() -> None:
    follower = automaton(limit=16, budget=0)
    accept_all(follower, [*FINAL, *[TEXT] * 12, RETURN])
    assert follower.finish_reason is FinishReason.STOP
    assert follower.produced_tokens == 16


def test_a_tool_call_is_cut_by_the_limit_alone() -> None:
    follower = automaton(tools=["weather"], limit=64, budget=0)
    accept_all(follower, WEATHER)
    accept_all(follower, [TEXT] * (64 - len(WEATHER)))
    assert follower.finish_reason is FinishReason.LENGTH


FINAL_HEADER = Header(FINAL, BodyKind.FINAL)


@pytest.mark.parametrize(
    ("headers", "limit", "message"),
    [
        ((Header(ANALYSIS, BodyKind.ANALYSIS),), 100, "no header of kind final"),
        ((FINAL_HEADER,), 3, "do not fit"),
        ((FINAL_HEADER, Header((), BodyKind.ANALYSIS)), 100, "empty"),
        ((FINAL_HEADER, Header((*FINAL, MESSAGE), BodyKind.ANALYSIS)), 100, "prefix"),
        ((FINAL_HEADER, FINAL_HEADER), 100, "prefix"),
        ((FINAL_HEADER, Header((CHANNEL, TEXT), BodyKind.ANALYSIS)), 100, "does not end in"),
        ((FINAL_HEADER, Header((-1, MESSAGE), BodyKind.ANALYSIS)), 100, "outside the vocabulary"),
    ],
)
def test_rules_that_cannot_be_honoured(
    headers: tuple[Header, ...], limit: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ChannelAutomaton(
            ChannelRules(turn_opening=OPENING, headers=headers), max_output_tokens=limit
        )


def test_openings_and_budgets_that_cannot_be_honoured() -> None:
    with pytest.raises(ValueError, match="turn_opening is empty"):
        ChannelAutomaton(
            ChannelRules(turn_opening=(), headers=(FINAL_HEADER,)), max_output_tokens=100
        )
    with pytest.raises(ValueError, match="below 0"):
        automaton(budget=-1)


def test_the_smallest_limit_that_fits() -> None:
    follower = automaton(limit=4)
    accept_all(follower, follower.forced())
    follower.accept(TEXT)
    assert follower.finish_reason is FinishReason.LENGTH
