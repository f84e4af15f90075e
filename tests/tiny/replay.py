"""The rows that training draws from, on the device: a ring in which new rows replace the oldest."""

from collections.abc import Sequence

import numpy as np
import torch

from tests.tiny.batches import ROW_TOKENS, Block
from tests.tiny.model import Rows


class ReplayBuffer:
    """At most ``capacity`` rows; each draw takes any of them, equally likely."""

    def __init__(self, capacity: int, device: torch.device, seed: int) -> None:
        self._tokens = torch.zeros(capacity, ROW_TOKENS, dtype=torch.int16, device=device)
        self._marks = torch.zeros(capacity, ROW_TOKENS, dtype=torch.uint8, device=device)
        self._capacity, self._device = capacity, device
        self._generator = torch.Generator(device)
        self._generator.manual_seed(seed)
        self.added = 0
        self.drawn = 0
        self.samples = 0
        self.dropped = 0
        self.unstored = 0

    def add(self, blocks: Sequence[Block]) -> None:
        """Puts the blocks' rows over the oldest ones. Local ids fit int16: they are few.

        Many at once: each copy to the device waits for the steps that run there.
        """
        if not blocks:
            return
        tokens = np.concatenate([block.tokens for block in blocks]).view(np.int16)
        marks = np.concatenate([block.marks for block in blocks])
        places = torch.arange(self.added, self.added + len(tokens)) % self._capacity
        places = places.to(self._device)
        self._tokens[places] = torch.from_numpy(tokens).to(self._device)
        self._marks[places] = torch.from_numpy(marks).to(self._device)
        self.added += len(tokens)
        for block in blocks:
            self.samples += block.samples
            self.dropped += block.dropped
            self.unstored += block.unstored

    def draw(self, rows: int) -> Rows:
        """A batch of ``rows`` rows."""
        filled = min(self.added, self._capacity)
        places = torch.randint(filled, (rows,), generator=self._generator, device=self._device)
        self.drawn += rows
        marks = self._marks[places]
        return Rows(
            tokens=self._tokens[places].long(), documents=(marks >> 1).long(), learned=marks % 2 > 0
        )
