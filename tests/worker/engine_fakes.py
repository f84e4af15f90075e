"""An engine without a model, for tests of the policy around it.

``FakeRank`` keeps tokens where a model keeps keys and values, in blocks, and reads them back
through the block tables of each plan. The token it draws depends on all that a row sees, so a wrong
table, a block freed too early or a stale one changes the answer.
"""

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moeray.worker.config import EngineConfig
from moeray.worker.engine import Engine
from moeray.worker.kv_plan import KvPlan
from moeray.worker.plan import Int32, RankPlan
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
from moeray.worker.wire import Int64

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

    def accept(self, token: int) -> None:
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
    )


def expected_answer(request: EngineRequest) -> tuple[tuple[int, ...], FinishReason]:
    """What the request gets when nothing disturbs it: by its tokens alone, without an engine."""
    automaton = FakeAutomaton(request.channel_rules, max_output_tokens=request.max_output_tokens)
    while automaton.finish_reason is None:
        forced = automaton.forced()
        tokens = (*request.prompt, *automaton.accepted)
        automaton.accept(forced[0] if forced else draw(request.sampling.seed, tokens))
    return tuple(automaton.accepted), automaton.finish_reason


@dataclass
class FakeRank:
    """Executes plans on remembered tokens, and checks what a model would read."""

    window_tokens: int
    block_tokens: int
    full: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(position, token) by slot: block * block_tokens + offset."""
    window: dict[int, tuple[int, int]] = field(default_factory=dict)

    def execute(self, plan: RankPlan) -> Int64:
        for row in range(len(plan.tokens)):
            sequence = int(np.searchsorted(plan.row_starts, row, side="right")) - 1
            position = int(plan.positions[row])
            held = (position, int(plan.tokens[row]))
            first = int(plan.window_first[sequence])
            self.full[self._slot(plan.full_blocks[sequence], 0, position)] = held
            self.window[self._slot(plan.window_blocks[sequence], first, position)] = held
        drawn = [self._draw(plan, index) for index in range(len(plan.samples.sequences))]
        return np.array(drawn, np.int64)

    def _draw(self, plan: RankPlan, index: int) -> int:
        sequence = int(plan.samples.sequences[index])
        start, end = plan.row_starts[sequence : sequence + 2]
        last = int(plan.positions[end - 1])
        assert list(plan.positions[start:end]) == list(range(last + 1 - end + start, last + 1))
        assert int(plan.samples.draw_position[index]) == last + 1
        tokens = [self._read(self.full, plan.full_blocks[sequence], 0, p) for p in range(last + 1)]
        first = int(plan.window_first[sequence])
        first_seen = max(0, int(plan.positions[start]) - self.window_tokens + 1)
        for p in range(first_seen, last + 1):
            seen = self._read(self.window, plan.window_blocks[sequence], first, p)
            assert seen == tokens[p]
        return draw(int(plan.samples.seed[index]), tokens)

    def _read(
        self, memory: dict[int, tuple[int, int]], table: Int32, first: int, position: int
    ) -> int:
        held_position, token = memory[self._slot(table, first, position)]
        assert held_position == position
        return token

    def _slot(self, table: Int32, first: int, position: int) -> int:
        block = int(table[position // self.block_tokens - first])
        assert block > 0, "the scratch block is in use"
        return block * self.block_tokens + position % self.block_tokens


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

    def execute(self, plans: Sequence[RankPlan]) -> list[Int64]:
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
    fakes = [FakeRank(window_tokens, block_tokens) for _ in range(ranks)]
    return Engine(scheduler, FakeRanks(fakes, fail_at=fail_at, step_s=step_s))
