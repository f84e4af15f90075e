"""How many KV blocks one rank has.

Torch-free: the scheduler plans with it and the cache allocates by it.

Full-attention and windowed layers have separate pools. Block 0 of each pool is scratch: padded rows
write there, unused entries of a block table point there, nobody reads it, and it is never handed
out.
"""

from dataclasses import dataclass
from typing import Final

from moeray.worker.config import EngineConfig

_CACHED_WINDOW_SHARE: Final = 8
"""The windowed pool keeps one block for cached prefixes for this many of the full pool: a full
block whose windowed neighbours are evicted is of no use to a hit that ends there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvPlan:
    """Sizes of one rank's two block pools; both counts include the scratch block."""

    block_tokens: int
    full_blocks: int
    """Blocks of each full-attention layer."""
    window_blocks: int
    """Blocks of each windowed layer."""
    window_tokens: int
    """The sliding window: a row sees itself and the window_tokens - 1 positions before it."""

    @classmethod
    def of(cls, engine_config: EngineConfig, context_length: int, sliding_window: int) -> "KvPlan":
        """Sizes for one rank.

        A step of n rows of one sequence touches window - 1 + n positions of a windowed layer. They
        lie in at most ceil(window / block) + 2 blocks and one more for every block of n. The rows
        of a step are counted twice, so that a step can be planned while the one before still runs.
        Beside that there is room for windowed blocks of cached prefixes.
        """
        block = engine_config.block_tokens
        running = engine_config.max_running_per_rank
        full = min(
            engine_config.kv_tokens_per_rank // block,
            running * _blocks(context_length, block),
        )
        window = running * (_blocks(sliding_window, block) + 2)
        window += 2 * _blocks(engine_config.step_tokens_per_rank, block)
        window += full // _CACHED_WINDOW_SHARE
        return cls(
            block_tokens=block,
            full_blocks=1 + full,
            window_blocks=1 + min(full, window),
            window_tokens=sliding_window,
        )

    def first_visible(self, position: int) -> int:
        """The first position that a row at ``position`` sees in a windowed layer."""
        return max(0, position - self.window_tokens + 1)


def _blocks(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)
