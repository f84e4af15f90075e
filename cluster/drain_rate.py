"""How quickly places become free, measured: for the delay after which to try again.

Pure policy: no clock of its own.
"""

from collections import deque

MIN_RETRY_S = 0.1
MAX_RETRY_S = 30.0


class DrainRate:
    """Released places, and the tokens they had held, over the last ``window_s`` seconds."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._releases: deque[tuple[float, int]] = deque()
        self._tokens = 0

    def note(self, tokens: int, now: float) -> None:
        """A place was released that held this many tokens."""
        self._releases.append((now, tokens))
        self._tokens += tokens
        if now - self._releases[0][0] > self._window_s:
            self._forget(now)

    def delay_s(self, requests: int, tokens: int, now: float) -> float:
        """Seconds until this many requests of this many tokens in all will have found places.

        The longer of both: large requests hold their places for longer than small ones. Between
        MIN_RETRY_S and MAX_RETRY_S, which it is also where nothing was released for a window.
        """
        self._forget(now)
        if not self._releases:
            return MAX_RETRY_S
        span = now - self._releases[0][0]
        # n releases from the first to now bound n - 1 intervals, and the one that is under way.
        delay = span * requests / len(self._releases)
        if self._tokens:
            delay = max(delay, span * tokens / self._tokens)
        return min(max(delay, MIN_RETRY_S), MAX_RETRY_S)

    def _forget(self, now: float) -> None:
        while self._releases and now - self._releases[0][0] > self._window_s:
            self._tokens -= self._releases.popleft()[1]
