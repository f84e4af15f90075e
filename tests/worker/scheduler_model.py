"""A model of the scheduler's world, and random traffic through it, for tests of many steps.

``Traffic`` drives a scheduler without an engine: plans go straight to ``KvMemory``, which keeps for
every position what a model's keys and values depend on, the whole prefix. After each step
everything is checked: the blocks that rows write and see, the rows, the answers against those of an
uncached run alone, hits against what was ever computed under their salt, and the integrity of
scheduler and pools.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

import numpy as np

from moeray.worker.block_pool import BlockPool
from moeray.worker.kv_events import KvJournal
from moeray.worker.kv_plan import KvPlan
from moeray.worker.plan import Drawn
from moeray.worker.rank_scheduler import RankScheduler
from moeray.worker.request import EngineRequest, FinishReason, RequestKey, TokenRow
from moeray.worker.scheduler import RequestRefused, Scheduler
from moeray.worker.sequence import Chunk, Chunks, Sequence, StepPlan
from tests.worker.engine_fakes import FakeAutomaton, draw, engine_config, expected_answer, request

UNSOUND_SEED = 13
"""Requests with this seed fail at their third token as a row that is not sound."""


class Answers:
    """Collects rows as a gateway does, and checks that they continue one another."""

    def __init__(self) -> None:
        self.tokens: dict[RequestKey, tuple[int, ...]] = {}
        self.reasons: dict[RequestKey, FinishReason] = {}
        self.cached_tokens: dict[RequestKey, int] = {}

    def take(self, rows: list[TokenRow]) -> None:
        assert len({row.key for row in rows}) == len(rows), "two rows of one request in a step"
        for row in rows:
            assert row.key not in self.reasons, "a row after the last"
            before = self.tokens.get(row.key, ())
            assert row.first_index == len(before)
            ends_without = row.finish_reason in (FinishReason.FAILED, FinishReason.EXPIRED)
            assert row.token_ids or row.cached_tokens is not None or ends_without
            assert row.cached_tokens is None or row.key not in self.tokens, "told twice"
            assert row.cached_tokens is not None or row.key in self.tokens or ends_without
            self.tokens[row.key] = before + row.token_ids
            if row.cached_tokens is not None:
                self.cached_tokens[row.key] = row.cached_tokens
            if row.finish_reason is not None:
                self.reasons[row.key] = row.finish_reason


class GroupMemory:
    """What the blocks of one pool hold: block to traces by offset; an absent block is empty."""

    def __init__(self, pool: BlockPool, block_tokens: int) -> None:
        self.blocks: dict[int, list[int | None]] = {}
        self._empty: list[int | None] = [None] * block_tokens
        self._pool = pool
        self._take, self._give_back = pool.take, pool.give_back
        pool.take = self._taken  # type: ignore[method-assign]
        pool.give_back = self._given_back  # type: ignore[method-assign]

    def write(self, block: int, offset: int, trace: int) -> None:
        assert block > 0, "the scratch block is in use"
        if block not in self.blocks:
            self.blocks[block] = self._empty.copy()
        assert self.blocks[block][offset] is None, "a written position is written again"
        self.blocks[block][offset] = trace

    def read(self, table: Iterable[int]) -> list[int | None]:
        return [trace for block in table for trace in self.blocks.get(block, self._empty)]

    def _taken(self, count: int) -> list[int]:
        taken = self._take(count)
        for block in taken:
            self.blocks.pop(block, None)
        return taken

    def _given_back(self, blocks: Iterable[int]) -> None:
        blocks = list(blocks)
        self._give_back(blocks)
        for block in blocks:
            if self._pool.unreferenced([block]) and self._pool._hashes[block] is None:
                self.blocks.pop(block, None)


class KvMemory:
    """One rank's memory; executes chunks on it."""

    def __init__(self, rank: RankScheduler, kv: KvPlan) -> None:
        self._kv = kv
        self._full = GroupMemory(rank.blocks.full, kv.block_tokens)
        self._window = GroupMemory(rank.blocks.window, kv.block_tokens)
        self._traces: dict[Sequence, list[int]] = defaultdict(list)
        self._computed: dict[str, set[int]] = defaultdict(set)
        """By salt, the traces at the ends of blocks that were computed."""

    def execute(self, chunks: Chunks) -> Drawn:
        for chunk in chunks:
            self._check_start(chunk)
        for chunk in chunks:
            self._write(chunk)
        sampled = [chunk for chunk in chunks if chunk.sampled]
        for chunk in sampled:
            self._check_reads(chunk)
        tokens = [draw(c.sequence.request.sampling.seed, c.sequence.tokens) for c in sampled]
        sound = [not _is_unsound(c.sequence) for c in sampled]
        for chunk in (c for c in sampled if _is_unsound(c.sequence)):
            # Nobody may find what it computed, unless somebody computes it again.
            salt = chunk.sequence.request.cache_salt
            self._computed[salt] -= set(self._trace(chunk.sequence))
        return Drawn.plain(np.array(tokens, np.int64), np.array(sound, np.bool_))

    def forget(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            self._traces.pop(sequence, None)

    def _trace(self, sequence: Sequence) -> list[int]:
        """For each position, a number that tells all tokens up to it."""
        traces = self._traces[sequence]
        for token in sequence.tokens[len(traces) :]:
            traces.append(hash((traces[-1] if traces else 0, token)))
        return traces

    def _check_start(self, chunk: Chunk) -> None:
        sequence, start = chunk.sequence, chunk.start
        assert 0 < chunk.rows <= len(sequence.tokens) - start
        assert chunk.sampled == (start + chunk.rows == len(sequence.tokens))
        if start and not sequence.started:
            assert start % self._kv.block_tokens == 0
            computed = self._computed[sequence.request.cache_salt]
            assert self._trace(sequence)[start - 1] in computed, "a hit on what nobody computed"
            assert sequence.cached_tokens == min(start, len(sequence.request.prompt))

    def _write(self, chunk: Chunk) -> None:
        size, table = self._kv.block_tokens, chunk.sequence.blocks
        traces = self._trace(chunk.sequence)
        computed = self._computed[chunk.sequence.request.cache_salt]
        for position in range(chunk.start, chunk.start + chunk.rows):
            block, offset = divmod(position, size)
            self._full.write(table.full[block], offset, traces[position])
            self._window.write(table.window[block - table.window_first], offset, traces[position])
            if offset + 1 == size:
                computed.add(traces[position])

    def _check_reads(self, chunk: Chunk) -> None:
        table, traces = chunk.sequence.blocks, self._trace(chunk.sequence)
        end = chunk.start + chunk.rows
        assert self._full.read(table.full)[:end] == traces, "the keys of another prefix"
        first_seen = self._kv.first_visible(chunk.start)
        first_held = table.window_first * self._kv.block_tokens
        assert first_held <= first_seen, "a windowed block was given back too early"
        held = self._window.read(table.window)[: end - first_held]
        assert held[first_seen - first_held :] == traces[first_seen:]


def _is_unsound(sequence: Sequence) -> bool:
    request = sequence.request
    return request.sampling.seed == UNSOUND_SEED and len(sequence.tokens) > len(request.prompt) + 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of a small engine."""

    ranks: int = 1
    block_tokens: int = 4
    full_blocks: int = 24
    window_blocks: int = 24
    window_tokens: int = 8
    max_running: int = 4
    step_tokens: int = 12
    context_length: int = 90


class Traffic:
    """Random requests with few prefixes through a small engine, checked after each step.

    ``seen`` counts what happened. ``step`` and ``finish`` raise AssertionError, RuntimeError,
    LookupError or ValueError where something is wrong.
    """

    def __init__(self, sizes: Sizes, random: Random) -> None:
        self.kv = KvPlan(
            block_tokens=sizes.block_tokens,
            full_blocks=sizes.full_blocks,
            window_blocks=sizes.window_blocks,
            window_tokens=sizes.window_tokens,
        )
        config = engine_config(
            ranks=sizes.ranks,
            max_running_per_rank=sizes.max_running,
            step_tokens_per_rank=sizes.step_tokens,
        )
        self.scheduler = Scheduler(
            config, self.kv, context_length=sizes.context_length, new_automaton=FakeAutomaton
        )
        self.seen: Counter[str] = Counter()
        self._sizes = sizes
        self._memories = [KvMemory(rank, self.kv) for rank in self.scheduler.ranks]
        self._answers = Answers()
        self._requests: dict[RequestKey, EngineRequest] = {}
        self._cancelled: set[RequestKey] = set()
        self._now = 0.0
        self._journal = KvJournal(sizes.ranks)
        self._told: list[tuple[set[bytes], set[bytes]]] = [
            (set(), set()) for _ in range(sizes.ranks)
        ]
        self._prefixes = [[random.randrange(1, 50) for _ in range(60)] for _ in range(3)]
        self._keys = 0

    @property
    def queued(self) -> int:
        return len(self._requests)

    def submit(self, random: Random) -> None:
        """One more request; one that can never run must be refused."""
        prompt = self._prompt(random)
        self._keys += 1
        wanted = request(
            self._keys,
            prompt=prompt,
            max_output_tokens=random.choice((3, 6, 15, 30)),
            rank=random.randrange(self._sizes.ranks),
            seed=random.randrange(40),
            priority=random.choice((0, 0, 0, 1, -1)),
            thinking_budget=random.choice((None, None, 0)),
            cache_salt=random.choice(("", "", "other")),
            deadline=random.choice((None, None, None, self._now + random.randrange(1, 60))),
        )
        tokens = len(prompt) + wanted.max_output_tokens
        try:
            self.scheduler.submit(wanted)
        except RequestRefused:
            assert tokens > self.scheduler.max_sequence_tokens
            self.seen["refused"] += 1
        else:
            assert tokens <= self.scheduler.max_sequence_tokens
            self._requests[wanted.key] = wanted
            self.seen["requests"] += 1

    def cancel(self, random: Random) -> None:
        """Ends any request that is here."""
        if self._requests:
            key = random.choice(list(self._requests))
            assert self.scheduler.cancel(key)
            self._cancelled.add(key)
            self._check_partial(key)
            self.seen["cancelled"] += 1

    def run(self, random: Random, steps: int, *, busy: float = 0.3) -> None:
        """Runs steps. Before each may come a request, or rarely a cancel; an idle engine always
        gets a request.
        """
        for _ in range(steps):
            if not self._requests or (random.random() < busy and self.queued < 12):
                self.submit(random)
            if random.random() < 0.02:
                self.cancel(random)
            self.step(random)

    def step(self, random: Random) -> None:
        """One step of the engine, and the checks after it."""
        self._now += 1
        self._take(self.scheduler.expire(self._now))
        before = [(r.preemptions, r.prefix_hit_tokens) for r in self.scheduler.ranks]
        preempted = [s for r in self.scheduler.ranks for s in r.waiting if s.started]
        plan = self.scheduler.plan()
        self.seen["resumed from cache"] += any(s.computed for s in preempted)
        if plan is not None:
            self.seen["steps"] += 1
            self._check_plan(plan)
            samples = [m.execute(c) for m, c in zip(self._memories, plan.ranks, strict=True)]
            if random.random() < 0.02:
                self.cancel(random)
            self._take(self.scheduler.commit(plan, samples))
        self._count(before)
        self.scheduler.check_integrity()
        if random.random() < 0.1:
            self._check_kv_changes(random)

    def finish(self, random: Random, *, max_steps: int = 20_000) -> None:
        """Runs until nothing is left."""
        for _ in range(max_steps):
            if not self.scheduler.busy:
                break
            self.step(random)
        assert not self.scheduler.busy, "the engine makes no progress"
        assert not self._requests, "a request came to no end"
        for rank in self.scheduler.ranks:
            assert rank.blocks.full.referenced_blocks == 0
            assert rank.blocks.window.referenced_blocks == 0
            assert (rank.running, rank.waiting, rank.waiting_tokens) == ([], [], 0)
        self._check_kv_changes(random)

    def _prompt(self, random: Random) -> list[int]:
        """A stretch of a prefix and something of its own; sometimes an answer becomes a prefix."""
        prefix = random.choice(self._prefixes)
        prompt = prefix[: random.randrange(1, 50)]
        return prompt + [random.randrange(50, 60) for _ in range(random.choice((0, 0, 1, 5)))]

    def _check_plan(self, plan: StepPlan) -> None:
        assert any(plan.ranks), "there are requests, and nothing runs"
        for rank, chunks in zip(self.scheduler.ranks, plan.ranks, strict=True):
            assert [chunk.sequence for chunk in chunks] == rank.running
            assert len(chunks) <= self._sizes.max_running
            assert sum(chunk.rows for chunk in chunks) <= self._sizes.step_tokens
            held = [b for s in rank.running for b in s.blocks.full]
            self.seen["shared"] += len(held) != len(set(held))
            self.seen["chunked"] += any(not chunk.sampled for chunk in chunks)

    def _take(self, rows: list[TokenRow]) -> None:
        self._answers.take(rows)
        for row in rows:
            if row.finish_reason is None:
                continue
            wanted = self._requests[row.key]
            self.seen[row.finish_reason.value] += 1
            if row.finish_reason in (FinishReason.EXPIRED, FinishReason.FAILED):
                if row.finish_reason is FinishReason.FAILED:
                    assert wanted.sampling.seed == UNSOUND_SEED
                else:
                    assert wanted.deadline is not None
                    assert wanted.deadline <= self._now
                self._check_partial(row.key)
                continue
            tokens, reason = expected_answer(wanted)
            assert (self._answers.tokens[row.key], row.finish_reason) == (tokens, reason)
            self._prefixes[self._keys % 3] = [*wanted.prompt, *tokens][:60]
            self._forget(row.key)

    def _check_partial(self, key: RequestKey) -> None:
        """What a request got before it was ended is right."""
        got = self._answers.tokens.get(key, ())
        assert got == expected_answer(self._requests[key])[0][: len(got)]
        self._forget(key)

    def _forget(self, key: RequestKey) -> None:
        del self._requests[key]
        alive = {id(s) for r in self.scheduler.ranks for s in (*r.running, *r.waiting)}
        for memory in self._memories:
            memory.forget([s for s in memory._traces if id(s) not in alive])

    def _count(self, before: list[tuple[int, int]]) -> None:
        for rank, (preemptions, hits) in zip(self.scheduler.ranks, before, strict=True):
            self.seen["preempted"] += rank.preemptions - preemptions
            self.seen["hits"] += rank.prefix_hit_tokens > hits
            self.seen["evicted"] += len(rank.blocks.full.changes.removed)

    def _check_kv_changes(self, random: Random) -> None:
        """A router that follows the changes knows what is cached."""
        for number, rank in enumerate(self.scheduler.ranks):
            self._journal.record(number, rank.blocks.full.changes, rank.blocks.window.changes)
        if random.random() < 0.1:
            self._journal.request_snapshot(0)
        for changes in self._journal.take():
            full, window = self._told[changes.rank]
            if changes.is_snapshot:
                full, window = self._told[changes.rank] = (set(), set())
            assert full.isdisjoint(changes.stored_full)
            assert full.issuperset(changes.removed_full)
            full -= set(changes.removed_full)
            full |= set(changes.stored_full)
            assert window.isdisjoint(changes.stored_window)
            assert window.issuperset(changes.removed_window)
            window -= set(changes.removed_window)
            window |= set(changes.stored_window)
            self._told[changes.rank] = (full, window)
        for rank, (full, window) in zip(self.scheduler.ranks, self._told, strict=True):
            assert full == set(rank.blocks.full.hashes)
            assert window == set(rank.blocks.window.hashes)
