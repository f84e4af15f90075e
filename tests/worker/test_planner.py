"""What a plan says of sampling: each request's own settings, and what it asks to shift."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moeray.vocabulary.harmony_tokens import END
from moeray.worker.engine import Engine
from moeray.worker.plan import Drawn, DrawnLogprobs, SampleRows
from moeray.worker.request import FinishReason, RequestKey, SamplingParams, TokenLogprobs, TokenRow
from tests.worker.engine_fakes import FakeAutomaton, FakeLegal, fake_engine, request

PLAIN = SamplingParams(temperature=1.0, top_p=0.9, top_k=3, seed=2**64 - 1)
BIASED = SamplingParams(
    temperature=0.5,
    top_p=1.0,
    top_k=0,
    seed=2,
    min_p=0.25,
    logit_bias=((4, 1.5), (9, -100.0)),
    top_logprobs=0,
)
PENALISED = SamplingParams(
    temperature=0.0,
    top_p=1.0,
    top_k=0,
    seed=3,
    repetition_penalty=1.25,
    presence_penalty=-0.5,
    frequency_penalty=2.0,
    top_logprobs=20,
)


def engine_with(*sampling: SamplingParams) -> Engine:
    engine = fake_engine()
    for key, params in enumerate(sampling, 1):
        asked = request(key, prompt=(6, END, 6, 7), max_output_tokens=20)
        engine.submit(replace(asked, sampling=params))
    return engine


def step(engine: Engine, *tokens: int, **changes: Any) -> tuple[SampleRows, list[TokenRow]]:
    """The samples of one step, in which these tokens are drawn, and its rows."""
    plan = engine.scheduler.plan()
    assert plan is not None
    samples = engine.planner.rank_plans(plan)[0].samples
    drawn = replace(Drawn.plain(np.array(tokens, np.int64)), **changes)
    return samples, engine.scheduler.commit(plan, [drawn])


def test_every_setting_reaches_its_row() -> None:
    samples, _ = step(engine_with(PLAIN, BIASED, PENALISED), 41, 41, 41)
    assert samples.temperature.tolist() == [1.0, 0.5, 0.0]
    assert samples.top_p.tolist() == [np.float32(0.9), 1.0, 1.0]
    assert samples.top_k.tolist() == [3, 0, 0]
    assert samples.min_p.tolist() == [0.0, 0.25, 0.0]
    assert samples.repetition_penalty.tolist() == [1.0, 1.0, 1.25]
    assert samples.presence_penalty.tolist() == [0.0, 0.0, -0.5]
    assert samples.frequency_penalty.tolist() == [0.0, 0.0, 2.0]
    assert samples.seed.tolist() == [2**64 - 1, 2, 3]
    assert samples.draw_position.tolist() == [4, 4, 4]
    assert samples.wants_logprobs.tolist() == [False, True, True]
    assert samples.top_logprobs.tolist() == [0, 0, 20]
    assert samples.bias_starts.tolist() == [0, 0, 2, 2]
    assert samples.bias_ids.tolist() == [4, 9] and samples.bias.tolist() == [1.5, -100.0]
    assert samples.penalised_starts.tolist() == [0, 0, 0, 2]
    assert samples.penalised_ids.tolist() == [6, 7]
    greedy = SampleRows.greedy(samples.sequences, samples.draw_position)
    for name in SampleRows.__slots__:
        array = getattr(samples, name)
        assert array.dtype == getattr(greedy, name).dtype
        assert array.flags.c_contiguous and array.flags.writeable


def test_the_output_is_counted_step_by_step() -> None:
    engine = engine_with(PENALISED)
    for token, expected in (
        (41, {6: 0, 7: 0}),
        (7, {6: 0, 7: 0, 41: 1}),
        (41, {6: 0, 7: 1, 41: 1}),
        (42, {6: 0, 7: 1, 41: 2}),
    ):
        samples, _ = step(engine, token)
        pairs = zip(samples.penalised_ids.tolist(), samples.output_counts.tolist(), strict=True)
        assert dict(pairs) == expected


def test_outside_bodies_nothing_is_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeAutomaton, "legal", lambda self: FakeLegal(False, (41,)))
    samples, _ = step(engine_with(BIASED, PENALISED), 41, 41)
    assert not len(samples.bias_ids) and not len(samples.penalised_ids)


def test_what_is_excluded_is_banned_whatever_its_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeAutomaton, "legal", lambda self: FakeLegal(True, (), (2, 9)))
    samples, _ = step(engine_with(PLAIN, BIASED), 41, 41)
    assert samples.bias_starts.tolist() == [0, 2, 5]
    assert samples.bias_ids.tolist() == [2, 9, 4, 2, 9]
    assert samples.bias.tolist() == [-np.inf, -np.inf, 1.5, -np.inf, -np.inf]


def test_a_row_that_cannot_be_sampled_fails_alone() -> None:
    engine = engine_with(PLAIN, PLAIN, PLAIN)
    _, rows = step(engine, 41, 41, 41, sound=np.array([True, False, True]))
    assert [row.token_ids for row in rows] == [(41,), (), (41,)]
    assert [row.finish_reason for row in rows] == [None, FinishReason.FAILED, None]
    assert rows[1].key == RequestKey(1, 2) and "not finite" in rows[1].failure
    engine.scheduler.check_integrity()
    _, rows = step(engine, 42, 42)
    assert [row.token_ids for row in rows] == [(42,), (42,)]


def test_log_probabilities_name_the_sampled_token_in_the_answer() -> None:
    engine = fake_engine()
    # Two tokens are forced before the first draw, and three behind a token that ends in 3.
    engine.submit(request(1, thinking_budget=0, max_output_tokens=20))
    engine.submit(request(2, max_output_tokens=20))
    logprobs = {
        "logprob_rows": np.array([0], np.int32),
        "logprobs": np.array([-0.5], np.float32),
        "top_starts": np.array([0, 2], np.int32),
        "top_ids": np.array([13, 8], np.int32),
        "top_logprobs": np.array([-0.5, -1.5], np.float32),
    }
    for index, tokens in ((2, (70, 71, 13, 80, 81, 82)), (6, (13, 80, 81, 82))):
        _, (first, second) = step(engine, 13, 41, **logprobs)
        assert first.token_ids == tokens
        assert first.logprobs == TokenLogprobs(index, -0.5, (13, 8), (-0.5, -1.5))
        assert second.logprobs is None


def test_drawn_log_probabilities_by_row() -> None:
    drawn = Drawn(
        tokens=np.array([1, 2, 3], np.int64),
        sound=np.ones(3, np.bool_),
        logprob_rows=np.array([0, 2], np.int32),
        logprobs=np.array([-1.0, -2.0], np.float32),
        top_starts=np.array([0, 0, 2], np.int32),
        top_ids=np.array([5, 6], np.int32),
        top_logprobs=np.array([-0.25, -4.0], np.float32),
    )
    assert drawn.logprobs_by_row() == {
        0: DrawnLogprobs(-1.0, (), ()),
        2: DrawnLogprobs(-2.0, (5, 6), (-0.25, -4.0)),
    }
