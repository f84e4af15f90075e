"""The pools suffice for what a scheduler may ask of them."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from moeray.worker.config import EngineConfig
from moeray.worker.kv_plan import KvPlan


def _engine(**sizes: int) -> EngineConfig:
    return EngineConfig(model=Path("model"), **sizes)


def test_full_pool_is_the_configured_size() -> None:
    plan = KvPlan.of(_engine(kv_tokens_per_rank=4096, block_tokens=16), 131072, 128)
    assert plan.full_blocks == 257
    assert plan.window_blocks == 257, "never more than the full pool"


def test_full_pool_is_no_larger_than_all_contexts() -> None:
    plan = KvPlan.of(_engine(max_running_per_rank=2), 100, 128)
    assert plan.full_blocks == 1 + 2 * 7


def test_window_pool_is_far_smaller_for_long_contexts() -> None:
    plan = KvPlan.of(_engine(kv_tokens_per_rank=1_000_000), 131072, 128)
    assert plan.full_blocks == 62501
    # For 64 running sequences and two steps, and one for cached prefixes for eight full blocks.
    assert plan.window_blocks == 1 + 64 * 10 + 2 * 32 + 62500 // 8


def test_first_visible() -> None:
    plan = KvPlan.of(_engine(), 131072, 128)
    assert [plan.first_visible(p) for p in (0, 127, 128, 200)] == [0, 0, 1, 73]


@given(
    block=st.integers(1, 40),
    window=st.integers(1, 200),
    sequences=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 60)), min_size=1, max_size=8),
    slack=st.integers(0, 50),
)
def test_window_pool_holds_any_step_and_the_next(
    block: int, window: int, sequences: list[tuple[int, int]], slack: int
) -> None:
    """Sequences of (computed, rows): this step's rows and as many again, planned ahead."""
    rows = max(sum(rows for _, rows in sequences), len(sequences)) + slack
    engine = _engine(
        block_tokens=block,
        kv_tokens_per_rank=10**7,
        max_running_per_rank=len(sequences),
        step_tokens_per_rank=rows,
    )
    plan = KvPlan.of(engine, 10**6, window)
    needed = 0
    for computed, n in sequences:
        last = computed + 2 * n - 1
        needed += last // block - plan.first_visible(computed) // block + 1
    assert needed <= plan.window_blocks - 1
