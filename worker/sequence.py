"""One request inside the engine: its tokens, how far they are computed, and its blocks."""

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from moeray.worker.blocks import BlockTable
from moeray.worker.request import EngineRequest, FinishReason, TokenRow


class LegalTokens(Protocol):
    """What may be sampled next: every text token if ``text``, and the listed ids."""

    @property
    def text(self) -> bool: ...

    @property
    def ids(self) -> tuple[int, ...]: ...


class Automaton(Protocol):
    """The scheduler's view of ``channels.ChannelAutomaton``."""

    @property
    def finish_reason(self) -> FinishReason | None: ...

    def legal(self) -> LegalTokens: ...

    def forced(self) -> tuple[int, ...]:
        """Empty where there is a choice, and when the answer is over."""
        ...

    def accept(self, token: int) -> None: ...


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
    state: SequenceState = SequenceState.WAITING
    blocks: BlockTable = field(default_factory=BlockTable)

    @property
    def queue_order(self) -> tuple[int, int]:
        return (-self.request.priority, self.arrival)

    def extend_forced(self) -> None:
        """Appends the tokens that follow without sampling, up to the end of the answer."""
        automaton = self.automaton
        while forced := automaton.forced():
            for token in forced:
                automaton.accept(token)
                self.tokens.append(token)
                if automaton.finish_reason is not None:
                    return

    def extend(self, token: int) -> None:
        """Appends a sampled token and what is forced by it. Raises ValueError where it is illegal;
        the sequence is then as it was.
        """
        self.automaton.accept(token)
        self.tokens.append(token)
        self.extend_forced()

    def take_row(self, reason: FinishReason | None, failure: str = "") -> TokenRow:
        """A row with the output that no row held yet."""
        request, first_index = self.request, self.delivered
        tokens = tuple(self.tokens[len(request.prompt) + first_index :])
        self.delivered += len(tokens)
        return TokenRow(request.key, request.epoch, first_index, tokens, reason, failure)


class Chunk(NamedTuple):
    """The rows that one sequence runs in one step."""

    sequence: Sequence
    start: int
    """Position of the first row."""
    rows: int
    sampled: bool
    """Whether the last row is the sequence's last token, so that the next one is drawn."""


class StepPlan(NamedTuple):
    """What every rank runs in one step."""

    step: int
    ranks: tuple[list[Chunk], ...]
