"""Continuous batching: which rows every rank runs in the next step.

Pure policy over plain data. One scheduler plans for all ranks; a request lives on the rank that it
was placed on. The rules, for each rank and step:

- A sequence runs what is not computed yet: one row when it decodes, more when it is new, preempted,
  or was given forced tokens. The step's rows are limited, so a long prompt is computed in chunks;
  the next token is drawn in the step that computes the last row.
- Running sequences come first, in order of admission, each sure of one row. Then waiting ones join,
  by priority and arrival; the first that does not fit holds back all behind it, so that long
  prompts do not starve.
- A sequence is admitted when the blocks for all its tokens are free, and one more for each running
  sequence to grow into. Where growth still empties the pool, the sequence admitted last gives back
  its blocks and waits again. Its tokens are kept and computed anew; draws are keyed by position,
  so its answer is the same.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence as Seq
from typing import Protocol

from moeray.worker.blocks import KvBlocks
from moeray.worker.config import EngineConfig
from moeray.worker.kv_plan import KvPlan
from moeray.worker.request import ChannelRules, EngineRequest, FinishReason, RequestKey, TokenRow
from moeray.worker.sequence import Automaton, Chunk, Sequence, SequenceState, StepPlan


class RequestRefused(Exception):
    """The request cannot run on this engine; the text says why."""


class NewAutomaton(Protocol):
    """How the scheduler makes an automaton: ``channels.ChannelAutomaton`` itself fits.

    Raises ValueError where the rules contradict each other.
    """

    def __call__(self, rules: ChannelRules, *, max_output_tokens: int) -> Automaton: ...


class Scheduler:
    """Every request of one engine. Not thread-safe: one thread owns it."""

    def __init__(
        self, config: EngineConfig, kv: KvPlan, *, context_length: int, new_automaton: NewAutomaton
    ) -> None:
        self.ranks = tuple(RankScheduler(config, kv) for _ in range(config.ranks))
        self.max_sequence_tokens = min(context_length, self.ranks[0].blocks.max_sequence_tokens)
        self.steps = 0
        self._new_automaton = new_automaton
        self._sequences: dict[RequestKey, Sequence] = {}
        self._arrivals = 0

    def submit(self, request: EngineRequest) -> None:
        """Takes a request into its rank's queue. Raises RequestRefused where it can never run."""
        tokens = len(request.prompt) + request.max_output_tokens
        if request.key in self._sequences:
            raise RequestRefused(f"request key {request.key.key} is in use")
        if not 0 <= request.rank < len(self.ranks):
            raise RequestRefused(f"rank {request.rank}: the engine has {len(self.ranks)}")
        if tokens > self.max_sequence_tokens:
            raise RequestRefused(
                f"prompt and max_output_tokens come to {tokens} tokens, and"
                f" {self.max_sequence_tokens} fit"
            )
        sequence = self._new_sequence(request)
        self._sequences[request.key] = sequence
        self.ranks[request.rank].enqueue(sequence)

    def cancel(self, key: RequestKey) -> bool:
        """Ends a request without a row; False where it is over or was never here."""
        sequence = self._sequences.get(key)
        if sequence is None:
            return False
        self._end(sequence)
        return True

    def cancel_link(self, link: int) -> None:
        """Cancels every request that came over one gateway's stream."""
        for sequence in [s for s in self._sequences.values() if s.request.key.link == link]:
            self._end(sequence)

    @property
    def busy(self) -> bool:
        """Whether there is any request."""
        return bool(self._sequences)

    def plan(self) -> StepPlan | None:
        """What to run next, or None when there is no request. Commit it before the next plan."""
        if not self._sequences:
            return None
        self.steps += 1
        return StepPlan(self.steps, tuple(rank.plan() for rank in self.ranks))

    def commit(self, plan: StepPlan, drawn: Seq[Seq[int]]) -> list[TokenRow]:
        """Takes the step's tokens, for each rank one for each of its sampled chunks in order.

        Returns a row for each request that advanced. Requests that were cancelled since the plan
        was made are passed over. Raises ValueError when the number of tokens is wrong.
        """
        rows: list[TokenRow] = []
        for rank, chunks, tokens in zip(self.ranks, plan.ranks, drawn, strict=True):
            for sequence, token in zip(rank.advance(chunks), tokens, strict=True):
                if sequence.state is SequenceState.RUNNING:
                    rows.append(self._extend(sequence, token))
        return rows

    def fail_all(self, failure: str) -> list[TokenRow]:
        """Ends every request with a FAILED row."""
        return [self._fail(sequence, failure) for sequence in list(self._sequences.values())]

    def check_integrity(self) -> None:
        """Raises RuntimeError where blocks or sequences are lost, shared or in two places."""
        for rank in self.ranks:
            rank.check_integrity()
        queued = [s for rank in self.ranks for s in (*rank.running, *rank.waiting)]
        if {id(s) for s in queued} != {id(s) for s in self._sequences.values()}:
            raise RuntimeError("a sequence is queued and unknown, or known and not queued")

    def _new_sequence(self, request: EngineRequest) -> Sequence:
        limit = request.max_output_tokens
        try:
            automaton = self._new_automaton(request.channel_rules, max_output_tokens=limit)
        except ValueError as error:
            raise RequestRefused(f"channel_rules: {error}") from error
        self._arrivals += 1
        sequence = Sequence(
            request=request,
            automaton=automaton,
            arrival=self._arrivals,
            tokens=list(request.prompt),
        )
        sequence.extend_forced()
        if automaton.finish_reason is not None:
            raise RequestRefused(f"max_output_tokens {limit} ends inside the first header")
        return sequence

    def _extend(self, sequence: Sequence, token: int) -> TokenRow:
        try:
            sequence.extend(token)
        except ValueError as error:
            return self._fail(sequence, str(error))
        finish_reason = sequence.automaton.finish_reason
        if finish_reason is not None:
            self._end(sequence)
        return sequence.take_row(finish_reason)

    def _fail(self, sequence: Sequence, failure: str) -> TokenRow:
        self._end(sequence)
        return sequence.take_row(FinishReason.FAILED, failure)

    def _end(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request.key]
        self.ranks[sequence.request.rank].remove(sequence)


class RankScheduler:
    """The sequences and the blocks of one rank."""

    def __init__(self, config: EngineConfig, kv: KvPlan) -> None:
        self.blocks = KvBlocks(kv)
        self.waiting: list[Sequence] = []
        """By priority and arrival; they hold no blocks."""
        self.running: list[Sequence] = []
        """By admission."""
        self._max_running = config.max_running_per_rank
        self._step_rows = config.step_tokens_per_rank

    def enqueue(self, sequence: Sequence) -> None:
        sequence.state = SequenceState.WAITING
        insort(self.waiting, sequence, key=_queue_order)

    def remove(self, sequence: Sequence) -> None:
        """Ends a sequence, waiting or running, and frees its blocks."""
        if sequence.state is SequenceState.WAITING:
            del self.waiting[bisect_left(self.waiting, sequence.queue_order, key=_queue_order)]
        else:
            self.running.remove(sequence)
        self.blocks.clear(sequence.blocks)
        sequence.state = SequenceState.FINISHED

    def plan(self) -> list[Chunk]:
        """The chunks of one step, in order of admission; their sequences hold the blocks."""
        chunks: list[Chunk] = []
        budget = self._step_rows
        # Grows by admission and shrinks by preemption on the way, both at its end.
        running = self.running
        while len(chunks) < len(running) or (budget and self._admit()):
            sequence = running[len(chunks)]
            start, length = sequence.computed, len(sequence.tokens)
            behind = len(running) - len(chunks) - 1
            rows = self._grow(sequence, min(length - start, budget - behind))
            if rows == 0:
                break
            chunks.append(Chunk(sequence, start, rows, start + rows == length))
            budget -= rows
        return chunks

    def advance(self, chunks: list[Chunk]) -> list[Sequence]:
        """Marks the chunks as computed; returns the sequences of the sampled ones."""
        for sequence, start, rows, _ in chunks:
            if sequence.state is SequenceState.RUNNING:
                sequence.computed = start + rows
                self.blocks.trim(sequence.blocks, start + rows)
        return [sequence for sequence, _, _, sampled in chunks if sampled]

    def check_integrity(self) -> None:
        self.blocks.check_integrity([sequence.blocks for sequence in self.running])
        if any(s.state is not SequenceState.RUNNING for s in self.running):
            raise RuntimeError("a sequence runs that is not in state running")
        if any(s.state is not SequenceState.WAITING or s.blocks.full for s in self.waiting):
            raise RuntimeError("a sequence waits that is not in state waiting, or holds blocks")
        if len(self.running) > self._max_running:
            raise RuntimeError(f"{len(self.running)} sequences run")

    def _admit(self) -> bool:
        """Moves the first waiting sequence to the end of running, if it fits."""
        if not self.waiting or len(self.running) >= self._max_running:
            return False
        # Rows are left, so the running sequences need no more blocks for the tokens they have.
        full, window = self.blocks.needed(len(self.waiting[0].tokens))
        if full + len(self.running) > self.blocks.full.free_blocks:
            return False
        if window > self.blocks.window.free_blocks:
            return False
        sequence = self.waiting.pop(0)
        sequence.state = SequenceState.RUNNING
        self.running.append(sequence)
        return True

    def _grow(self, sequence: Sequence, wanted: int) -> int:
        """Takes the blocks for the sequence's next ``wanted`` rows, or fewer; returns how many.

        Preempts where there is none: the last may be the sequence itself, and then it is 0.
        """
        blocks, table, start = self.blocks, sequence.blocks, sequence.computed
        if start + wanted <= len(table.full) * blocks.block_tokens:
            return wanted
        while (rows := min(wanted, blocks.reach(table) - start)) <= 0:
            victim = self.running.pop()
            blocks.clear(victim.blocks)
            victim.computed = 0
            self.enqueue(victim)
            if victim is sequence:
                return 0
        blocks.grow(table, start + rows)
        return rows


def _queue_order(sequence: Sequence) -> tuple[int, int]:
    return sequence.queue_order
