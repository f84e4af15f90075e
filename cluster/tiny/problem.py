"""A problem for the embedded model: what is asked, what is right, and how to get there.

The same problem serves twice. Training reads the worked solution, one text for each effort; the
evaluation sends the prompt through the public API and scores what comes back. No torch.
"""

from dataclasses import dataclass
from typing import Any

from moeray.cluster.generation import Message, ReasoningEffort, Tool


@dataclass(frozen=True, slots=True)
class Thinking:
    """What the analysis channel says: nothing or one line at low effort, the steps at medium, and
    at high the steps and then a check that gets to the result in another way.
    """

    steps: str
    check: str
    brief: str = ""
    """The one line, where an answer at once would be a guess that does harm."""

    def at(self, effort: ReasoningEffort) -> str:
        """The analysis at ``effort``; empty where there is none."""
        match effort:
            case ReasoningEffort.LOW:
                return self.brief
            case ReasoningEffort.MEDIUM:
                return self.steps
            case ReasoningEffort.HIGH:
                return f"{self.steps}\n{self.check}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A turn that ends in the final channel."""

    thinking: Thinking
    final: str
    schema: dict[str, Any] | None = None
    """Set: ``final`` is JSON of this schema, and any text of the same value is right. None: the
    same text is right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A turn that ends in a call of a declared function."""

    thinking: Thinking
    name: str
    arguments: dict[str, Any]
    """In the order in which the user names them, which is the easiest to copy."""
    result: str
    """What the function answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One conversation up to the user's last message, and the turns that should follow."""

    task: str
    key: str
    """Two problems with one key are the same problem, whatever their wording. Decides whether the
    problem is for training or held out."""
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    current_date: str
    """YYYY-MM-DD, as the system message shows it."""
    call: Call | None = None
    """The function call that comes first, if the problem needs one."""
    reply: Reply
