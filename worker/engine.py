"""The engine's loop: plan, execute, commit.

An Engine is the scheduler and the ranks, and is owned by one thread (``engine_thread.py``).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from moeray.worker.channels import ChannelAutomaton
from moeray.worker.config import EngineConfig
from moeray.worker.kv_events import KvJournal
from moeray.worker.kv_plan import KvPlan
from moeray.worker.model_config import ModelConfig
from moeray.worker.planner import Planner
from moeray.worker.ranks import RankGroup
from moeray.worker.request import EngineRequest, RequestKey, TokenRow
from moeray.worker.scheduler import Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """How busy an engine is, and what it did since start. Tuples are by rank; blocks are those of
    the full-attention layers.
    """

    running: tuple[int, ...]
    waiting: tuple[int, ...]
    waiting_tokens: tuple[int, ...]
    """Tokens of the waiting requests: none is computed, some may be cached."""
    free_blocks: tuple[int, ...]
    """Blocks that nobody refers to, cached ones among them."""
    used_blocks: tuple[int, ...]
    """Blocks that running requests refer to."""
    steps: int
    computed_tokens: int
    """Rows that were run, prompt and output."""
    prefix_queries_tokens: int
    """Prompt tokens of the requests that were started."""
    prefix_hit_tokens: int
    """Of these, tokens that were found in the prefix cache."""
    preemptions: int


class Engine:
    """One expert-parallel group behind one scheduler. ``clock`` is what deadlines are told by."""

    def __init__(
        self,
        scheduler: Scheduler,
        ranks: RankGroup,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scheduler = scheduler
        self.planner = Planner(len(scheduler.ranks))
        self.ranks = ranks
        self._clock = clock

    @classmethod
    def of(cls, config: EngineConfig, model_config: ModelConfig, ranks: RankGroup) -> "Engine":
        """The engine for a model; its ranks are ready, or will be before the first step."""
        context_length = model_config.context_length
        kv = KvPlan.of(config, context_length, model_config.sliding_window)
        scheduler = Scheduler(
            config, kv, context_length=context_length, new_automaton=ChannelAutomaton
        )
        return cls(scheduler, ranks)

    def submit(self, request: EngineRequest) -> None:
        """Takes a request; raises RequestRefused where it can never run here."""
        self.scheduler.submit(request)

    def cancel(self, key: RequestKey) -> bool:
        """Ends a request and frees its blocks; False where it is over or was never here."""
        return self.scheduler.cancel(key)

    def cancel_link(self, link: int) -> None:
        """Cancels every request that came over one gateway's stream."""
        self.scheduler.cancel_link(link)

    @property
    def busy(self) -> bool:
        """Whether there is any request."""
        return self.scheduler.busy

    def expire(self) -> list[TokenRow]:
        """Ends what has expired, with a row each. Called before each step, and apart from it: a
        step that fails must not take these rows along.
        """
        return self.scheduler.expire(self._clock())

    def step(self) -> list[TokenRow]:
        """Runs one step; returns a row for each request that advanced. Raises RankFailure."""
        plan = self.scheduler.plan()
        if plan is None:
            return []
        drawn = self.ranks.execute(self.planner.rank_plans(plan))
        return self.scheduler.commit(plan, drawn)

    def fail(self, reason: str) -> list[TokenRow]:
        """Ends every request with a FAILED row."""
        return self.scheduler.fail_all(reason)

    def load(self) -> EngineLoad:
        ranks = self.scheduler.ranks
        return EngineLoad(
            running=tuple(len(rank.running) for rank in ranks),
            waiting=tuple(len(rank.waiting) for rank in ranks),
            waiting_tokens=tuple(rank.waiting_tokens for rank in ranks),
            free_blocks=tuple(rank.blocks.full.free_blocks for rank in ranks),
            used_blocks=tuple(rank.blocks.full.referenced_blocks for rank in ranks),
            steps=self.scheduler.steps,
            computed_tokens=sum(rank.computed_tokens for rank in ranks),
            prefix_queries_tokens=sum(rank.prefix_queries_tokens for rank in ranks),
            prefix_hit_tokens=sum(rank.prefix_hit_tokens for rank in ranks),
            preemptions=sum(rank.preemptions for rank in ranks),
        )

    def record_kv_changes(self, journal: KvJournal) -> None:
        """Hands on what changed in the ranks' prefix caches."""
        for number, rank in enumerate(self.scheduler.ranks):
            journal.record(number, rank.blocks.full.changes, rank.blocks.window.changes)

    def close(self) -> None:
        """Lets the ranks go."""
        self.ranks.close()
