"""An engine without a model, for tests of the policy around it.

``FakeRank`` keeps tokens where a model keeps keys and values, in blocks of both groups, and reads
them back through the block tables of each plan. The token it draws depends on all that a row sees,
so a wrong table, a block freed too early or a stale one changes the answer, or fails a check.
"""

import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeray.worker.block_pool import BlockPool
from moeray.worker.blocks import KvBlocks
from moeray.worker.config import EngineConfig
from moeray.worker.engine import Engine
from moeray.worker.kv_plan import KvPlan
from moeray.worker.plan import Drawn, Int32, Int64, RankPlan
from moeray.worker.ranks import RankFailure
from moeray.worker.request import (
    BodyKind,
    ChannelRules,
    EngineRequest,
    FinishReason,
    Header,
    RequestKey,
    SamplingParams,
)
from moeray.worker.scheduler import Scheduler

STOP = 0
ILLEGAL = 99
FORCING = 3
OPENING = (70, 71)
"""Forced first under thinking budget 0."""
FORCED = (80, 81, 82)
"""Forced after FORCING, as after every token that ends in 3."""


class FakeLegal(NamedTuple):
    text: bool
    ids: tuple[int, ...]
    excluded: tuple[int, ...] = ()


class FakeAutomaton:
    """Ends at STOP or the limit; forces OPENING and FORCED."""

    def __init__(self, rules: ChannelRules, *, max_output_tokens: int) -> None:
        if not rules.headers:
            raise ValueError("no headers")
        self.finish_reason: FinishReason | None = None
        self.accepted: list[int] = []
        self._forced = OPENING if rules.thinking_budget == 0 else ()
        self._limit = max_output_tokens

    def legal(self) -> FakeLegal:
        return FakeLegal(True, (len(self.accepted),))

    def forced(self) -> tuple[int, ...]:
        return self._forced

    def accept(self, token: int) -> bool:
        if token == ILLEGAL or self.finish_reason is not None:
            raise ValueError(f"token {token} is illegal here")
        self.accepted.append(token)
        self._forced = FORCED if token % 10 == FORCING else self._forced[1:]
        if token == STOP:
            self.finish_reason = FinishReason.STOP
        elif len(self.accepted) == self._limit:
            self.finish_reason = FinishReason.LENGTH
        if self.finish_reason is not None:
            self._forced = ()
        return self.finish_reason is None and not self._forced


def draw(seed: int, tokens: Sequence[int]) -> int:
    """The token after ``tokens``: 0 to 49."""
    return zlib.crc32(repr((seed, *tokens)).encode()) % 50


def request(
    key: int = 1,
    *,
    prompt: Sequence[int] = (5,),
    max_output_tokens: int = 8,
    link: int = 1,
    rank: int = 0,
    seed: int | None = None,
    priority: int = 0,
    thinking_budget: int | None = None,
    cache_salt: str = "",
    deadline: float | None = None,
) -> EngineRequest:
    return EngineRequest(
        key=RequestKey(link, key),
        epoch=0,
        rank=rank,
        prompt=tuple(prompt),
        max_output_tokens=max_output_tokens,
        sampling=SamplingParams(
            temperature=0.0, top_p=1.0, top_k=0, seed=key if seed is None else seed
        ),
        channel_rules=ChannelRules(
            turn_opening=(1,),
            headers=(Header((2,), BodyKind.FINAL),),
            thinking_budget=thinking_budget,
        ),
        priority=priority,
        cache_salt=cache_salt,
        deadline=deadline,
    )


def expected_answer(request: EngineRequest) -> tuple[tuple[int, ...], FinishReason]:
    """What the request gets when nothing disturbs it: by its tokens alone, without an engine."""
    automaton = FakeAutomaton(request.channel_rules, max_output_tokens=request.max_output_tokens)
    while automaton.finish_reason is None:
        forced = automaton.forced()
        tokens = (*request.prompt, *automaton.accepted)
        automaton.accept(forced[0] if forced else draw(request.sampling.seed, tokens))
    return tuple(automaton.accepted), automaton.finish_reason


class FakeMemory:
    """What one group's blocks hold: by slot (block * block_tokens + offset), the position's token
    and its trace, which tells the whole prefix up to it as a model's keys and values do.

    Blocks are empty until they are written, and again when the pool hands them out anew or gets
    them back unpublished: who reads them then, or writes where something is, is in the wrong.
    """

    def __init__(self, pool: BlockPool, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.tokens = np.full((pool.capacity + 1) * block_tokens, -1, np.int64)
        self.traces = np.zeros(len(self.tokens), np.uint64)
        self._pool = pool
        self._take, self._give_back = pool.take, pool.give_back
        pool.take = self._taken  # type: ignore[method-assign]
        pool.give_back = self._given_back  # type: ignore[method-assign]

    def slots(self, table: Int32, first_block: int, positions: NDArray[np.int64]) -> Int64:
        blocks = table[positions // self.block_tokens - first_block].astype(np.int64)
        assert blocks.min(initial=1) > 0, "the scratch block is in use"
        return blocks * self.block_tokens + positions % self.block_tokens

    def write(self, slots: Int64, tokens: Int64, traces: NDArray[np.uint64]) -> None:
        assert (self.tokens[slots] == -1).all(), "a written block is written again"
        self.tokens[slots] = tokens
        self.traces[slots] = traces

    def _taken(self, count: int) -> list[int]:
        blocks = self._take(count)
        self._empty(blocks)
        return blocks

    def _given_back(self, blocks: Iterable[int]) -> None:
        blocks = list(blocks)
        self._give_back(blocks)
        published = {self._pool.find(block_hash) for block_hash in self._pool.hashes}
        self._empty([b for b in blocks if b not in published and self._pool.unreferenced([b])])

    def _empty(self, blocks: list[int]) -> None:
        for block in blocks:
            self.tokens[block * self.block_tokens : (block + 1) * self.block_tokens] = -1


class FakeRank:
    """Executes plans on remembered tokens, and checks what a model would read."""

    def __init__(self, blocks: KvBlocks, window_tokens: int) -> None:
        self._window_tokens = window_tokens
        self._full = FakeMemory(blocks.full, blocks.block_tokens)
        self._window = FakeMemory(blocks.window, blocks.block_tokens)

    def execute(self, plan: RankPlan) -> Drawn:
        for sequence in range(len(plan.row_starts) - 1):
            self._write(plan, sequence)
        drawn = [self._draw(plan, index) for index in range(len(plan.samples.sequences))]
        return Drawn.plain(np.array(drawn, np.int64))

    def _write(self, plan: RankPlan, sequence: int) -> None:
        start, end = plan.row_starts[sequence : sequence + 2]
        positions = plan.positions[start:end].astype(np.int64)
        tokens = plan.tokens[start:end].astype(np.int64)
        first = int(positions[0])
        assert (positions == np.arange(first, first + len(positions))).all()
        full, window = plan.full_blocks[sequence], plan.window_blocks[sequence]
        before = np.uint64(0)
        if first:
            before = self._full.traces[self._full.slots(full, 0, positions[:1] - 1)][0]
        traces = before + _trace_steps(tokens, first)
        self._full.write(self._full.slots(full, 0, positions), tokens, traces)
        window_first = int(plan.window_first[sequence])
        self._window.write(self._window.slots(window, window_first, positions), tokens, traces)

    def _draw(self, plan: RankPlan, index: int) -> int:
        sequence = int(plan.samples.sequences[index])
        start, end = plan.row_starts[sequence : sequence + 2]
        length = int(plan.positions[end - 1]) + 1
        assert int(plan.samples.draw_position[index]) == length
        slots = self._full.slots(plan.full_blocks[sequence], 0, np.arange(length))
        tokens, traces = self._full.tokens[slots], self._full.traces[slots]
        assert (traces == _trace_steps(tokens, 0)).all(), "the keys of another prefix"
        assert tokens.min() >= 0, "an empty block is read"
        seen = np.arange(max(0, int(plan.positions[start]) - self._window_tokens + 1), length)
        slots = self._window.slots(
            plan.window_blocks[sequence], int(plan.window_first[sequence]), seen
        )
        assert (self._window.tokens[slots] == tokens[seen]).all()
        assert (self._window.traces[slots] == traces[seen]).all()
        return draw(int(plan.samples.seed[index]), tokens.tolist())


_WEIGHTS = np.random.default_rng(5).integers(1 << 63, size=1 << 17, dtype=np.uint64)


def _trace_steps(tokens: Int64, first: int) -> NDArray[np.uint64]:
    """What each position adds to the trace before ``first``: a sum, modulo 2 ** 64, of every token
    times a weight of its position.
    """
    weights = _WEIGHTS[first : first + len(tokens)]
    return np.cumsum((tokens + 1).astype(np.uint64) * weights, dtype=np.uint64)


class FakeRanks:
    """A group of fake ranks. ``fail_at`` is the step at which rank 0 dies; ``step_s`` makes steps
    last, so that a request can be ended before it ends by itself.
    """

    def __init__(
        self, ranks: Sequence[FakeRank], *, fail_at: int | None = None, step_s: float = 0.0
    ) -> None:
        self.ranks = ranks
        self.closed = False
        self._fail_at = fail_at
        self._step_s = step_s

    def execute(self, plans: Sequence[RankPlan]) -> list[Drawn]:
        time.sleep(self._step_s)
        if plans[0].step == self._fail_at:
            raise RankFailure(0, "killed by the test")
        assert len({plan.padded_rows for plan in plans}) == 1
        return [rank.execute(plan) for rank, plan in zip(self.ranks, plans, strict=True)]

    def close(self) -> None:
        self.closed = True


def engine_config(**settings: int) -> EngineConfig:
    """A config for the scheduler: there is no model behind it."""
    return EngineConfig(model=Path("none"), **settings)  # type: ignore[arg-type]


def fake_engine(
    *,
    ranks: int = 1,
    block_tokens: int = 4,
    full_blocks: int = 65,
    window_blocks: int = 65,
    window_tokens: int = 8,
    max_running: int = 8,
    step_tokens: int = 16,
    context_length: int = 1000,
    fail_at: int | None = None,
    step_s: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> Engine:
    kv = KvPlan(
        block_tokens=block_tokens,
        full_blocks=full_blocks,
        window_blocks=window_blocks,
        window_tokens=window_tokens,
    )
    config = engine_config(
        ranks=ranks, max_running_per_rank=max_running, step_tokens_per_rank=step_tokens
    )
    scheduler = Scheduler(config, kv, context_length=context_length, new_automaton=FakeAutomaton)
    fakes = [FakeRank(rank.blocks, window_tokens) for rank in scheduler.ranks]
    return Engine(scheduler, FakeRanks(fakes, fail_at=fail_at, step_s=step_s), clock=clock)
