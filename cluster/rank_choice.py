"""Which rank a request goes to: its longest cached prefix against what the ranks have to do.

Pure policy: no Ray, no clock of its own. A rank costs the prompt tokens that it would have to
compute plus its load (``ranks.py``), and the cheapest of a few candidates is taken: ranks that hold
the longest prefix, where these are few or full one that holds half of it, a quarter and so on, the
one where such a prompt was just placed, and the least loaded of all. So the cost of a choice does
not grow with the cluster, a hot prefix spreads as soon as its ranks have more to do than computing
it again would cost, and the ranks that hold it are taken in turn.
"""

from collections import OrderedDict
from collections.abc import Sequence
from math import inf

from moeray.cluster.contracts import PlacementRequest
from moeray.cluster.kv_ledger import (
    KvLedger,
    cached_blocks,
    chain_end,
    usable_blocks,
    windowed_end,
)
from moeray.cluster.ranks import Rank, RankOrder
from moeray.cluster.recent_prefixes import RecentPrefixes

CANDIDATES = 2
"""Holders of a prefix that are compared."""
LOOKED_AT = 8
"""Holders of one length that are looked at for that; full ones are no candidates."""


class RankChoice:
    """Chooses by the ledger, by recent placements, and by conversations where both know nothing."""

    def __init__(self, ledger: KvLedger, recent: RecentPrefixes, *, max_conversations: int) -> None:
        self._ledger = ledger
        self._recent = recent
        self._max_conversations = max_conversations
        self._conversations: OrderedDict[str, Rank] = OrderedDict()
        self._turns = 0

    def choose(
        self, order: RankOrder, request: PlacementRequest, now: float
    ) -> tuple[Rank, int] | None:
        """The rank and how many of the prompt's blocks the ledger knows there; None: no place."""
        idle = order.least_loaded(request.avoid_engine_ids)
        if idle is None:
            return None
        hashes = request.block_hashes
        limit = usable_blocks(hashes, request.prompt_tokens, idle.block_tokens)
        depth = self._ledger.depth(hashes, limit)
        blocks = self._holders(request, depth) if depth else {}
        if idle not in blocks:
            chain = chain_end(idle.full, hashes, depth)
            blocks[idle] = windowed_end(idle, hashes, chain)
        hoped = self._hope(request, depth, limit, blocks, now)
        if hoped is not None:
            blocks[hoped[0]] = hoped[1]
        return _cheapest(blocks, hashes[:depth], None if hoped is None else hoped[0])

    def note(self, request: PlacementRequest, rank: Rank, known: int, now: float) -> None:
        """The request was placed on the rank, which is known to have ``known`` of its blocks."""
        self._turns += 1
        rank.turn = self._turns
        self._recent.note(request.block_hashes, known, rank, now)
        if conversation := request.conversation_id:
            self._conversations[conversation] = rank
            self._conversations.move_to_end(conversation)
            if len(self._conversations) > self._max_conversations:
                self._conversations.popitem(last=False)

    def _holders(self, request: PlacementRequest, depth: int) -> dict[Rank, int]:
        """Candidates among the ranks that hold a part of the prompt, and how many blocks."""
        hashes, found = request.block_hashes, dict[Rank, int]()
        level = depth
        while level and len(found) < CANDIDATES:
            holders = self._ledger.holders(hashes[level - 1])
            looked_at = min(len(holders), LOOKED_AT)
            first = self._turns % len(holders) - len(holders)
            for index in range(first, first + looked_at):  # wraps: indices below 0 are the end's
                rank = holders[index]
                if rank not in found and _takes(rank, request):
                    end = level if level == depth else chain_end(rank.full, hashes, depth)
                    found[rank] = windowed_end(rank, hashes, end)
                    if len(found) == CANDIDATES:
                        break
            level //= 2
        return found

    def _hope(
        self,
        request: PlacementRequest,
        depth: int,
        limit: int,
        blocks: dict[Rank, int],
        now: float,
    ) -> tuple[Rank, int] | None:
        """A rank that should have more of the prompt than the ledger knows, and how many blocks."""
        recent = self._recent.find(request.block_hashes, depth, limit, now)
        if recent is not None and _takes(recent[0], request):
            return recent
        last = self._conversations.get(request.conversation_id)
        if last is not None and not any(blocks.values()) and _takes(last, request):
            return last, request.prompt_tokens // last.block_tokens
        return None

    def check_integrity(self) -> None:
        assert len(self._conversations) <= self._max_conversations
        self._recent.check_integrity()


def _takes(rank: Rank, request: PlacementRequest) -> bool:
    """Whether a rank that some table led to can have the request."""
    return (
        rank.load < inf
        and rank.model == request.model
        and rank.engine_id not in request.avoid_engine_ids
    )


def _cheapest(
    blocks: dict[Rank, int], hashes: Sequence[bytes], hoped: Rank | None
) -> tuple[Rank, int]:
    """The cheapest candidate by the ``blocks`` it should have, and how many the ledger knows.

    Some may be overrated, where a chain lost a block in its middle: so the winner is counted, and
    compared again with what it really has. ``hoped`` may have more than is known.
    """
    while True:
        best, lowest = None, inf
        for rank, count in blocks.items():
            cost = rank.load - count * rank.block_tokens
            if cost < lowest or (cost == lowest and best is not None and rank.turn < best.turn):
                best, lowest = rank, cost
        assert best is not None
        known = cached_blocks(best, hashes)
        if known >= blocks[best] or best is hoped:
            return best, known
        blocks[best] = known
