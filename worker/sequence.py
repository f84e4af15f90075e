"""One request inside the engine: its tokens, how far they are computed, and its blocks."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple, Protocol

from moeray.worker.blocks import BlockTable
from moeray.worker.plan import DrawnLogprobs
from moeray.worker.prefix_cache import BlockHashes
from moeray.worker.request import EngineRequest, FinishReason, TokenLogprobs, TokenRow
from moeray.worker.text_adjustments import TextAdjustments

_tuple: Final = tuple.__new__
"""A named tuple's own constructor takes twice the time, for each request in each step."""

PLACES_PER_PRIORITY: Final = 64
"""Later requests that one step of priority goes before: bounded, so that nobody waits for ever."""


class LegalTokens(Protocol):
    """What may be sampled next: every text token if ``text``, and the listed ids."""

    @property
    def text(self) -> bool: ...

    @property
    def ids(self) -> tuple[int, ...]: ...

    @property
    def excluded(self) -> tuple[int, ...]:
        """Text tokens that are illegal all the same."""
        ...


class Automaton(Protocol):
    """The scheduler's view of ``channels.ChannelAutomaton``."""

    @property
    def finish_reason(self) -> FinishReason | None: ...

    def legal(self) -> LegalTokens: ...

    def forced(self) -> tuple[int, ...]:
        """Empty where there is a choice, and when the answer is over."""
        ...

    def accept(self, token: int) -> bool:
        """Whether the next token is to be sampled: nothing is forced, and the answer goes on."""
        ...


class SequenceState(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """A request's whole state. Prompt and output form one list: a preempted sequence computes
    both again, and its automaton, which saw the output once, is not touched.
    """

    request: EngineRequest
    automaton: Automaton
    arrival: int
    """Orders requests of one priority."""
    tokens: list[int]
    """Prompt and output; the keys and values of the first ``computed`` are in the cache."""
    computed: int = 0
    delivered: int = 0
    """Output tokens that left in a row."""
    sampling_record: bytes
    """What its sampling brings to each plan."""
    adjustments: TextAdjustments | None = None
    """None where the request asks for neither bias nor penalties."""
    state: SequenceState = SequenceState.WAITING
    blocks: BlockTable = field(default_factory=BlockTable)
    hashes: BlockHashes
    started: bool = False
    """Whether a step computed any of its rows."""
    cached_tokens: int | None = None
    """Prompt tokens that its first admission found in the cache, until a row has told it."""

    @property
    def queue_order(self) -> tuple[int, int]:
        """Least first. The same again after preemption."""
        places = PLACES_PER_PRIORITY * self.request.priority
        return (self.arrival - places, self.arrival)

    def block_hashes(self, blocks: int) -> list[bytes]:
        """Of at least the first ``blocks`` whole blocks of the tokens."""
        return self.hashes.first(blocks, self.tokens)

    def extend_forced(self) -> None:
        """Appends the tokens that follow without sampling, up to the end of the answer."""
        automaton = self.automaton
        while forced := automaton.forced():
            for token in forced:
                automaton.accept(token)
                self.tokens.append(token)
                if automaton.finish_reason is not None:
                    return

    def extend(self, token: int, drawn: DrawnLogprobs | None) -> TokenRow:
        """Appends a sampled token and what is forced by it, and takes the row. ``drawn`` are the
        token's log-probabilities, where asked for. Raises ValueError where the token is illegal;
        the sequence is then as it was.
        """
        goes_on = self.automaton.accept(token)
        self.tokens.append(token)
        if goes_on and self.cached_tokens is None and drawn is None:
            # The path of nearly all tokens: the rows before took all that was before.
            request, first_index = self.request, self.delivered
            self.delivered = first_index + 1
            row = (request.key, request.epoch, first_index, (token,), None, "", None, None)
            return _tuple(TokenRow, row)
        logprobs = None
        if drawn is not None:
            index = len(self.tokens) - 1 - len(self.request.prompt)
            logprobs = TokenLogprobs(index, *drawn)
        if not goes_on:
            self.extend_forced()
        return self.take_row(self.automaton.finish_reason, logprobs=logprobs)

    def take_row(
        self,
        reason: FinishReason | None,
        failure: str = "",
        logprobs: TokenLogprobs | None = None,
    ) -> TokenRow:
        """A row with the output that no row held yet."""
        request, first_index = self.request, self.delivered
        tokens = tuple(self.tokens[len(request.prompt) + first_index :])
        self.delivered += len(tokens)
        cached, self.cached_tokens = self.cached_tokens, None
        key, epoch = request.key, request.epoch
        row = (key, epoch, first_index, tokens, reason, failure, cached, logprobs)
        return _tuple(TokenRow, row)


class Chunk(NamedTuple):
    """The rows that one sequence runs in one step."""

    sequence: Sequence
    start: int
    """Position of the first row."""
    rows: int
    sampled: bool
    """Whether the last row is the sequence's last token, so that the next one is drawn."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks that one rank runs in one step, as columns, which arrays are made of.

    An object for each sequence in each step would take longer than all else in planning it.
    """

    sequences: list[Sequence] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sequences)

    def __iter__(self) -> Iterator[Chunk]:
        return map(Chunk, self.sequences, self.starts, self.rows, self.sampled)


class StepPlan(NamedTuple):
    """What every rank runs in one step."""

    step: int
    ranks: tuple[Chunks, ...]
