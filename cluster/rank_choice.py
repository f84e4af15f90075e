"""Which rank a request goes to: its longest cached prefix against what the ranks have to do.

Pure policy: no Ray, no clock of its own. A rank costs the prompt tokens that it would have to
compute plus its load (``ranks.py``), and the cheapest of a few candidates is taken: ranks that hold
the longest prefix, where these are few or full one that holds half of it, a quarter and so on, the
one where such a prompt was just placed, and the least loaded of all. So the cost of a choice does
not grow with the cluster, a hot prefix spreads as soon as its ranks have more to do than computing
it again would cost, and the ranks that hold it are taken in turn.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from math import inf

from moeray.cluster.contracts import PlacementRequest
from moeray.cluster.kv_ledger import (
    FEW,
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
        depth, holders, own = self._ledger.deepest(hashes, limit)
        recent = self._recent.find(hashes, depth, limit, now)
        if recent is not None and not _takes(recent[0], request):
            recent = None
        if recent is None:
            clear = clearly_cheapest(self._ledger, request, idle, depth, holders, own)
            if clear is not None and (clear[1] or not request.conversation_id):
                return clear
        return self._compared(request, idle, depth, recent)

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

    def _compared(
        self, request: PlacementRequest, idle: Rank, depth: int, recent: tuple[Rank, int] | None
    ) -> tuple[Rank, int]:
        """The cheapest of a few candidates, and its blocks."""
        hashes = request.block_hashes
        blocks = self._holders(request, depth)
        if idle not in blocks:
            chain = chain_end(idle.full, hashes, depth)
            blocks[idle] = windowed_end(idle, hashes, chain)
        hoped = recent
        if recent is None and not any(blocks.values()):
            hoped = self._conversed(request)
        if hoped is not None:
            blocks[hoped[0]] = hoped[1]
        return _cheapest(blocks, hashes[:depth], None if hoped is None else hoped[0])

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

    def _conversed(self, request: PlacementRequest) -> tuple[Rank, int] | None:
        """Where the conversation was last: what is known nowhere should be there."""
        last = self._conversations.get(request.conversation_id)
        if last is None or not _takes(last, request):
            return None
        return last, request.prompt_tokens // last.block_tokens

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


def clearly_cheapest(
    ledger: KvLedger,
    request: PlacementRequest,
    idle: Rank,
    depth: int,
    holders: tuple[Rank, ...],
    own: int,
) -> tuple[Rank, int] | None:
    """The cheapest rank of all and its blocks, where few look-ups prove it; else None.

    ``idle`` has the least load, nobody more than ``depth`` blocks, and nobody but ``holders`` as
    many as ``own``. So an idle rank with ``depth`` blocks is the cheapest; and of those that are no
    holders none is cheaper than a rank with the idle one's load and ``own - 1`` blocks.
    """
    if not depth:
        return idle, 0
    hashes = request.block_hashes
    if hashes[depth - 1] in idle.full:
        return _if_whole(idle, hashes, depth)
    if len(holders) > FEW:
        return None
    best = _least_loaded(holders, request)
    more_load = inf if best is None else best.load - idle.load
    if more_load >= (depth - own + 1) * idle.block_tokens:
        end = chain_end(idle.full, hashes, own - 1)
        if end < own - 1:
            if ledger.holders(hashes[end]) != holders:
                return None
            own = end + 1
    if best is not None and more_load < (depth - own + 1) * idle.block_tokens:
        return _if_whole(best, hashes, depth)
    return _if_whole(idle, hashes, own - 1)


def _least_loaded(ranks: Iterable[Rank], request: PlacementRequest) -> Rank | None:
    """Of a few ranks that some table led to; None where none can have the request."""
    best = None
    for rank in ranks:
        if _takes(rank, request) and (
            best is None or (rank.load, rank.turn) < (best.load, best.turn)
        ):
            best = rank
    return best


def _if_whole(rank: Rank, hashes: Sequence[bytes], blocks: int) -> tuple[Rank, int] | None:
    """The rank if it has the first ``blocks`` blocks, as a hit."""
    return (rank, blocks) if cached_blocks(rank, hashes[:blocks]) == blocks else None


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
