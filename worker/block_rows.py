"""Block tables as padded arrays, kept from one step to the next.

A decoding sequence takes a block only every ``block_tokens`` steps, so nearly all rows of a step's
tables are those of the step before. A table's version says whether its row is still right.
"""

from array import array
from itertools import compress
from operator import ne

import numpy as np

from moeray.worker.blocks import BlockTable
from moeray.worker.plan import Int32, Int64


class PaddedRows:
    """Rows of block ids, each padded with the scratch block."""

    def __init__(self) -> None:
        self._ids: Int32 = np.zeros((0, 0), np.int32)
        """[S, at least the longest row]"""
        self._lengths: Int32 = np.zeros(0, np.int32)
        """[S]"""

    def write(self, rows: Int64, tables: "list[array[int]]") -> None:
        """Makes each of these rows the table given for it."""
        lengths = list(map(len, tables))
        longest, width = max(lengths), self._ids.shape[1]
        if longest > width:
            # Room to grow, so that growing tables seldom have all rows copied.
            width = longest + longest // 4
            self._ids = np.pad(self._ids, ((0, 0), (0, width - self._ids.shape[1])))
        size = width * self._ids.itemsize
        # Joining bytes is several times faster than a NumPy assignment for each table.
        data = b"".join([table.tobytes().ljust(size, b"\0") for table in tables])
        self._ids[rows] = np.frombuffer(data, np.int32).reshape(len(rows), width)
        self._lengths[rows] = lengths

    def rearrange(self, rows: int, places: list[int], sources: list[int]) -> None:
        """Makes ``rows`` rows, of which ``places`` are the present ``sources`` and others empty."""
        lengths = np.zeros(rows, np.int32)
        lengths[places] = self._lengths[sources]
        ids = np.zeros((rows, lengths.max(initial=0)), np.int32)
        ids[places] = self._ids[sources, : ids.shape[1]]
        self._ids, self._lengths = ids, lengths

    def padded(self) -> Int32:
        """A copy: [S, longest row]."""
        return self._ids[:, : self._lengths.max(initial=0)].copy()


class BlockRows:
    """Both groups' tables of the sequences that one rank runs, row for row."""

    def __init__(self) -> None:
        self._tables: list[BlockTable] = []
        self._versions: list[int | None] = []
        """Of each table when its row was written; None for a row that was not."""
        self._full = PaddedRows()
        self._window = PaddedRows()
        self._window_first: Int32 = np.zeros(0, np.int32)

    def arrays(self, tables: list[BlockTable]) -> tuple[Int32, Int32, Int32]:
        """full_blocks, window_blocks and window_first of plan.RankPlan for these tables."""
        if tables != self._tables:
            self._rearrange(tables)
        versions = [table.version for table in tables]
        if versions != self._versions:
            differs = list(map(ne, versions, self._versions))
            rows, changed = np.flatnonzero(differs), list(compress(tables, differs))
            self._full.write(rows, [table.full for table in changed])
            self._window.write(rows, [table.window for table in changed])
            self._window_first[rows] = [table.window_first for table in changed]
            self._versions = [*versions]
        return self._full.padded(), self._window.padded(), self._window_first.copy()

    def _rearrange(self, tables: list[BlockTable]) -> None:
        """Makes the rows those of ``tables``: each that was here keeps what is known of it."""
        rows = {table: row for row, table in enumerate(self._tables)}
        places = [place for place, table in enumerate(tables) if table in rows]
        sources = [rows[tables[place]] for place in places]
        versions: list[int | None] = [None] * len(tables)
        for place, source in zip(places, sources, strict=True):
            versions[place] = self._versions[source]
        window_first = np.zeros(len(tables), np.int32)
        window_first[places] = self._window_first[sources]
        self._full.rearrange(len(tables), places, sources)
        self._window.rearrange(len(tables), places, sources)
        self._tables, self._versions = tables, versions
        self._window_first = window_first
