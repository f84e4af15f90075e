"""Sampling through the whole engine, on a random model: every option, alone and in company."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moeray.vocabulary.harmony_tokens import CHANNEL, END, FIRST_SPECIAL
from moeray.worker.communicator import SingleRank
from moeray.worker.config import EngineConfig
from moeray.worker.engine import Engine
from moeray.worker.model_config import ModelConfig
from moeray.worker.rank import Rank
from moeray.worker.ranks import LocalRanks
from moeray.worker.request import EngineRequest, FinishReason, RequestKey, SamplingParams, TokenRow
from tests.worker.harmony_rules import encode, rules

POISON = FIRST_SPECIAL + 500
"""A reserved token, whose embedding the poisoned engine makes NaN."""
WORDS = encode("The river runs past the old mill and the bridge beyond it. " * 8)
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "top_logprobs": 3},
    {"temperature": 0.8, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 0.0, "repetition_penalty": 1.3, "top_logprobs": 2},
    {"temperature": 1.0, "presence_penalty": 0.7, "frequency_penalty": 0.4, "top_logprobs": 0},
    {"temperature": 0.9, "top_k": 30, "logit_bias": ((WORDS[3], 4.0), (WORDS[5], -90.0))},
]


def asked(key: int, *, prompt: tuple[int, ...] = (), **options: Any) -> EngineRequest:
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": key} | options
    return EngineRequest(
        key=RequestKey(1, key),
        epoch=0,
        rank=0,
        prompt=prompt or WORDS[key : key + 20 + 5 * key],
        max_output_tokens=30,
        sampling=SamplingParams(**sampling),
        channel_rules=rules(thinking_budget=8),
    )


def make_engine(model: Path, *, poisoned: bool = False) -> Engine:
    config = EngineConfig(model=model, kv_tokens_per_rank=2048)
    rank = Rank.load(config, device=torch.device("cpu"), communicator=SingleRank())
    if poisoned:
        rank._model.embedding[POISON] = torch.nan
    return Engine.of(config, ModelConfig.read(model / "config.json"), LocalRanks(rank))


@pytest.fixture(scope="module")
def engine(random_model: Path) -> Iterator[Engine]:
    engine = make_engine(random_model)
    yield engine
    engine.close()


def run(engine: Engine, *requests: EngineRequest) -> dict[int, list[TokenRow]]:
    """The rows of each request that hold tokens or its end."""
    for request in requests:
        engine.submit(request)
    rows: dict[int, list[TokenRow]] = {request.key.key: [] for request in requests}
    while engine.busy:
        for row in engine.step():
            if row.token_ids or row.finish_reason is not None:
                rows[row.key.key].append(row._replace(cached_tokens=None))
    engine.scheduler.check_integrity()
    return rows


def answer(rows: list[TokenRow]) -> tuple[int, ...]:
    return tuple(token for row in rows for token in row.token_ids)


def test_every_option_gives_the_same_rows_alone_and_in_company(engine: Engine) -> None:
    requests = [asked(key, **options) for key, options in enumerate(OPTIONS, 1)]
    together = run(engine, *requests)
    for request in requests:
        key = request.key.key
        alone = run(engine, request)[key]
        assert answer(alone) == answer(together[key])
        # Logits differ in their last bits where matrices are multiplied in other shapes.
        for mine, theirs in zip(
            (row.logprobs for row in alone if row.logprobs),
            (row.logprobs for row in together[key] if row.logprobs),
            strict=True,
        ):
            assert (mine.answer_index, mine.top_token_ids) == (
                theirs.answer_index,
                theirs.top_token_ids,
            )
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-3)


def test_options_change_the_answer(engine: Engine) -> None:
    plain = run(engine, asked(1, temperature=0.0))[1]
    penalised = run(engine, asked(1, temperature=0.0, repetition_penalty=1.8))[1]
    favoured = run(engine, asked(1, temperature=0.0, logit_bias=((WORDS[3], 100.0),)))[1]
    assert answer(plain) != answer(penalised)
    text = [token for token in answer(favoured) if token < FIRST_SPECIAL]
    assert text.count(WORDS[3]) >= 20


def test_log_probabilities_are_of_sampled_tokens_in_bodies(engine: Engine) -> None:
    rows = run(engine, asked(2, temperature=0.0, top_logprobs=4))[2]
    tokens, seen = answer(rows), []
    for row in rows:
        if row.logprobs is None:
            # A choice inside a header: it has none.
            assert all(token >= FIRST_SPECIAL or tokens[0] for token in row.token_ids)
            continue
        index, logprob, top_ids, top_logprobs = row.logprobs
        seen.append(index)
        assert row.first_index <= index < row.first_index + len(row.token_ids)
        assert len(top_ids) == len(top_logprobs) == 4
        assert list(top_logprobs) == sorted(top_logprobs, reverse=True)
        assert logprob <= top_logprobs[0] <= 0
        sampled = tokens[index]
        if sampled in top_ids:
            assert logprob == top_logprobs[top_ids.index(sampled)]
    in_bodies = body_indices(tokens)
    # The end of a thinking budget is forced, and what is forced has none.
    assert set(seen) <= in_bodies
    assert all(tokens[index] == END for index in in_bodies - set(seen))
    assert len(seen) > 20


def body_indices(tokens: tuple[int, ...]) -> set[int]:
    """Of the tokens behind each <|message|>, enders included."""
    found, inside = set(), False
    (message,) = encode("<|message|>")
    for index, token in enumerate(tokens):
        if inside:
            found.add(index)
        inside = token == message or (inside and token < FIRST_SPECIAL)
    return found


def test_a_poisoned_row_fails_alone_and_harms_nobody_after_it(
    engine: Engine, random_model: Path
) -> None:
    healthy = [asked(key, **options) for key, options in enumerate(OPTIONS, 1)]
    expected = {key: answer(rows) for key, rows in run(engine, *healthy).items()}
    poisoned = make_engine(random_model, poisoned=True)
    bad = [asked(key, prompt=(*WORDS[:40], POISON, *WORDS[:key])) for key in range(50, 56)]
    rows = run(poisoned, *bad[:3], *healthy[:3], *bad[3:], *healthy[3:])
    for request in bad:
        last = rows[request.key.key][-1]
        assert last.finish_reason is FinishReason.FAILED
        assert "not finite" in last.failure
        # What is forced before the first draw, and nothing that was drawn.
        assert answer(rows[request.key.key]) == (CHANNEL,)
    assert {key: answer(rows[key]) for key in expected} == expected
    # The blocks that held NaN are used again.
    assert {key: answer(rows) for key, rows in run(poisoned, *healthy).items()} == expected
    poisoned.close()
