"""The engine on a random model: batching, chunks, preemption and ranks change no token."""

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moeray.worker.channels import ChannelAutomaton
from moeray.worker.communicator import SingleRank, host_store
from moeray.worker.config import EngineConfig
from moeray.worker.engine import Engine
from moeray.worker.model_config import ModelConfig
from moeray.worker.rank import Rank
from moeray.worker.ranks import LocalRanks, RankGroup, SocketRanks
from moeray.worker.request import BodyKind, EngineRequest, FinishReason, RequestKey, SamplingParams
from tests.worker.harmony_rules import encode, rules

RANK = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    import torch
    from moeray.worker.communicator import connect
    from moeray.worker.config import EngineConfig
    from moeray.worker.rank import Rank

    model, rank, path, secret, port = sys.argv[1:]
    device = torch.device("cpu")
    config = EngineConfig(model=Path(model), ranks=2, kv_tokens_per_rank=2048)
    communicator = connect(
        rank=int(rank), size=2, host="127.0.0.1", port=int(port), prefix="test",
        device=device, timeout_s=60,
    )
    loaded = Rank.load(config, device=device, communicator=communicator)
    loaded.serve(path=path, secret=bytes.fromhex(secret))
    """
)

Answer = tuple[tuple[int, ...], FinishReason]


@pytest.fixture(scope="module")
def model(random_model: Path) -> Path:
    return random_model


@pytest.fixture(scope="module")
def requests() -> list[EngineRequest]:
    """Short and long (past the window), with and without a budget, greedy and sampled."""
    return [
        _request(1, prompt_tokens=3, max_output_tokens=60, thinking_budget=None),
        _request(2, prompt_tokens=150, max_output_tokens=30, thinking_budget=0),
        _request(3, prompt_tokens=120, max_output_tokens=40, thinking_budget=8),
        _request(4, prompt_tokens=40, max_output_tokens=50, thinking_budget=5, temperature=1.5),
        _request(5, prompt_tokens=290, max_output_tokens=20, thinking_budget=3),
    ]


def _request(
    key: int,
    *,
    prompt_tokens: int,
    max_output_tokens: int,
    thinking_budget: int | None,
    temperature: float = 0.0,
) -> EngineRequest:
    words = encode("The river runs past the old mill and the bridge beyond it. " * 30)
    return EngineRequest(
        key=RequestKey(1, key),
        epoch=0,
        rank=0,
        prompt=words[key : key + prompt_tokens],
        max_output_tokens=max_output_tokens,
        sampling=SamplingParams(temperature=temperature, top_p=1.0, top_k=0, seed=key),
        channel_rules=rules(tools=["get_weather"] * (key == 3), thinking_budget=thinking_budget),
    )


def _engine(model: Path, **settings: int) -> Engine:
    config = EngineConfig(model=model, **{"kv_tokens_per_rank": 2048, **settings})  # type: ignore[arg-type]
    rank = Rank.load(config, device=torch.device("cpu"), communicator=SingleRank())
    return Engine.of(config, ModelConfig.read(model / "config.json"), LocalRanks(rank))


def _run(engine: Engine, joining: dict[int, EngineRequest]) -> dict[RequestKey, Answer]:
    """Runs to the end; each request joins at the step it is listed under."""
    joining = dict(joining)
    tokens: dict[RequestKey, tuple[int, ...]] = {}
    answers: dict[RequestKey, Answer] = {}
    for step in range(2000):
        if step in joining:
            engine.submit(joining.pop(step))
        for row in engine.step():
            tokens[row.key] = tokens.get(row.key, ()) + row.token_ids
            if row.finish_reason is not None:
                answers[row.key] = (tokens[row.key], row.finish_reason)
        engine.scheduler.check_integrity()
        if not joining and not engine.busy:
            return answers
    raise AssertionError("the engine does not come to an end")


@pytest.fixture(scope="module")
def alone(model: Path, requests: list[EngineRequest]) -> dict[RequestKey, Answer]:
    """Each request's answer when it has an engine to itself."""
    engine = _engine(model)
    answers: dict[RequestKey, Answer] = {}
    for request in requests:
        answers |= _run(engine, {0: request})
    return answers


def test_answers_are_legal_and_keep_the_budget_exactly(
    requests: list[EngineRequest], alone: dict[RequestKey, Answer]
) -> None:
    for request in requests:
        tokens, reason = alone[request.key]
        automaton = ChannelAutomaton(
            request.channel_rules, max_output_tokens=request.max_output_tokens
        )
        for token in tokens:
            automaton.accept(token)
        assert automaton.finish_reason is reason
        budget = request.channel_rules.thinking_budget
        thought = automaton.body_tokens(BodyKind.ANALYSIS)
        if not _declares_tools(request):
            # The random model ends no body: the budget is what ends the analysis.
            assert thought == budget if budget is not None else thought > 20
            assert automaton.body_tokens(BodyKind.FINAL) > 0
        elif budget is not None:
            assert thought <= budget


def _declares_tools(request: EngineRequest) -> bool:
    return any(h.kind is BodyKind.TOOL_CALL for h in request.channel_rules.headers)


def test_requests_that_join_and_leave_at_any_step_get_the_same_tokens(
    model: Path, requests: list[EngineRequest], alone: dict[RequestKey, Answer]
) -> None:
    joining = {3 * index: request for index, request in enumerate(requests)}
    assert _run(_engine(model), joining) == alone


def test_chunked_prompts_get_the_same_tokens(
    model: Path, requests: list[EngineRequest], alone: dict[RequestKey, Answer]
) -> None:
    engine = _engine(model, step_tokens_per_rank=13, max_running_per_rank=4)
    assert _run(engine, dict(enumerate(requests))) == alone


def test_preempted_requests_get_the_same_tokens(
    model: Path, requests: list[EngineRequest], alone: dict[RequestKey, Answer]
) -> None:
    # 320 positions for requests of 63 to 310 tokens.
    engine = _engine(model, kv_tokens_per_rank=320, block_tokens=4)
    rank = engine.scheduler.ranks[0]
    preempted = set()
    enqueue = rank.enqueue
    joining = dict(enumerate(requests))

    def watched(sequence):  # type: ignore[no-untyped-def]
        if sequence.delivered:
            preempted.add(sequence.request.key)
        enqueue(sequence)

    rank.enqueue = watched  # type: ignore[method-assign]
    assert _run(engine, joining) == alone
    assert preempted


def test_two_ranks_give_the_same_tokens_as_one(
    model: Path, requests: list[EngineRequest], alone: dict[RequestKey, Answer]
) -> None:
    store = host_store()
    group = SocketRanks(2, step_timeout_s=60, silence_s=60)
    arguments = [group.path, group.secret.hex(), str(store.port)]
    processes = [
        subprocess.Popen([sys.executable, "-c", RANK, str(model), str(rank), *arguments])
        for rank in (0, 1)
    ]
    try:
        group.accept(timeout_s=120)
        placed = [replace(request, rank=index % 2) for index, request in enumerate(requests)]
        answers = _run(_two_rank_engine(model, group), {4 * i: r for i, r in enumerate(placed)})
        assert answers == alone
        group.close()
        assert [process.wait(timeout=60) for process in processes] == [0, 0]
    finally:
        group.close()
        for process in processes:
            process.kill()
            process.wait()


def _two_rank_engine(model: Path, group: RankGroup) -> Engine:
    config = EngineConfig(model=model, ranks=2, kv_tokens_per_rank=2048)
    return Engine.of(config, ModelConfig.read(model / "config.json"), group)
