"""The engine's thread: commands between steps, failure, drain and stop."""

import queue
from collections.abc import Iterator

import pytest

from moeray.worker.engine import Engine
from moeray.worker.engine_thread import EngineThread
from moeray.worker.request import EngineRequest, FinishReason, RequestKey, TokenRow
from tests.worker.engine_fakes import FakeRanks, expected_answer, fake_engine, request


class Client:
    """A thread with everything that comes out of it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.thread = EngineThread(engine)
        self.rows: queue.SimpleQueue[TokenRow] = queue.SimpleQueue()
        self.refusals: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.tokens: dict[RequestKey, tuple[int, ...]] = {}

    def start(self) -> None:
        self.thread.start(lambda rows: [self.rows.put(row) for row in rows] and None)

    def submit(self, wanted: EngineRequest) -> None:
        self.thread.submit(wanted, lambda _, refusal: self.refusals.put(refusal))

    def refusal(self) -> str:
        return self.refusals.get(timeout=30)

    def last_row(self, key: RequestKey) -> TokenRow:
        """Reads rows until the request's last one."""
        while True:
            row = self.rows.get(timeout=30)
            self.tokens[row.key] = self.tokens.get(row.key, ()) + row.token_ids
            if row.key == key and row.finish_reason is not None:
                return row


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client(fake_engine())
    client.start()
    yield client
    client.thread.stop()
    assert client.thread.join(30)
    assert isinstance(client.engine.ranks, FakeRanks)
    assert client.engine.ranks.closed


def test_a_request_is_answered_and_the_engine_sleeps_again(client: Client) -> None:
    for key in (1, 2):
        wanted = request(key, prompt=(5, 6, 7), max_output_tokens=20)
        client.submit(wanted)
        assert client.refusal() == ""
        client.last_row(wanted.key)
        assert client.tokens[wanted.key] == expected_answer(wanted)[0]


def test_a_refusal_says_why_and_disturbs_nobody(client: Client) -> None:
    client.submit(request(1, prompt=(5,), max_output_tokens=100))
    client.submit(request(2, max_output_tokens=100_000))
    assert client.refusal() == ""
    assert "100001 tokens" in client.refusal()
    client.last_row(RequestKey(1, 1))


def test_drain_finishes_what_is_here_and_takes_no_more() -> None:
    client = Client(fake_engine(max_running=1))
    wanted = [request(key, prompt=(5, 6), max_output_tokens=30) for key in (1, 2, 3)]
    # Commands queue up before the start, so their order is certain.
    for each in wanted:
        client.submit(each)
    client.thread.drain()
    client.submit(request(4))
    client.start()
    assert client.thread.join(30)
    assert [client.refusal() for _ in range(4)] == ["", "", "", "the engine is shutting down"]
    for each in wanted:
        client.last_row(each.key)
        assert client.tokens[each.key] == expected_answer(each)[0]
    assert client.thread.load.running == client.thread.load.waiting == (0,)


def test_stop_ends_requests_with_a_failed_row() -> None:
    client = Client(fake_engine())
    client.submit(request(1))
    client.thread.stop()
    client.submit(request(2))
    client.start()
    assert client.thread.join(30)
    assert [client.refusal() for _ in range(2)] == ["", "the engine is shutting down"]
    row = client.last_row(RequestKey(1, 1))
    assert (row.finish_reason, row.failure) == (FinishReason.FAILED, "the engine was stopped")


def test_a_lost_rank_fails_every_request_and_all_later_ones() -> None:
    engine = fake_engine(fail_at=3, max_running=2)
    client = Client(engine)
    keys = [RequestKey(1, key) for key in (1, 2, 3)]
    for key in keys:
        # A seed that neither stops nor forces early, so that all are here at step 3.
        client.submit(request(key.key, prompt=(5,), max_output_tokens=50, seed=4))
    client.start()
    rows = [client.last_row(key) for key in keys]
    assert {row.finish_reason for row in rows} == {FinishReason.FAILED}
    assert {row.failure for row in rows} == {"RankFailure: rank 0: killed by the test"}
    assert [row.first_index > 0 for row in rows] == [True, True, False]
    assert client.thread.failed == "RankFailure: rank 0: killed by the test"
    assert client.thread.alive
    for _ in keys:
        client.refusal()
    client.submit(request(9))
    assert client.refusal() == "the engine failed: RankFailure: rank 0: killed by the test"
    client.thread.stop()
    assert client.thread.join(30)
    engine.scheduler.check_integrity()
    assert client.thread.load.free_blocks == (64,)


def test_a_cancelled_request_gets_no_more_rows() -> None:
    client = Client(fake_engine())
    client.submit(request(1, max_output_tokens=500, seed=4))
    client.submit(request(2, max_output_tokens=5, seed=4))
    client.thread.cancel(RequestKey(1, 1))
    client.thread.cancel(RequestKey(7, 7))
    client.thread.drain()
    client.start()
    assert client.thread.join(30)
    client.last_row(RequestKey(1, 2))
    assert RequestKey(1, 1) not in client.tokens
