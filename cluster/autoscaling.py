"""How many engines there should be: a pure policy, and what Serve's controller calls of it.

Requests do not pass through Serve, so Serve counts none. Instead each engine replica reports its
load (``record_autoscaling_stats``) with what waits at the router, and while there is no engine, a
gateway where requests wait keeps one call to the engines queued (``engine_waker.py``), which Serve
counts and answers by starting an engine at once.

Rules: more load never asks for fewer engines; a count changes only after its delay, in which every
moment asked for a change in that direction, and then by the least that any of them asked; nothing
is taken away while an engine's load is unknown; the last engine goes only when nothing ran or
waited for ``scale_to_zero_delay_s``.
"""

import logging
import math
import time
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

MAX_GAP_S: Final = 10.0
"""After so long without a look at the load, its history is worth nothing."""
_STATE: Final = "moeray"
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalingRules:
    """What the settings say. Times are in seconds."""

    min_engines: int
    max_engines: int
    target_kv_usage: float
    """Share of an engine's KV cache, or of its places, that should be in use."""
    target_waiting_tokens: int
    """Prompt tokens that may wait for each engine."""
    scale_up_delay_s: float
    scale_down_delay_s: float
    scale_to_zero_delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What one engine replica reports, summed over its ranks."""

    requests: float
    """Requests that it runs or will run."""
    places: float
    """Requests that it may hold."""
    kv_usage: float
    """Share of its KV blocks that its requests hold, 0 to 1."""
    waiting_tokens: float
    """Tokens of its requests that have not begun."""
    queued_requests: float
    """Of the whole cluster: requests that wait at the router."""
    queued_tokens: float
    """Of the whole cluster: prompt tokens that wait at the router."""

    def as_dict(self) -> dict[str, float]:
        """As ``record_autoscaling_stats`` returns it."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The engines at one moment."""

    now: float
    """Unix time."""
    target: int
    """Engines that Serve runs or brings up now."""
    engines: tuple[EngineStats | None, ...]
    """Of each running engine; None where it has not reported yet."""
    wake_calls: float = 0.0
    """Calls of gateways that wait for a first engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalingState:
    """What the policy remembers from one decision to the next."""

    target: int
    last_seen: float
    above_since: float | None = None
    """Since when more engines were wanted than there are."""
    above_least: int = 0
    """The fewest wanted since then."""
    below_since: float | None = None
    """Since when fewer were wanted."""
    below_most: int = 0
    """The most wanted since then."""
    idle_since: float | None = None
    """Since when nothing ran or waited."""


def decide(
    rules: AutoscalingRules, state: AutoscalingState | None, seen: Observation
) -> tuple[int, AutoscalingState]:
    """The number of engines that there should be now, and the state for the next decision."""
    wanted = wanted_engines(rules, seen)
    state = _remember(_history(state, seen), wanted, seen)
    if seen.target == 0:
        return wanted, state
    if _lasted(state.above_since, seen.now, rules.scale_up_delay_s):
        return state.above_least, state
    may_be_zero = _lasted(state.idle_since, seen.now, rules.scale_to_zero_delay_s)
    if may_be_zero and seen.target == 1:
        return 0, state
    if _lasted(state.below_since, seen.now, rules.scale_down_delay_s):
        return max(0 if may_be_zero else 1, state.below_most), state
    return seen.target, state


def wanted_engines(rules: AutoscalingRules, seen: Observation) -> int:
    """Engines that this load asks for, within the bounds, without any delay.

    An engine counts as much as its KV cache or its places are in use, whichever is more. Waiting
    tokens come on top. 0 only where nothing runs or waits.
    """
    reports = [stats for stats in seen.engines if stats is not None]
    in_use = sum(_usage(stats) for stats in reports)
    queued = max((stats.queued_tokens for stats in reports), default=0.0)
    waiting = queued + sum(stats.waiting_tokens for stats in reports)
    load = in_use / rules.target_kv_usage + waiting / rules.target_waiting_tokens
    engines = math.ceil(load - _ROUNDING)
    if seen.wake_calls > 0 or any(s.requests or s.queued_requests for s in reports):
        engines = max(1, engines)
    if len(reports) < len(seen.engines):
        engines = max(seen.target, engines)
    return max(rules.min_engines, min(rules.max_engines, engines))


def _usage(stats: EngineStats) -> float:
    return max(stats.kv_usage, stats.requests / stats.places if stats.places else 0.0)


def _history(state: AutoscalingState | None, seen: Observation) -> AutoscalingState:
    """What is still worth remembering: another target begins a new history, and so does a gap."""
    if state is None or not 0 <= seen.now - state.last_seen <= MAX_GAP_S:
        return AutoscalingState(target=seen.target, last_seen=seen.now)
    if seen.target == state.target:
        return state
    # While the count goes down, what was idle is idle still; an engine that came was asked for.
    idle_since = state.idle_since if seen.target < state.target else None
    return AutoscalingState(target=seen.target, last_seen=seen.now, idle_since=idle_since)


def _remember(state: AutoscalingState, wanted: int, seen: Observation) -> AutoscalingState:
    above_since = below_since = idle_since = None
    above_least = below_most = wanted
    if wanted > seen.target:
        above_since = seen.now if state.above_since is None else state.above_since
        above_least = wanted if state.above_since is None else min(wanted, state.above_least)
    if wanted < seen.target:
        below_since = seen.now if state.below_since is None else state.below_since
        below_most = wanted if state.below_since is None else max(wanted, state.below_most)
    if wanted == 0:
        idle_since = seen.now if state.idle_since is None else state.idle_since
    return replace(
        state,
        last_seen=seen.now,
        above_since=above_since,
        above_least=above_least,
        below_since=below_since,
        below_most=below_most,
        idle_since=idle_since,
    )


def _lasted(since: float | None, now: float, delay_s: float) -> bool:
    return since is not None and now - since >= delay_s


class EngineAutoscaler:
    """What Serve's controller calls for the engine deployment, some times a second.

    An error here would end all scaling and healing of the application, so it never gets out: the
    engines stay as they are.
    """

    def __init__(self, **rules: Any) -> None:
        self._rules = AutoscalingRules(**rules)
        self._is_failing = False

    def __call__(self, context: "AutoscalingContext") -> tuple[int, dict[str, Any]]:
        state: dict[str, Any] = context.policy_state
        try:
            engines, remembered = decide(self._rules, state.get(_STATE), observe(context))
        except Exception:
            if not self._is_failing:
                logging.getLogger("ray.serve").exception("autoscaling fails; nothing is scaled")
            self._is_failing = True
            return context.target_num_replicas, state
        self._is_failing = False
        return engines, {_STATE: remembered}


def observe(context: "AutoscalingContext") -> Observation:
    """What Serve knows of the engine deployment, the newest reports only."""
    metrics = context.raw_metrics or {}
    names = [field.name for field in fields(EngineStats)]
    engines: list[EngineStats | None] = []
    for replica in context.running_replicas:
        series = [metrics.get(name, {}).get(replica) for name in names]
        newest = {name: found[-1].value for name, found in zip(names, series, strict=True) if found}
        engines.append(EngineStats(**newest) if len(newest) == len(names) else None)
    return Observation(
        now=context.current_time or time.time(),
        target=context.target_num_replicas,
        engines=tuple(engines),
        wake_calls=context.total_queued_requests,
    )
