"""What one rank runs in the next step, and which of its sequences hold KV blocks.

The rules, for each step:

- Every running sequence is sure of one row, which is all that a decoding one needs. The others go
  round in order of admission, running sequences first and newly admitted ones behind them: each
  takes at most half of what is spare, and what is left in the end goes round once more. So a long
  prompt gets at least half of the spare rows from its first chunk on, and short ones behind it
  still come through at once.
- Waiting sequences are admitted in the order of ``Sequence.queue_order``, and the first that does
  not fit holds back all behind it. One step of priority is worth PLACES_PER_PRIORITY places in the
  queue, no more: whoever waits is overtaken by so many later ones, and then it is its turn.
- A sequence is admitted when the blocks for all its tokens are free, beside those that running
  ones still need for theirs, and one more for each to grow into. What is cached counts as free,
  but for what the sequence itself found there.
- Where growth still empties a pool, the sequence admitted last gives back its blocks and waits
  again. Its tokens are kept and computed anew, but for what is still cached; draws are keyed by
  position, so its answer is the same.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import chain, compress
from typing import Final

from moeray.worker.blocks import KvBlocks
from moeray.worker.config import EngineConfig
from moeray.worker.kv_plan import KvPlan
from moeray.worker.sequence import Chunks, Sequence, SequenceState

_RUNNING: Final = SequenceState.RUNNING
"""Looking up an Enum's member is slow, and a step does it for every sequence."""


class RankScheduler:
    """The sequences and the blocks of one rank."""

    def __init__(self, config: EngineConfig, kv: KvPlan) -> None:
        self.blocks = KvBlocks(kv)
        self.waiting: list[Sequence] = []
        """In queue order; they hold no blocks."""
        self.running: list[Sequence] = []
        """By admission."""
        self.waiting_tokens = 0
        """Of all waiting sequences, cached or not."""
        self.preemptions = 0
        self.prefix_queries_tokens = 0
        """Prompt tokens of requests that were started."""
        self.prefix_hit_tokens = 0
        """Of these, tokens that were found in the cache."""
        self.computed_tokens = 0
        """Rows that were run."""
        self._max_running = config.max_running_per_rank
        self._step_rows = config.step_tokens_per_rank
        self._opening: list[Sequence] = []
        """Admitted for the first time in the step that was planned last."""
        self._spare = 0
        """Rows of the step that is planned, beside a sure one for each running sequence."""
        self._pledged = 0
        """Blocks that those with rows in this step still need for all their tokens."""

    def enqueue(self, sequence: Sequence) -> None:
        sequence.state = SequenceState.WAITING
        insort(self.waiting, sequence, key=_queue_order)
        self.waiting_tokens += len(sequence.tokens)

    def remove(self, sequence: Sequence) -> None:
        """Ends a sequence, waiting or running, and frees its blocks."""
        if sequence.state is SequenceState.WAITING:
            del self.waiting[bisect_left(self.waiting, sequence.queue_order, key=_queue_order)]
            self.waiting_tokens -= len(sequence.tokens)
        else:
            self.running.remove(sequence)
        self.blocks.clear(sequence.blocks)
        sequence.state = SequenceState.FINISHED

    def plan(self) -> Chunks:
        """The chunks of one step, in order of admission; their sequences hold the blocks."""
        rows: list[int] = []
        sampled: list[bool] = []
        self._opening.clear()
        self._spare, self._pledged = self._step_rows - len(self.running), 0
        # Preemption shortens ``running`` at its end on the way.
        for sequence in chain(self.running, iter(self._admit, None)):
            start, length, table = sequence.computed, len(sequence.tokens), sequence.blocks
            if length == start + 1 and (length <= table.end or self.blocks.add_block(table)):
                # What decodes, nearly all, needs no more than this.
                rows.append(1)
                sampled.append(True)
            elif count := self._take_rows(sequence, len(self.running) - len(rows) - 1):
                rows.append(count)
                sampled.append(start + count == length)
            else:
                break
        chunks = Chunks(self.running.copy(), [s.computed for s in self.running], rows, sampled)
        if self._spare and not all(sampled):
            self._use_up(chunks)
        return chunks

    def advance(self, chunks: Chunks) -> Iterator[Sequence]:
        """Marks the chunks as computed; returns the sequences of the sampled ones."""
        self._count_openings()
        blocks = self.blocks
        for sequence, start, rows in zip(chunks.sequences, chunks.starts, chunks.rows, strict=True):
            if sequence.state is _RUNNING:
                computed = sequence.computed = start + rows
                if computed >= sequence.blocks.due:
                    hashes = sequence.block_hashes(computed // blocks.block_tokens)
                    blocks.settle(sequence.blocks, hashes, computed)
        self.computed_tokens += sum(chunks.rows)
        return compress(chunks.sequences, chunks.sampled)

    def unopened(self) -> list[Sequence]:
        """Sequences whose first rows were computed by the last step, and no row has told."""
        return [
            s
            for s in self._opening
            if s.cached_tokens is not None and s.state is SequenceState.RUNNING
        ]

    def check_integrity(self) -> None:
        self.blocks.check_integrity([sequence.blocks for sequence in self.running])
        if any(s.state is not _RUNNING for s in self.running):
            raise RuntimeError("a sequence runs that is not in state running")
        if any(s.state is not SequenceState.WAITING or s.blocks.full for s in self.waiting):
            raise RuntimeError("a sequence waits that is not in state waiting, or holds blocks")
        if self.waiting_tokens != sum(len(s.tokens) for s in self.waiting):
            raise RuntimeError("the waiting tokens are counted wrong")
        if len(self.running) > self._max_running:
            raise RuntimeError(f"{len(self.running)} sequences run")

    def _count_openings(self) -> None:
        for sequence in self._opening:
            if sequence.state is SequenceState.RUNNING:
                sequence.started = True
                self.prefix_queries_tokens += len(sequence.request.prompt)
                self.prefix_hit_tokens += sequence.cached_tokens or 0

    def _admit(self) -> Sequence | None:
        """Moves the first waiting sequence to the end of running, if a row is spare for it and it
        fits beside the blocks pledged to those that run.
        """
        if not self._spare or not self.waiting or len(self.running) >= self._max_running:
            return None
        blocks, sequence = self.blocks, self.waiting[0]
        tokens = len(sequence.tokens)
        # One row is left to compute, whose hidden state the next token is drawn from.
        hashes = sequence.block_hashes((tokens - 1) // blocks.block_tokens)
        hit = blocks.find(hashes)
        full, window = blocks.cost(tokens, hit)
        if full + self._pledged + len(self.running) > blocks.full.free_blocks:
            return None
        if window + len(self.running) > blocks.window.free_blocks:
            return None
        del self.waiting[0]
        self.waiting_tokens -= tokens
        self.running.append(sequence)
        self._spare -= 1
        sequence.state = SequenceState.RUNNING
        blocks.adopt(sequence.blocks, hit)
        sequence.computed = len(hit.full) * blocks.block_tokens
        if not sequence.started:
            sequence.cached_tokens = min(sequence.computed, len(sequence.request.prompt))
            self._opening.append(sequence)
        return sequence

    def _take_rows(self, sequence: Sequence, behind: int) -> int:
        """Rows for a sequence in its turn, with the blocks for them; ``behind`` run after it.

        It is 0 where the sequence itself is preempted.
        """
        start, length = sequence.computed, len(sequence.tokens)
        # Its own sure row counts as spare here.
        rows = min(length - start, 1 + (self._spare + 1) // 2)
        if start + rows > sequence.blocks.end:
            rows = self._grow(sequence, rows, behind)
            if rows == 0:
                return 0
        self._spare -= rows - 1
        if start + rows < length:
            self._pledged += self.blocks.missing(sequence.blocks, length)
        return rows

    def _grow(self, sequence: Sequence, wanted: int, behind: int) -> int:
        """Takes the blocks for the sequence's next ``wanted`` rows, or fewer; returns how many.

        Leaves a block for each of the ``behind`` sequences that follow, where it can. Preempts
        where there is none: the last may be the sequence itself, and then it is 0.
        """
        blocks, table, start = self.blocks, sequence.blocks, sequence.computed
        while (rows := min(wanted, blocks.reach(table, leaving=behind) - start)) <= 0:
            victim = self.running[-1]
            self._preempt()
            if victim is sequence:
                return 0
        blocks.grow(table, start + rows)
        return rows

    def _preempt(self) -> None:
        """The sequence admitted last waits again."""
        victim = self.running.pop()
        self._spare += 1
        self.preemptions += 1
        self.blocks.clear(victim.blocks)
        victim.computed = 0
        if not victim.started:
            victim.cached_tokens = None
            self._opening.remove(victim)
        self.enqueue(victim)

    def _use_up(self, chunks: Chunks) -> None:
        """Hands the spare rows to the chunks that end before their sequence does."""
        blocks = self.blocks
        for index, (sequence, start, rows, sampled) in enumerate(chunks):
            if sampled:
                continue
            length = len(sequence.tokens)
            more = min(self._spare, length - start - rows)
            more = min(more, blocks.reach(sequence.blocks) - start - rows)
            blocks.grow(sequence.blocks, start + rows + more)
            chunks.rows[index] = rows + more
            chunks.sampled[index] = start + rows + more == length
            self._spare -= more


def _queue_order(sequence: Sequence) -> tuple[int, int]:
    return sequence.queue_order
