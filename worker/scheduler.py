"""Continuous batching: which rows every rank runs in the next step.

Pure policy over plain data. One scheduler plans for all ranks; a request lives on the rank that it
was placed on. In a step, a sequence runs what is not computed yet: one row when it decodes, more
when it is new, preempted, or was given forced tokens. The step's rows are limited, so a long prompt
is computed in chunks; the next token is drawn in the step that computes the last row. Who gets how
many rows, and KV blocks, is each rank's matter: ``rank_scheduler.py``.

There is no clock here: whoever has one says what has expired.
"""

import heapq
from collections.abc import Sequence as Seq
from typing import Final, Protocol

from moeray.worker.config import EngineConfig
from moeray.worker.kv_plan import KvPlan
from moeray.worker.plan import Drawn
from moeray.worker.prefix_cache import BlockHashes
from moeray.worker.rank_scheduler import RankScheduler
from moeray.worker.request import (
    ChannelRules,
    EngineRequest,
    FinishReason,
    RequestKey,
    TokenRow,
)
from moeray.worker.sampling_record import sampling_record
from moeray.worker.sequence import Automaton, Chunks, Sequence, SequenceState, StepPlan
from moeray.worker.text_adjustments import TextAdjustments

_UNSOUND = "the greatest legal logit of its next token is not finite"

_RUNNING: Final = SequenceState.RUNNING
"""Looking up an Enum's member is slow, and a step does it for every sequence."""


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
        self._block_tokens = kv.block_tokens
        self._new_automaton = new_automaton
        self._sequences: dict[RequestKey, Sequence] = {}
        self._deadlines: list[tuple[float, int, RequestKey]] = []
        """A heap of (deadline, arrival, key), with requests that are over among them."""
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
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, sequence.arrival, request.key))

    def expire(self, now: float) -> list[TokenRow]:
        """Ends every request whose deadline is at or before ``now`` with an EXPIRED row."""
        rows = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, arrival, key = heapq.heappop(self._deadlines)
            sequence = self._sequences.get(key)
            # The key may have been used again since.
            if sequence is not None and sequence.arrival == arrival:
                self._end(sequence)
                rows.append(sequence.take_row(FinishReason.EXPIRED))
        return rows

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

    def commit(self, plan: StepPlan, drawn: Seq[Drawn]) -> list[TokenRow]:
        """Takes the step's tokens, for each rank one for each of its sampled chunks in order.

        Returns a row for each request that advanced or failed: one whose row could not be sampled
        fails alone. Requests that were cancelled since the plan was made are passed over. Raises
        ValueError when the number of tokens is wrong.
        """
        rows: list[TokenRow] = []
        for rank, chunks, samples in zip(self.ranks, plan.ranks, drawn, strict=True):
            rows += self._extend_sampled(rank, chunks, samples)
            rows += [sequence.take_row(None) for sequence in rank.unopened()]
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
            hashes=BlockHashes(self._block_tokens, request.cache_salt),
            sampling_record=sampling_record(request.sampling),
            adjustments=TextAdjustments.of(request.sampling, prompt_tokens=len(request.prompt)),
        )
        sequence.extend_forced()
        if automaton.finish_reason is not None:
            raise RequestRefused(f"max_output_tokens {limit} ends inside the first header")
        return sequence

    def _extend_sampled(self, rank: RankScheduler, chunks: Chunks, drawn: Drawn) -> list[TokenRow]:
        rows: list[TokenRow] = []
        tokens, sound = drawn.tokens.tolist(), drawn.sound.tolist()
        logprobs = map(drawn.logprobs_by_row().get, range(len(tokens)))
        columns = zip(rank.advance(chunks), tokens, sound, logprobs, strict=True)
        for sequence, token, is_sound, token_logprobs in columns:
            if not is_sound:
                # What it computed may be as wrong as its logits: nobody else may find it.
                rank.blocks.withdraw(sequence.hashes.known())
            if sequence.state is not _RUNNING:
                continue
            if not is_sound:
                rows.append(self._fail(sequence, _UNSOUND))
                continue
            try:
                row = sequence.extend(token, token_logprobs)
            except ValueError as error:
                row = self._fail(sequence, str(error))
            else:
                if row.finish_reason is not None:
                    self._end(sequence)
            rows.append(row)
        return rows

    def _fail(self, sequence: Sequence, failure: str) -> TokenRow:
        self._end(sequence)
        return sequence.take_row(FinishReason.FAILED, failure)

    def _end(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request.key]
        self.ranks[sequence.request.rank].remove(sequence)
