"""What gateways, router and engines say to each other through the router actor: plain data.

The router actor (``router.py``) is a named Ray actor whose methods are

    register_engine(EngineInfo) -> None
    report_load(EngineLoad) -> bool         False: unknown engine, register again
    report_kv(engine_id, list[KvEvents]) -> list[int]           ranks whose snapshot is wanted
    deregister_engine(engine_id) -> None
    place(gateway_id, list[PlacementRequest]) -> list[Placement | Waiting | Refused]
    watch(gateway_id, version, timeout_s) -> GatewayUpdate      long poll; also a heartbeat
    release(gateway_id, list[request_id]) -> None               finished, cancelled or expired
    announce(gateway_id, list[LivePlacement]) -> None           after the session changed
    stats() -> RouterStats                                      for metrics and autoscaling

A placement holds one of its engine's places until it is released, so the router's count is exact
without waiting for load reports. place() may be repeated for a request: the answer is the same.

The router's state can be rebuilt: after a restart engines register again, and a gateway that sees
another session announces what it holds and places again what still waits.
"""

from dataclasses import dataclass

ROUTER_NAME = "moeray-router"
ROUTER_NAMESPACE = "moeray"
"""Ray's namespace for named actors; the router's name in it is the cluster's lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """An engine as it registers. Lengths and capacities are in tokens."""

    engine_id: str
    """New for each incarnation."""
    address: str
    """HOST:PORT of its EngineService."""
    model: str
    ranks: int
    context_length: int
    vocabulary_size: int
    max_sequence_tokens: int
    """Prompt and output of one request: what one rank's KV cache or the context can hold."""
    default_max_output_tokens: int
    max_running_per_rank: int
    block_tokens: int
    blocks_per_rank: int
    """Of the full-attention layers."""
    window_tokens: int
    """The sliding window: a hit needs the windowed blocks of the window_tokens - 1 positions before
    its end, and all full-attention blocks before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """What an engine reports every half second. Lists are by rank."""

    engine_id: str
    running: list[int]
    waiting: list[int]
    free_blocks: list[int]
    steps: int
    """Steps since start: stands still only when the engine is idle or stuck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvEvents:
    """What changed in one rank's prefix cache since its last events: hashes of
    ``vocabulary/block_hash.py``, by block group, removals first.

    ``sequence_number`` counts a rank's events from 1. A snapshot holds everything that is cached
    and replaces what was known; the router asks for one where it missed events.
    """

    rank: int
    sequence_number: int
    stored_full: list[bytes]
    removed_full: list[bytes]
    stored_window: list[bytes]
    removed_window: list[bytes]
    is_snapshot: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterStats:
    """The router at one moment; counts of requests but where a name says otherwise."""

    waiting: int
    waiting_prompt_tokens: int
    running: int
    """Placements held."""
    engines: int
    placed_total: int
    refused_total: dict[str, int]
    """By reason."""
    prompt_blocks_total: int
    """Whole blocks of placed prompts."""
    matched_blocks_total: int
    """Of these, blocks that the ledger knew on the rank that was chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRequest:
    request_id: str
    """Unique in its gateway; another for each try of a request."""
    model: str
    """Never empty: the gateway knows the only model served."""
    prompt_tokens: int
    max_output_tokens: int
    priority: int
    conversation_id: str
    deadline: float | None
    """Unix time; a request that is still waiting then is dropped."""
    avoid_engine_ids: tuple[str, ...] = ()
    """Engines that lost this request before, or were not reached: it is not placed there."""
    block_hashes: tuple[bytes, ...] = ()
    """Of the prompt's whole blocks, by the model's block_tokens."""


@dataclass(frozen=True, slots=True)
class Placement:
    request_id: str
    engine_id: str
    rank: int
    cached_tokens: int = 0
    """Prompt tokens that the ledger knows to be cached there; the engine's own word decides."""


@dataclass(frozen=True, slots=True)
class LivePlacement:
    """A placement that a gateway holds, as it announces it to a router that lost it."""

    placement: Placement
    tokens: int
    """Prompt and limit on output."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The request waits; its placement comes with a later GatewayUpdate."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """``reason`` is "queue_full", "model_not_found", "unavailable" or "deadline"."""

    request_id: str
    reason: str
    message: str
    retry_after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayUpdate:
    """Answer to a gateway's watch."""

    session: str
    """Another one when the router has lost what this gateway holds: announce it again."""
    version: int
    """Version of the engine list; pass it to the next watch. 0 asks for an answer at once."""
    engines: list[EngineInfo]
    outcomes: list[Placement | Refused]
    """Of requests that waited."""
