"""What is measured of a kernel: an op at a size, its physical floor, and a peer beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.kernels.timing import Call, microseconds, side_by_side

BANDWIDTH = 4.3e12
"""Bytes a second that one H200 reads and writes."""
FLOPS = 750e12
"""bfloat16 operations a second of a large product on one H200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One row of the table. ``prepare`` makes the calls only when their turn comes, because the
    copies of all benchmarks together would not fit.
    """

    op: str
    model: str
    rows: int
    bytes: int
    """That must move at least, once each, for one call."""
    flops: int
    prepare: Callable[[], Sequence[Call]]
    """Calls of the op on copies of its inputs; see ``timing.copies_for``."""
    peer: str = ""
    prepare_peer: Callable[[], Sequence[Call]] | None = None
    note: str = ""
    """As of distinct experts."""

    @property
    def floor_us(self) -> float:
        """The least time that the hardware allows, in microseconds."""
        return max(self.bytes / BANDWIDTH, self.flops / FLOPS) * 1e6

    def measure(self) -> "Figure":
        ours = self.prepare()
        theirs = self.prepare_peer() if self.prepare_peer else None
        own, peer = side_by_side(ours, theirs) if theirs else (microseconds(ours), None)
        return Figure(
            op=self.op,
            model=self.model,
            rows=self.rows,
            us=own,
            floor_us=self.floor_us,
            fraction=self.floor_us / own,
            peer=self.peer if theirs else None,
            peer_us=peer,
            note=self.note,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured row; times in microseconds."""

    op: str
    model: str
    rows: int
    us: float
    floor_us: float
    fraction: float
    peer: str | None
    peer_us: float | None
    note: str
