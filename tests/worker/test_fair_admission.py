"""Nobody starves: long prompts beside short ones, short beside long, low beside high priority."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from moeray.worker.engine import Engine
from moeray.worker.request import EngineRequest, RequestKey, TokenRow
from moeray.worker.sequence import PLACES_PER_PRIORITY
from tests.worker.engine_fakes import fake_engine, request

LONG, SHORT = RequestKey(1, 1), RequestKey(1, 2)


def _steps_until_token(engine: Engine, *keys: RequestKey) -> dict[RequestKey, int]:
    """The step at which each request gets its first token."""
    first: dict[RequestKey, int] = {}
    for number in range(1, 10_000):
        for row in engine.step():
            if row.token_ids:
                first.setdefault(row.key, number)
        if first.keys() >= set(keys):
            return first
    raise AssertionError("somebody starves")


def test_short_prompts_do_not_wait_for_a_long_one() -> None:
    engine = fake_engine(full_blocks=600, window_blocks=600, step_tokens=32, context_length=3000)
    engine.submit(request(1, prompt=range(2000), max_output_tokens=3))
    engine.step()
    engine.submit(request(2, prompt=range(8), max_output_tokens=3))
    first = _steps_until_token(engine, LONG, SHORT)
    assert first[SHORT] == 1
    # It takes 2000 / 32 steps alone.
    assert first[LONG] <= 2000 // 32 + 2


def test_a_long_prompt_gets_half_of_the_spare_rows_whoever_comes() -> None:
    engine = fake_engine(full_blocks=600, window_blocks=600, step_tokens=32, max_running=8)
    engine.submit(request(1, prompt=range(990), max_output_tokens=3))
    key, steps = 1, 0
    while True:
        for _ in range(4):
            key += 1
            engine.submit(request(key, prompt=[key % 50] * 20, max_output_tokens=3))
        steps += 1
        if any(row.key == LONG and row.token_ids for row in engine.step()):
            break
        engine.scheduler.check_integrity()
    # 32 rows, at most 7 of which are others' sure ones: 12 of the other 24, and its own.
    assert steps <= 990 // 13 + 1


def test_spare_rows_are_not_wasted() -> None:
    engine = fake_engine(full_blocks=100, window_blocks=100, step_tokens=32)
    engine.submit(request(1, prompt=range(64), max_output_tokens=3))
    assert _steps_until_token(engine, LONG) == {LONG: 2}


def test_a_low_priority_is_overtaken_a_bounded_number_of_times() -> None:
    engine = fake_engine(max_running=1)
    engine.submit(request(1, priority=-1, max_output_tokens=3))
    overtaking = 0
    for key in range(2, 10_000):
        engine.submit(request(key, priority=1, max_output_tokens=3))
        rows: list[TokenRow] = []
        # One request at a time comes to its end.
        while not any(row.finish_reason for row in rows):
            rows += engine.step()
        if any(row.key == LONG for row in rows):
            break
        overtaking += 1
    assert PLACES_PER_PRIORITY < overtaking <= 2 * PLACES_PER_PRIORITY


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    step_tokens=st.integers(6, 24),
    max_running=st.integers(1, 6),
    blocks=st.integers(20, 60),
)
def test_equals_are_started_in_order_of_arrival_and_all_come_to_an_end(
    seed: int, step_tokens: int, max_running: int, blocks: int
) -> None:
    random = Random(seed)
    engine = fake_engine(
        full_blocks=blocks,
        window_blocks=blocks,
        step_tokens=step_tokens,
        max_running=max_running,
    )
    started: list[int] = []
    waiting = [_random_request(key, random) for key in range(40)]
    submitted: list[int] = []
    steps = 0
    while waiting or engine.busy:
        while waiting and random.random() < 0.5:
            wanted = waiting.pop()
            engine.submit(wanted)
            submitted.append(wanted.key.key)
        opening = [row.key.key for row in engine.step() if row.cached_tokens is not None]
        started += sorted(opening, key=submitted.index)
        engine.scheduler.check_integrity()
        steps += 1
        # Each of 40 requests has at most 60 rows; preempted ones some of them twice.
        assert steps < 40 * 60 * 2, "the engine makes no progress"
    assert started == submitted


def _random_request(key: int, random: Random) -> EngineRequest:
    prompt = [random.randrange(50)] * random.choice((1, 4, 15, 40))
    return request(key, prompt=prompt, max_output_tokens=random.choice((3, 10, 20)))
