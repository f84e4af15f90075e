"""What ``moeray bench`` asks for, and when: lengths, efforts, prefixes, arrivals.

Everything is drawn from one seed, and request i from the seed and i alone: the same seed gives the
same requests in the same order, however the run goes.
"""

import math
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Final, Self

from moeray.cluster.bench.text import passage
from moeray.cluster.client import EFFORTS
from moeray.v1 import inference_pb2 as pb

MIN_OUTPUT_TOKENS: Final = 16
"""The least max_output_tokens that a server takes."""
CURRENT_DATE: Final = "2026-01-01"
"""Stands in every prompt, so that tomorrow's prompts are today's."""
_CALIBRATION_WORDS: Final = (100, 1100)


@dataclass(frozen=True, slots=True)
class FixedLength:
    tokens: int

    def draw(self, random: Random) -> int:
        return self.tokens


@dataclass(frozen=True, slots=True)
class UniformLength:
    """Whole numbers from ``least`` to ``most``, both included."""

    least: int
    most: int

    def draw(self, random: Random) -> int:
        return random.randint(self.least, self.most)


@dataclass(frozen=True, slots=True)
class LognormalLength:
    """``mean`` is the distribution's own mean, ``sigma`` the deviation of the logarithm."""

    mean: float
    sigma: float

    def draw(self, random: Random) -> int:
        mu = math.log(self.mean) - self.sigma**2 / 2
        return max(1, round(random.lognormvariate(mu, self.sigma)))


Lengths = FixedLength | UniformLength | LognormalLength


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """Each of ``concurrency`` clients asks again when its answer has ended."""

    concurrency: int


@dataclass(frozen=True, slots=True)
class Poisson:
    """``rate`` requests a second on average, started when due, whatever still runs."""

    rate: float

    def arrivals(self, seed: int) -> Iterator[float]:
        """Seconds from the start, without end."""
        random, moment = Random(f"{seed}/arrivals"), 0.0
        while True:
            moment += random.expovariate(self.rate)
            yield moment


@dataclass(frozen=True, slots=True)
class Ramp:
    """A Poisson process whose rate goes from ``first`` to ``last`` requests a second, linearly."""

    first: float
    last: float
    seconds: float

    def arrivals(self, seed: int) -> Iterator[float]:
        """Seconds from the start, until the ramp ends.

        Arrivals of a unit-rate process are mapped through the inverse of the expected count
        N(t) = first t + (last - first) t^2 / (2 seconds) (time-change of a Poisson process).
        """
        random, count = Random(f"{seed}/arrivals"), 0.0
        slope = (self.last - self.first) / self.seconds
        while True:
            count += random.expovariate(1.0)
            root = self.first**2 + 2 * slope * count
            if root < 0:
                return
            # Not (-first + sqrt) / slope: that has no value for a flat ramp.
            moment = 2 * count / (self.first + math.sqrt(root))
            if moment > self.seconds:
                return
            yield moment


Load = ClosedLoop | Poisson | Ramp


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What requests look like. Lengths are in tokens."""

    seed: int
    prompt_tokens: Lengths
    """The rendered prompt, without the shared prefix."""
    output_tokens: Lengths
    efforts: dict[str, float]
    """Weight of each effort."""
    prefix_tokens: int
    prefixes: int
    """How many shared system prefixes there are; they come on top of the prompt."""
    temperature: float | None
    natural: bool
    """Let the model end its answers: output_tokens is only their limit."""
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How the server counts our text: tokens = overhead + tokens_per_word * words."""

    overhead: float
    """Of a prompt with a user message."""
    prefix_overhead: float
    """What a system message adds, beyond its words."""
    tokens_per_word: float

    @classmethod
    async def measure(
        cls, shape: Shape, count: Callable[[pb.GenerateRequest], Awaitable[int]]
    ) -> Self:
        """Ask the server to count a short prompt, a long one, and one with a prefix."""
        random = Random(f"{shape.seed}/calibration")
        few, many = _CALIBRATION_WORDS
        short, long = (_request(shape, passage(random, words)) for words in (few, many))
        with_prefix = _request(shape, short.messages[0].content)
        _add_prefix(with_prefix, long.messages[0].content)
        short_tokens, long_tokens = await count(short), await count(long)
        tokens_per_word = (long_tokens - short_tokens) / (many - few)
        prefix_tokens = await count(with_prefix) - short_tokens
        return cls(
            overhead=short_tokens - few * tokens_per_word,
            prefix_overhead=prefix_tokens - many * tokens_per_word,
            tokens_per_word=tokens_per_word,
        )

    def prompt_words(self, tokens: int) -> int:
        """Words of a user message whose prompt has about this many tokens."""
        return max(1, round((tokens - self.overhead) / self.tokens_per_word))

    def prefix_words(self, tokens: int) -> int:
        """Words of a system message that adds about this many tokens."""
        return max(1, round((tokens - self.prefix_overhead) / self.tokens_per_word))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRequest:
    index: int
    effort: str
    prompt_tokens: int
    """What was aimed at, prefix included."""
    message: pb.GenerateRequest


class Workload:
    """Makes the requests of one run. ``phase`` tells its draws from those of another phase."""

    def __init__(self, shape: Shape, calibration: Calibration, phase: str) -> None:
        self._shape = shape
        self._calibration = calibration
        self._phase = phase
        self._prefixes = [
            passage(
                Random(f"{shape.seed}/prefix/{number}"),
                calibration.prefix_words(shape.prefix_tokens),
            )
            for number in range(shape.prefixes if shape.prefix_tokens else 0)
        ]

    def request(self, index: int) -> PlannedRequest:
        """Request ``index`` of this phase."""
        shape = self._shape
        random = Random(f"{shape.seed}/{self._phase}/{index}")
        prompt_tokens = shape.prompt_tokens.draw(random)
        output_tokens = max(MIN_OUTPUT_TOKENS, shape.output_tokens.draw(random))
        effort = random.choices([*shape.efforts], [*shape.efforts.values()])[0]
        text = passage(random, self._calibration.prompt_words(prompt_tokens))
        message = _request(shape, text)
        message.reasoning_effort = EFFORTS[effort]
        message.max_output_tokens = output_tokens
        message.sampling.seed = random.getrandbits(63)
        if self._prefixes:
            _add_prefix(message, random.choice(self._prefixes))
        return PlannedRequest(
            index=index,
            effort=effort,
            prompt_tokens=prompt_tokens + (shape.prefix_tokens if self._prefixes else 0),
            message=message,
        )


def _request(shape: Shape, text: str) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        model=shape.model,
        messages=[pb.Message(role=pb.ROLE_USER, content=text)],
        sampling=pb.Sampling(temperature=shape.temperature),
        current_date=CURRENT_DATE,
        ignore_eos=not shape.natural,
        # The only exact count of the tokens in a delta.
        include_token_ids=True,
    )


def _add_prefix(message: pb.GenerateRequest, text: str) -> None:
    message.messages.insert(0, pb.Message(role=pb.ROLE_SYSTEM, content=text))
