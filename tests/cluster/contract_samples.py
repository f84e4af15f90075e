"""Samples of the router's contracts for tests."""

from moeray.cluster.contracts import EngineInfo, EngineLoad, PlacementRequest


def engine(
    engine_id: str = "e1", *, ranks: int = 2, places: int = 1, model: str = "m"
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
    )
