"""Who watches an answer being made, as ``answers.py`` sees it.

One observer hears of one answer. It is called on the path of every token, so each method returns at
once, and none raises.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from moeray.cluster.generation import ReasoningEffort
from moeray.cluster.interceptors import Call
from moeray.v1 import inference_pb2 as pb


class AnswerObserver(Protocol):
    """Hears, in this order: placed, progress for each part sent, finished."""

    def placed(self, engine_id: str) -> None:
        """A try has its place: the wait for it is over. Called for each try."""
        ...

    def retried(self) -> None:
        """The engine lost the request; it is tried elsewhere."""
        ...

    def progress(self, tokens: int) -> None:
        """Something of the answer goes to the client; ``tokens`` is how many it has now."""
        ...

    def finished(
        self, usage: pb.Usage, reason: "pb.FinishReason.ValueType", recovered: Mapping[str, int]
    ) -> None:
        """The answer is whole; ``recovered`` counts repairs of malformed output by kind."""
        ...


ObserveAnswer = Callable[[Call, str, ReasoningEffort], AnswerObserver]
"""From the call, the model's name and the effort of a request: an observer for one answer of it."""
