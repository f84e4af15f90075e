"""Stop strings, found in text as it comes, whatever the pieces it comes in.

``StopStrings`` is an Aho-Corasick automaton (Aho and Corasick, Efficient string matching, CACM
1975). Its state after some text is the longest end of it that begins a stop string, which is just
what may not be sent yet. Each character is read once, so the time is linear in the text.

A piece is what one token adds. The text ends with the first piece that completes a stop string; of
those it completes, the one that starts first counts, and the longest of these. So what is found
depends on the tokens alone, never on how they were batched.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from moeray.cluster.harmony_parser import TextDelta


class StopStrings:
    """The automaton of some stop strings, none of them empty. Immutable: answers may share it."""

    def __init__(self, strings: Iterable[str]) -> None:
        self.next: list[dict[str, int]] = [{}]
        """The tree of all beginnings of stop strings; node 0 is its root."""
        self.depth = [0]
        """Length of each node's beginning."""
        self.match = [""]
        """The longest stop string that ends where the node's beginning ends; empty: none."""
        for string in strings:
            self._add(string)
        self.fallback = self._fallbacks()
        """The node of the longest proper end of a node's beginning that is a beginning too."""

    def _add(self, string: str) -> None:
        node = 0
        for character in string:
            if character not in self.next[node]:
                self.next[node][character] = len(self.next)
                self.next.append({})
                self.depth.append(self.depth[node] + 1)
                self.match.append("")
            node = self.next[node][character]
        self.match[node] = string

    def _fallbacks(self) -> list[int]:
        fallback = [0] * len(self.next)
        nodes = deque(self.next[0].values())
        while nodes:
            parent = nodes.popleft()
            for character, node in self.next[parent].items():
                nodes.append(node)
                shorter = fallback[parent]
                while shorter and character not in self.next[shorter]:
                    shorter = fallback[shorter]
                fallback[node] = self.next[shorter].get(character, 0)
                self.match[node] = self.match[node] or self.match[fallback[node]]
        return fallback


@dataclass(frozen=True, slots=True)
class StopMatch:
    """A stop string was completed. ``characters`` reach from its start to the end of the text."""

    string: str
    characters: int


class StopMatcher:
    """Finds stop strings in one text."""

    def __init__(self, strings: StopStrings) -> None:
        self._strings = strings
        self._node = 0

    @property
    def held(self) -> int:
        """How many characters at the text's end may yet become part of a stop string."""
        return self._strings.depth[self._node]

    def feed(self, text: str) -> StopMatch | None:
        """Take the next piece; the match, if it completes one. The text has ended then."""
        edges, fallback, match = self._strings.next, self._strings.fallback, self._strings.match
        node, found, start = self._node, "", len(text)
        for end, character in enumerate(text, start=1):
            while node and character not in edges[node]:
                node = fallback[node]
            node = edges[node].get(character, 0)
            if (string := match[node]) and (not found or end - len(string) <= start):
                found, start = string, end - len(string)
        self._node = node
        return StopMatch(found, len(text) - start) if found else None

    def reset(self) -> None:
        """Begin a new text."""
        self._node = 0


class StopFilter:
    """Holds back text of final messages that may belong to a stop string, with its tokens.

    A token goes out with the first of its characters that does. When a stop string is complete,
    ``matched`` names it and nothing of its text goes out, but the tokens behind it still do: every
    token that counts is in one delta.
    """

    def __init__(self, strings: StopStrings) -> None:
        self.matched: str | None = None
        self._matcher = StopMatcher(strings)
        self._held: deque[TextDelta] = deque()
        self._characters = 0

    def feed(self, delta: TextDelta) -> list[TextDelta]:
        """Take the next text; return what may be sent."""
        self._held.append(delta)
        self._characters += len(delta.text)
        match = self._matcher.feed(delta.text)
        if match is None:
            return self._release(self._characters - self._matcher.held)
        self.matched = match.string
        sent = self._release(self._characters - match.characters)
        tokens = tuple(token for held in self._held for token in held.token_ids)
        self._held.clear()
        return [*sent, TextDelta(delta.channel, "", tokens)] if tokens else sent

    def flush(self) -> list[TextDelta]:
        """End the message; return what was held back."""
        held = list(self._held)
        self._held.clear()
        self._characters = 0
        self._matcher.reset()
        return held

    def _release(self, characters: int) -> list[TextDelta]:
        self._characters -= characters
        released = []
        while self._held and len(self._held[0].text) <= characters:
            released.append(self._held.popleft())
            characters -= len(released[-1].text)
        if characters:
            first = self._held[0]
            released.append(replace(first, text=first.text[:characters]))
            self._held[0] = replace(first, text=first.text[characters:], token_ids=())
        return released
