"""What shifts a request's logits in bodies: its bias, and the tokens its penalties are about.

Plain data without torch, kept by the sequence and read by the planner: a plan holds no state, so
each step names the tokens anew. Only requests that ask for bias or penalties have one.
"""

from array import array

import numpy as np

from moeray.vocabulary.harmony_tokens import FIRST_SPECIAL
from moeray.worker.plan import Float32, Int32
from moeray.worker.request import SamplingParams


class TextAdjustments:
    """Bias as arrays, and the text tokens so far with how often each is in the output.

    Prompt tokens are counted only for the repetition penalty, the only one that is about them.
    """

    __slots__ = ("_counts", "_ids", "_place", "_prompt_tokens", "_taken", "bias", "bias_ids")

    def __init__(self, sampling: SamplingParams, *, prompt_tokens: int) -> None:
        repetition = sampling.repetition_penalty != 1
        self.bias_ids: Int32 = np.array([token for token, _ in sampling.logit_bias], np.int32)
        self.bias: Float32 = np.array([value for _, value in sampling.logit_bias], np.float32)
        self._prompt_tokens = prompt_tokens
        self._taken: int | None = None
        """How many of the sequence's tokens are counted; None where no penalty needs them."""
        if repetition or sampling.presence_penalty or sampling.frequency_penalty:
            self._taken = 0 if repetition else prompt_tokens
        self._ids = array("i")
        self._counts = array("i")
        self._place: dict[int, int] = {}

    @classmethod
    def of(cls, sampling: SamplingParams, *, prompt_tokens: int) -> "TextAdjustments | None":
        """None where nothing is asked for."""
        asked = (
            sampling.logit_bias
            or sampling.repetition_penalty != 1
            or sampling.presence_penalty
            or sampling.frequency_penalty
        )
        return cls(sampling, prompt_tokens=prompt_tokens) if asked else None

    def penalised(self, tokens: list[int]) -> tuple[Int32, Int32]:
        """The ids [n], each once, and their counts in the output [n].

        ``tokens`` are the sequence's, prompt and output: the same list as before or a longer one,
        of which only what is new is counted.
        """
        if self._taken is None:
            return _NO_IDS, _NO_IDS
        for token in tokens[self._taken : self._prompt_tokens]:
            if token < FIRST_SPECIAL:
                self._place_of(token)
        for token in tokens[max(self._taken, self._prompt_tokens) :]:
            if token < FIRST_SPECIAL:
                self._counts[self._place_of(token)] += 1
        self._taken = len(tokens)
        # Copies: an array cannot grow while NumPy looks into it.
        return np.array(self._ids, np.int32), np.array(self._counts, np.int32)

    def _place_of(self, token: int) -> int:
        place = self._place.get(token)
        if place is None:
            place = self._place[token] = len(self._ids)
            self._ids.append(token)
            self._counts.append(0)
        return place


_NO_IDS: Int32 = np.zeros(0, np.int32)
