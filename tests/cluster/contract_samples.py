"""Samples of the router's contracts for tests."""

from collections.abc import Iterable, Sequence, Set

from moeray.cluster.contracts import EngineInfo, EngineLoad, KvEvents, PlacementRequest


def engine(
    engine_id: str = "e1",
    *,
    ranks: int = 2,
    places: int = 1,
    model: str = "m",
    window_tokens: int = 128,
) -> EngineInfo:
    return EngineInfo(
        engine_id=engine_id,
        address="127.0.0.1:1",
        model=model,
        ranks=ranks,
        context_length=1024,
        vocabulary_size=201088,
        max_sequence_tokens=1024,
        default_max_output_tokens=64,
        max_running_per_rank=places,
        block_tokens=16,
        blocks_per_rank=64,
        window_tokens=window_tokens,
    )


def one_rank_engine(*, places: int = 1) -> EngineInfo:
    return engine(ranks=1, places=places)


def load(engine_id: str = "e1") -> EngineLoad:
    return EngineLoad(engine_id=engine_id, running=[0], waiting=[0], free_blocks=[1], steps=0)


def request(
    request_id: str,
    *,
    tokens: int = 10,
    priority: int = 0,
    conversation: str = "",
    deadline: float | None = None,
    model: str = "m",
    avoid: tuple[str, ...] = (),
    hashes: tuple[bytes, ...] = (),
) -> PlacementRequest:
    return PlacementRequest(
        request_id=request_id,
        model=model,
        prompt_tokens=tokens,
        max_output_tokens=10,
        priority=priority,
        conversation_id=conversation,
        deadline=deadline,
        avoid_engine_ids=avoid,
        block_hashes=hashes,
    )


def chain(name: str, count: int) -> tuple[bytes, ...]:
    """Block hashes of a prompt; another name, another prompt."""
    return tuple(f"{name}:{index}".encode() for index in range(count))


def kv_events(
    sequence_number: int,
    *,
    rank: int = 0,
    full: Iterable[bytes] = (),
    window: Iterable[bytes] = (),
    gone_full: Iterable[bytes] = (),
    gone_window: Iterable[bytes] = (),
    is_snapshot: bool = False,
) -> KvEvents:
    return KvEvents(
        rank=rank,
        sequence_number=sequence_number,
        stored_full=list(full),
        removed_full=list(gone_full),
        stored_window=list(window),
        removed_window=list(gone_window),
        is_snapshot=is_snapshot,
    )


def longest_hit(
    full: Set[bytes],
    window: Set[bytes],
    hashes: Sequence[bytes],
    prompt_tokens: int,
    window_tokens: int,
    block_tokens: int = 16,
) -> int:
    """Blocks of the longest hit, by the rule's own words: each length, each position."""
    best = 0
    for blocks in range(len(hashes) + 1):
        end = blocks * block_tokens
        looked_back_on = range(max(0, end - (window_tokens - 1)), end)
        if (
            end <= prompt_tokens - 1
            and all(block_hash in full for block_hash in hashes[:blocks])
            and all(hashes[position // block_tokens] in window for position in looked_back_on)
        ):
            best = blocks
    return best
