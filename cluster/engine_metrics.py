"""An engine's metrics: its load as of the last step, read at each scrape."""

from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client.core import Metric

from moeray.cluster.contracts import EngineInfo
from moeray.cluster.metrics import Samples, WeightedHistogram, counter, gauge, histogram

_ENGINE = ("model_name", "engine")
_RANK = (*_ENGINE, "rank")


class EngineState(Protocol):
    """What the engine's thread publishes (``EngineLoad`` of the worker). Tuples are by rank."""

    @property
    def running(self) -> tuple[int, ...]: ...
    @property
    def waiting(self) -> tuple[int, ...]: ...
    @property
    def waiting_tokens(self) -> tuple[int, ...]: ...
    @property
    def free_blocks(self) -> tuple[int, ...]: ...
    @property
    def used_blocks(self) -> tuple[int, ...]: ...
    @property
    def steps(self) -> int: ...
    @property
    def computed_tokens(self) -> int: ...
    @property
    def prefix_queries_tokens(self) -> int: ...
    @property
    def prefix_hit_tokens(self) -> int: ...
    @property
    def preemptions(self) -> int: ...


class EngineMetrics:
    """What an engine's /metrics shows. ``state`` is called in the scraping thread."""

    def __init__(self, info: EngineInfo, state: Callable[[], EngineState]) -> None:
        self.step_s = WeightedHistogram()
        """Written by the engine's thread."""
        self._labels = (info.model, info.engine_id)
        self._blocks = info.blocks_per_rank
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state, engine = self._state(), self._labels
        usage = tuple(used / self._blocks for used in state.used_blocks)
        ranks = self._by_rank
        yield gauge("num_requests_running", "Requests in steps.", _RANK, ranks(state.running))
        yield gauge(
            "num_requests_waiting",
            "Requests taken, but not yet in steps.",
            _RANK,
            ranks(state.waiting),
        )
        yield gauge(
            "engine_waiting_tokens",
            "Tokens of waiting requests.",
            _RANK,
            ranks(state.waiting_tokens),
        )
        yield gauge(
            "kv_cache_usage_perc",
            "KV blocks that running requests hold, 0 to 1.",
            _RANK,
            ranks(usage),
        )
        yield counter(
            "prefix_cache_queries",
            "Prompt tokens looked up in the prefix cache.",
            _ENGINE,
            [(engine, state.prefix_queries_tokens)],
        )
        yield counter(
            "prefix_cache_hits",
            "Prompt tokens found in the prefix cache.",
            _ENGINE,
            [(engine, state.prefix_hit_tokens)],
        )
        yield counter(
            "num_preemptions",
            "Requests sent back to waiting for want of blocks.",
            _ENGINE,
            [(engine, state.preemptions)],
        )
        yield counter(
            "engine_computed_tokens",
            "Rows run through the model, prompt and output.",
            _ENGINE,
            [(engine, state.computed_tokens)],
        )
        yield counter("engine_steps", "Steps run.", _ENGINE, [(engine, state.steps)])
        yield histogram(
            "engine_step_seconds",
            "From plan to commit of one step.",
            _ENGINE,
            [(engine, self.step_s)],
        )

    def _by_rank(self, values: tuple[float, ...]) -> Samples:
        return [((*self._labels, str(rank)), value) for rank, value in enumerate(values)]
