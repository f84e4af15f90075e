"""The channel automaton: which tokens may follow, so that every answer is legal Harmony.

One automaton follows one answer, over token ids alone. Inside headers it allows only the paths of
the request's legal headers, always; inside bodies it allows all text and the body's own ender. What
has a single continuation is forced, not sampled. It also decides when the model has thought enough:

- Tokens of analysis bodies count against the thinking budget over the whole answer. The token that
  reaches it ends the body by force, and analysis is illegal from then on. A tool call is never cut.
- Analysis and commentary end early enough that ``headroom`` tokens remain for the answer's body,
  and a header is legal only where its body and that switch still fit.
- A final body has at least one token. A stop token, which is text and ends a final body once it is
  taken, is illegal as its first.
- Before ``min_output_tokens`` tokens, headers included, <|return|> is illegal and stop tokens are
  text like other text. With ``ignore_eos`` <|return|> is illegal for good: a final body ends by a
  stop token or the limit. Tool calls end as ever.

So an answer without a tool call ends in a final body, whatever is sampled. Harmony's format:
openai/harmony docs/format.md.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from moeray.vocabulary.harmony_tokens import (
    CALL,
    END,
    FIRST_SPECIAL,
    MESSAGE,
    RETURN,
    VOCABULARY_SIZE,
)
from moeray.worker.request import BodyKind, ChannelRules, FinishReason, Header

_MAX_HEADROOM: Final = 64
_ENDED_BY_END: Final = frozenset({BodyKind.ANALYSIS, BodyKind.COMMENTARY})


@dataclass(frozen=True, slots=True)
class Legal:
    """The tokens that may come next: every id below FIRST_SPECIAL if ``text``, but ``excluded``,
    and ``ids``.
    """

    text: bool
    ids: tuple[int, ...]
    excluded: tuple[int, ...] = ()


_NOTHING: Final = Legal(False, ())
_TEXT_ALONE: Final = Legal(True, ())
_BODY: Final = {
    BodyKind.ANALYSIS: Legal(True, (END,)),
    BodyKind.COMMENTARY: Legal(True, (END,)),
    BodyKind.TOOL_CALL: Legal(True, (CALL,)),
    BodyKind.FINAL: Legal(True, (RETURN,)),
}


class ChannelAutomaton:
    """Follows one answer, from the header behind the prompt's ``<|start|>assistant`` to its end.

    ``max_output_tokens`` counts every token after the prompt, headers included. Raises ValueError
    for rules that cannot be honoured.
    """

    __slots__ = (
        "_body_legal",
        "_body_room",
        "_body_tokens",
        "_candidates",
        "_depth",
        "_finish_reason",
        "_forced",
        "_headroom",
        "_kind",
        "_legal",
        "_max_output_tokens",
        "_opening_left",
        "_remaining",
        "_rules",
        "_shortest_final",
        "_stretch_end",
        "_stretch_left",
        "_switch",
    )

    def __init__(self, rules: ChannelRules, *, max_output_tokens: int) -> None:
        _check(rules, max_output_tokens)
        self._rules = rules
        self._max_output_tokens = max_output_tokens
        self._remaining = max_output_tokens
        self._shortest_final = min(
            len(h.token_ids) for h in rules.headers if h.kind is BodyKind.FINAL
        )
        self._headroom = min(
            _MAX_HEADROOM, max(1, max_output_tokens // 4), max_output_tokens - self._shortest_final
        )
        # What it costs to leave an analysis or commentary body for the first token of the answer.
        self._switch = 1 + len(rules.turn_opening) + self._shortest_final
        self._finish_reason: FinishReason | None = None
        self._body_tokens = dict.fromkeys(BodyKind, 0)
        self._kind: BodyKind | None = None
        """The body's kind; None outside bodies."""
        self._body_room = 0
        """Text tokens that the body may take in all, if it is not ended before."""
        self._stretch_end = self._stretch_left = 0
        """A body is taken in stretches, at whose ends there is something to decide: how many of its
        tokens there are at the stretch's end, and how many are left until then."""
        self._body_legal = _NOTHING
        """What is legal in the stretch, behind its first token."""
        self._forced: tuple[int, ...] = ()
        self._open_header(())

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None while it has not."""
        return self._finish_reason

    @property
    def produced_tokens(self) -> int:
        """Tokens accepted so far, sampled and forced."""
        return self._max_output_tokens - self._remaining + self._taken()

    @property
    def headroom_tokens(self) -> int:
        """Tokens kept for the answer's body."""
        return self._headroom

    def body_tokens(self, kind: BodyKind) -> int:
        """Tokens in bodies of this kind so far, without headers and enders."""
        return self._body_tokens[kind] + (self._taken() if kind is self._kind else 0)

    def legal(self) -> Legal:
        """The tokens that ``accept`` takes now; none when the answer has ended."""
        return self._legal

    def forced(self) -> tuple[int, ...]:
        """The tokens that must follow, as far as there is no choice: append, do not sample."""
        return self._forced

    def accept(self, token: int) -> bool:
        """Takes the next token, sampled or forced. Raises ValueError, and stays as it was, where
        it is illegal. Returns whether the token after it is to be sampled: nothing is forced, and
        the answer goes on.
        """
        kind = self._kind
        if kind is not None and 0 <= token < FIRST_SPECIAL:
            # The path of nearly all tokens: what they count as is settled when the body ends.
            if self._stretch_left != 1:
                self._stretch_left -= 1
                self._legal = self._body_legal
                return True
            self._end_stretch(kind, token)
        elif token not in self._legal.ids:
            raise ValueError(f"token {token} is illegal here: {self._describe()}")
        elif kind is not None:
            self._end_body(kind, token)
        else:
            self._accept_header_token(token)
        return not self._forced and self._finish_reason is None

    def _taken(self) -> int:
        """Text tokens of the current body so far."""
        return self._stretch_end - self._stretch_left

    def _begin_stretch(self, kind: BodyKind) -> None:
        taken = self._taken()
        self._body_legal = _BODY[kind]
        length = self._body_room - taken
        if kind is BodyKind.FINAL:
            rules = self._rules
            missing = rules.min_output_tokens - self.produced_tokens
            if missing > 0 or rules.ignore_eos:
                self._body_legal = _TEXT_ALONE
            if missing > 0:
                length = min(length, missing)
            elif rules.stop_token_ids:
                # Each token may be a stop token: only such requests look at each.
                length = 1
        self._stretch_end = taken + length
        self._stretch_left = length

    def _end_stretch(self, kind: BodyKind, token: int) -> None:
        """Takes a stretch's last token."""
        if token in self._legal.excluded:
            raise ValueError(f"token {token} is illegal here: a final body begins with it")
        stops = self._stops(kind) and token in self._rules.stop_token_ids
        self._stretch_left = 0
        if stops:
            self._leave_body(kind)
            self._finish(FinishReason.STOP)
        elif self._stretch_end == self._body_room:
            self._fill_body(kind)
        else:
            self._begin_stretch(kind)
            self._legal = self._body_legal

    def _stops(self, kind: BodyKind) -> bool:
        """Whether stop tokens are at work for the next token."""
        return kind is BodyKind.FINAL and self.produced_tokens >= self._rules.min_output_tokens

    def _fill_body(self, kind: BodyKind) -> None:
        self._leave_body(kind)
        if kind not in _ENDED_BY_END:
            self._finish(FinishReason.LENGTH)
            return
        # One token more would have eaten into the headroom: only final may follow.
        final_only = self._remaining <= self._switch + self._headroom
        self._open_header((END, *self._rules.turn_opening), final_only=final_only)

    def _end_body(self, kind: BodyKind, token: int) -> None:
        self._leave_body(kind)
        self._remaining -= 1
        if token == RETURN:
            self._finish(FinishReason.STOP)
        elif token == CALL:
            self._finish(FinishReason.TOOL_CALL)
        else:
            self._open_header(self._rules.turn_opening)

    def _leave_body(self, kind: BodyKind) -> None:
        taken = self._taken()
        self._body_tokens[kind] += taken
        self._remaining -= taken
        self._body_room = self._stretch_end = self._stretch_left = 0
        self._kind = None

    def _thinking_left(self) -> int | None:
        budget = self._rules.thinking_budget
        return None if budget is None else budget - self._body_tokens[BodyKind.ANALYSIS]

    def _open_header(self, opening: tuple[int, ...], *, final_only: bool = False) -> None:
        """Goes to the tokens ``opening``, which are forced, and the choice of a header."""
        self._opening_left = len(opening)
        self._depth = 0
        room = self._remaining - len(opening)
        self._candidates = [
            h
            for h in self._rules.headers
            if self._fits(h, room) and (h.kind is BodyKind.FINAL or not final_only)
        ]
        self._set_header_choice(opening)

    def _fits(self, header: Header, room: int) -> bool:
        """Whether ``room`` tokens hold the header and all that it obliges to."""
        length = len(header.token_ids)
        if header.kind is BodyKind.ANALYSIS and self._thinking_left() == 0:
            return False
        if header.kind in _ENDED_BY_END:
            return length + 1 + self._switch + self._headroom <= room
        return length + self._headroom <= room

    def _accept_header_token(self, token: int) -> None:
        self._remaining -= 1
        forced = self._forced[1:]
        if self._opening_left:
            self._opening_left -= 1
        else:
            depth = self._depth
            self._depth += 1
            if not self._forced:
                self._candidates = [h for h in self._candidates if h.token_ids[depth] == token]
                forced = self._shared_path()
        header = self._candidates[0]
        if self._depth == len(header.token_ids):
            self._start_body(header.kind)
        elif forced:
            self._set_forced(forced)
        else:
            self._set_header_choice(())

    def _shared_path(self) -> tuple[int, ...]:
        """The tokens, from here, that all candidates share."""
        paths = [h.token_ids for h in self._candidates]
        # What the least and the greatest share, all between them share.
        least, greatest = min(paths), max(paths)
        end = self._depth
        while end < min(len(least), len(greatest)) and least[end] == greatest[end]:
            end += 1
        return least[self._depth : end]

    def _set_header_choice(self, opening: tuple[int, ...]) -> None:
        forced = opening + self._shared_path()
        if forced:
            self._set_forced(forced)
            return
        ids = {h.token_ids[self._depth] for h in self._candidates}
        self._forced = ()
        self._legal = Legal(False, tuple(sorted(ids)))

    def _set_forced(self, forced: tuple[int, ...]) -> None:
        self._forced = forced
        self._legal = Legal(False, forced[:1])

    def _start_body(self, kind: BodyKind) -> None:
        self._kind = kind
        self._candidates = []
        self._forced = ()
        room = self._remaining
        if kind in _ENDED_BY_END:
            room -= self._switch + self._headroom
        thinking_left = self._thinking_left()
        if kind is BodyKind.ANALYSIS and thinking_left is not None:
            room = min(room, thinking_left)
        self._body_room = room
        self._begin_stretch(kind)
        self._legal = self._first_legal(kind)

    def _first_legal(self, kind: BodyKind) -> Legal:
        """What may begin a body."""
        if kind is not BodyKind.FINAL:
            return self._body_legal
        if self._stops(kind) and self._rules.stop_token_ids:
            return Legal(True, (), tuple(sorted(self._rules.stop_token_ids)))
        return _TEXT_ALONE

    def _finish(self, reason: FinishReason) -> None:
        self._forced = ()
        self._legal = _NOTHING
        self._finish_reason = reason

    def _describe(self) -> str:
        if self._finish_reason is not None:
            return f"the answer ended ({self._finish_reason.value})"
        if self._kind is not None:
            return f"in a body of kind {self._kind.value}"
        return f"in a header, where {list(self._legal.ids)} are legal"


def _check(rules: ChannelRules, max_output_tokens: int) -> None:
    if not rules.turn_opening:
        raise ValueError("turn_opening is empty")
    if rules.thinking_budget is not None and rules.thinking_budget < 0:
        raise ValueError(f"thinking_budget is {rules.thinking_budget}, below 0")
    if not 0 <= rules.min_output_tokens <= max_output_tokens:
        raise ValueError(
            f"min_output_tokens is {rules.min_output_tokens}, and max_output_tokens"
            f" {max_output_tokens}"
        )
    if not all(0 <= token < FIRST_SPECIAL for token in rules.stop_token_ids):
        raise ValueError("stop_token_ids holds ids that are no text")
    final = [len(h.token_ids) for h in rules.headers if h.kind is BodyKind.FINAL]
    if not final:
        raise ValueError("no header of kind final")
    if min(final) + 1 > max_output_tokens:
        raise ValueError(
            f"max_output_tokens is {max_output_tokens}: a final header of {min(final)} tokens and"
            " one token of answer do not fit"
        )
    paths = sorted(h.token_ids for h in rules.headers)
    if not all(paths):
        raise ValueError("a header is empty")
    # In sorted order, whatever a path is a prefix of comes right behind it.
    for path, successor in pairwise(paths):
        if successor[: len(path)] == path:
            raise ValueError(f"header {path} is a prefix of header {successor}")
    for path in [*paths, rules.turn_opening]:
        if not all(0 <= token < VOCABULARY_SIZE for token in path):
            raise ValueError(f"{path} holds ids outside the vocabulary")
    for path in paths:
        if path[-1] != MESSAGE:
            raise ValueError(f"header {path} does not end in <|message|> ({MESSAGE})")
