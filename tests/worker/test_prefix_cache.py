"""The rule of a hit, and what requests find of what others computed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeray.vocabulary.block_hash import block_hashes
from moeray.worker.block_pool import BlockPool
from moeray.worker.engine import Engine
from moeray.worker.plan import Drawn
from moeray.worker.prefix_cache import BlockHashes, longest_hit
from moeray.worker.request import EngineRequest, FinishReason, RequestKey, TokenRow
from tests.worker.engine_fakes import OPENING, expected_answer, fake_engine, request


def _pool(hashes: list[bytes], published: list[bool]) -> tuple[BlockPool, list[int]]:
    pool = BlockPool(len(hashes) + 2)
    blocks = pool.take(len(hashes))
    for block, block_hash, is_published in zip(blocks, hashes, published, strict=True):
        if is_published:
            pool.publish(block, block_hash)
    return pool, blocks


@given(data=st.data(), block_tokens=st.integers(1, 6), window_tokens=st.integers(1, 20))
def test_a_hit_is_the_longest_that_the_rule_allows(
    data: st.DataObject, block_tokens: int, window_tokens: int
) -> None:
    count = data.draw(st.integers(0, 12))
    hashes = [bytes([index]) for index in range(count)]
    # Mostly published, so that long hits are common.
    known = st.lists(st.sampled_from([True] * 5 + [False]), min_size=count, max_size=count)
    in_full, in_window = data.draw(known), data.draw(known)
    full, full_blocks = _pool(hashes, in_full)
    window, window_blocks = _pool(hashes, in_window)

    def allowed(blocks: int) -> bool:
        end = blocks * block_tokens
        seen = {p // block_tokens for p in range(max(0, end - window_tokens + 1), end)}
        return all(in_full[:blocks]) and all(in_window[block] for block in seen)

    best = max(blocks for blocks in range(count + 1) if allowed(blocks))
    hit = longest_hit(full, window, hashes, block_tokens=block_tokens, window_tokens=window_tokens)
    assert hit.full == full_blocks[:best]
    assert hit.window == window_blocks[hit.window_first : best]
    end = best * block_tokens
    assert hit.window_first == max(0, end - window_tokens + 1) // block_tokens


@given(
    tokens=st.lists(st.integers(0, 300), max_size=40),
    asked=st.lists(st.integers(0, 10), max_size=6),
    salt=st.text(max_size=3),
)
def test_hashes_are_those_that_gateways_make(
    tokens: list[int], asked: list[int], salt: str
) -> None:
    whole = block_hashes(tokens, 4, salt)
    hashes = BlockHashes(4, salt)
    for blocks in asked:
        blocks = min(blocks, len(whole))
        assert hashes.first(blocks, tokens)[:blocks] == whole[:blocks]


def _run(engine: Engine, *wanted: EngineRequest) -> dict[RequestKey, list[TokenRow]]:
    """Runs requests side by side; checks their answers and returns their rows."""
    rows: dict[RequestKey, list[TokenRow]] = {each.key: [] for each in wanted}
    for each in wanted:
        engine.submit(each)
    while engine.busy:
        for row in engine.step():
            rows[row.key].append(row)
        engine.scheduler.check_integrity()
    for each in wanted:
        tokens = tuple(token for row in rows[each.key] for token in row.token_ids)
        assert (tokens, rows[each.key][-1].finish_reason) == expected_answer(each)
        assert [row.cached_tokens is None for row in rows[each.key]] == [
            index > 0 for index in range(len(rows[each.key]))
        ]
    return rows


def _cached(engine: Engine, wanted: EngineRequest) -> int | None:
    return _run(engine, wanted)[wanted.key][0].cached_tokens


def test_a_prompt_is_found_up_to_its_last_whole_block_but_one_token() -> None:
    engine = fake_engine(block_tokens=4)
    prompt = list(range(1, 17))
    assert _cached(engine, request(1, prompt=prompt)) == 0
    # One row must be left to compute: of 16 tokens 12, of 17 all 16.
    assert _cached(engine, request(2, prompt=prompt)) == 12
    assert _cached(engine, request(3, prompt=[*prompt, 9])) == 16
    assert _cached(engine, request(4, prompt=[*prompt[:9], 50, 51, 52])) == 8
    assert _cached(engine, request(5, prompt=[50, *prompt[1:]])) == 0
    load = engine.load()
    assert (load.prefix_queries_tokens, load.prefix_hit_tokens) == (77, 36)
    assert load.used_blocks == (0,)


def test_an_answer_is_found_by_the_next_turn() -> None:
    engine = fake_engine(block_tokens=4, max_running=1)
    first = request(1, prompt=range(1, 11), max_output_tokens=40, seed=4)
    _run(engine, first)
    turn = [*first.prompt, *expected_answer(first)[0]]
    # The last token of an answer is never computed.
    assert _cached(engine, request(2, prompt=[*turn, 7, 7])) == (len(turn) - 1) // 4 * 4


def test_salts_keep_caches_apart() -> None:
    engine = fake_engine(block_tokens=4)
    prompt = range(1, 17)
    for key, (salt, cached) in enumerate([("", 0), ("a", 0), ("b", 0), ("a", 12), ("", 12)]):
        assert _cached(engine, request(key, prompt=prompt, cache_salt=salt)) == cached


def test_a_hit_ends_where_a_windowed_block_is_evicted() -> None:
    # Windowed blocks for two prompts' windows, full ones for all.
    engine = fake_engine(
        block_tokens=4, full_blocks=100, window_blocks=13, window_tokens=8, max_running=1
    )
    long = request(1, prompt=range(1, 42), max_output_tokens=3)
    assert _cached(engine, long) == 0
    assert _cached(engine, request(2, prompt=long.prompt, max_output_tokens=3)) == 40
    # Others push out the windowed blocks; all full ones are still there.
    for key in range(10, 14):
        _run(engine, request(key, prompt=range(key, key + 30)))
    blocks = engine.scheduler.ranks[0].blocks
    hashes = block_hashes(long.prompt, 4)
    assert all(blocks.full.find(block_hash) for block_hash in hashes)
    assert _cached(engine, request(3, prompt=long.prompt, max_output_tokens=3)) == 0


def test_the_tail_of_a_prompt_is_evicted_before_its_head() -> None:
    engine = fake_engine(block_tokens=4, full_blocks=14, window_blocks=14, window_tokens=8)
    _run(engine, request(1, prompt=range(1, 34), max_output_tokens=3))
    _run(engine, request(2, prompt=range(50, 70), max_output_tokens=3))
    cached = _cached(engine, request(3, prompt=range(1, 34), max_output_tokens=3))
    assert cached is not None
    assert 0 < cached < 32


def test_sharers_write_only_behind_what_they_share() -> None:
    engine = fake_engine(block_tokens=4, full_blocks=40, max_running=4)
    prompt = range(1, 33)
    _run(engine, request(1, prompt=prompt))
    wanted = [request(key, prompt=[*prompt, key], max_output_tokens=12) for key in (2, 3, 4)]
    for each in wanted:
        engine.submit(each)
    engine.step()
    tables = [s.blocks for s in engine.scheduler.ranks[0].running]
    assert len({tuple(table.full[:8]) for table in tables}) == 1
    # 8 shared, one each.
    assert engine.load().used_blocks == (8 + len(tables),)
    while engine.busy:
        engine.step()
        engine.scheduler.check_integrity()


def test_equal_prompts_at_once_are_each_computed_and_published_once() -> None:
    engine = fake_engine(block_tokens=4, step_tokens=64)
    rows = _run(engine, *[request(key, prompt=range(1, 17)) for key in (1, 2)])
    assert [row[0].cached_tokens for row in rows.values()] == [0, 0]
    assert _cached(engine, request(3, prompt=range(1, 17))) == 12


def test_the_first_row_tells_the_hit_also_without_a_token() -> None:
    engine = fake_engine(step_tokens=8)
    engine.submit(request(1, prompt=range(1, 21)))
    (row,) = engine.step()
    assert row == TokenRow(RequestKey(1, 1), 0, 0, (), None, "", 0)
    assert engine.step() == []
    (row,) = engine.step()
    assert len(row.token_ids) == 1
    assert row.cached_tokens is None


def test_forced_tokens_do_not_count_as_cached_prompt() -> None:
    engine = fake_engine(block_tokens=4)
    prompt = list(range(1, 12))
    _run(engine, request(1, prompt=[*prompt, *OPENING, 5]))
    # 12 tokens are found, of which one was forced.
    assert _cached(engine, request(2, prompt=prompt, thinking_budget=0)) == 11


def test_what_is_cached_counts_as_free() -> None:
    engine = fake_engine(block_tokens=4, full_blocks=11, window_blocks=11, max_running=2)
    _run(engine, request(1, prompt=range(1, 33), max_output_tokens=4))
    assert engine.load().free_blocks == (10,)
    assert engine.scheduler.ranks[0].blocks.full.find(block_hashes(range(1, 33), 4)[0])
    _run(engine, request(2, prompt=range(50, 86), max_output_tokens=4))
    assert engine.load().preemptions == 0


def test_unsound_rows_leave_nothing_to_find() -> None:
    engine = fake_engine(block_tokens=4, step_tokens=40)
    engine.submit(request(1, prompt=range(1, 18)))
    plan = engine.scheduler.plan()
    assert plan is not None
    (drawn,) = engine.ranks.execute(engine.planner.rank_plans(plan))
    (row,) = engine.scheduler.commit(plan, [Drawn.plain(drawn.tokens, ~drawn.sound)])
    assert row.finish_reason is FinishReason.FAILED
    engine.scheduler.check_integrity()
    assert _cached(engine, request(2, prompt=range(1, 18))) == 0


@pytest.mark.parametrize("block_tokens", [16, 64])
def test_the_longest_context_runs_in_chunks_and_from_cache(block_tokens: int) -> None:
    length = 131_072
    engine = fake_engine(
        block_tokens=block_tokens,
        full_blocks=1 + length // block_tokens,
        window_blocks=1200,
        window_tokens=128,
        max_running=4,
        step_tokens=8192,
        context_length=length,
    )
    prompt = [(7 * i) % 50 for i in range(length - 8)]
    long = request(1, prompt=prompt, max_output_tokens=8, seed=3)
    rows = _run(engine, long)[long.key]
    assert rows[0].token_ids == ()
    steps = engine.load().steps
    assert steps >= length // 8192
    again = request(2, prompt=prompt, max_output_tokens=8, seed=4)
    cached = _run(engine, again)[again.key][0].cached_tokens
    assert cached == (len(prompt) - 1) // block_tokens * block_tokens
    assert engine.load().steps - steps <= 8
    assert engine.load().used_blocks == (0,)
