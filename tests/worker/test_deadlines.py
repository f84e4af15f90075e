"""Requests whose time has run out end, before anything is computed for them."""

import queue

import numpy as np

from moeray.worker.engine_thread import EngineThread
from moeray.worker.plan import Drawn
from moeray.worker.request import FinishReason, RequestKey, TokenRow
from tests.worker.engine_fakes import fake_engine, request


def test_waiting_and_running_requests_expire_on_time() -> None:
    engine = fake_engine(max_running=1)
    scheduler = engine.scheduler
    engine.submit(request(1, max_output_tokens=200, seed=4, deadline=10.0))
    engine.submit(request(2, deadline=5.0))
    engine.submit(request(3))
    rows = engine.step()
    delivered = sum(len(row.token_ids) for row in rows)
    assert scheduler.expire(4.9) == []
    assert scheduler.expire(5.0) == [TokenRow(RequestKey(1, 2), 0, 0, (), FinishReason.EXPIRED)]
    assert scheduler.expire(7.0) == []
    (row,) = scheduler.expire(11.0)
    assert (row.key.key, row.first_index) == (1, delivered)
    assert row.finish_reason is FinishReason.EXPIRED
    scheduler.check_integrity()
    assert engine.load().used_blocks == (0,)
    assert engine.load().waiting == (1,)


def test_a_request_that_expires_within_a_step_gets_one_row() -> None:
    engine = fake_engine()
    engine.submit(request(1, deadline=5.0))
    plan = engine.scheduler.plan()
    assert plan is not None
    (row,) = engine.scheduler.expire(6.0)
    assert row.finish_reason is FinishReason.EXPIRED
    assert engine.scheduler.commit(plan, [Drawn.plain(np.array([7]))]) == []


def test_a_key_that_is_used_again_has_its_own_deadline() -> None:
    engine = fake_engine()
    engine.submit(request(1, deadline=5.0))
    engine.cancel(RequestKey(1, 1))
    engine.submit(request(1, deadline=50.0))
    assert engine.scheduler.expire(10.0) == []
    assert len(engine.scheduler.expire(50.0)) == 1


def test_what_expired_reaches_no_rank_and_is_told_also_when_the_step_fails() -> None:
    now = 100.0
    engine = fake_engine(clock=lambda: now, fail_at=1)
    thread = EngineThread(engine)
    rows: queue.SimpleQueue[TokenRow] = queue.SimpleQueue()
    for key, deadline in ((1, 99.0), (2, 101.0)):
        thread.submit(request(key, deadline=deadline), lambda wanted, refusal: None)
    thread.start(lambda batch: [rows.put(row) for row in batch] and None)
    reasons = [(row.key.key, row.finish_reason) for row in (rows.get(timeout=30) for _ in "12")]
    assert reasons == [(1, FinishReason.EXPIRED), (2, FinishReason.FAILED)]
    thread.stop()
    assert thread.join(30)
    assert engine.load().prefix_queries_tokens == 0


def test_an_engine_with_expired_requests_alone_runs_no_step() -> None:
    engine = fake_engine(clock=lambda: 100.0)
    engine.submit(request(1, deadline=99.0))
    assert len(engine.expire()) == 1
    assert engine.step() == []
    assert engine.load().steps == 0
