"""Whether the router is silent: it takes calls and answers none, as a stopped process does.

Ray restarts a router that died, but nobody else notices one that stands still. Silence is counted
in ticks of the caller's own event loop, not by a clock, so that a caller which stood still itself
blames nobody for the time it missed.
"""

SILENT_TICKS = 5
"""Ticks of one second; a long poll must be shorter (``router_client.POLL_S``)."""
STARTING_TICKS = 60
"""The same for a router that has not answered since it was lost: it may be starting."""


class RouterSilence:
    """To be told how each call ended, and of each tick."""

    def __init__(self) -> None:
        self._open_calls = 0
        self._ticks = 0
        self._has_answered = False

    @property
    def is_waiting(self) -> bool:
        """Whether a call is under way."""
        return self._open_calls > 0

    def asked(self) -> None:
        self._open_calls += 1

    def answered(self) -> None:
        self._open_calls -= 1
        self._ticks = 0
        self._has_answered = True

    def lost(self) -> None:
        """The call ended because the router did: it is not silent, it is gone."""
        self._open_calls -= 1
        self._ticks = 0
        self._has_answered = False

    def given_up(self) -> None:
        """The caller wants no answer any more."""
        self._open_calls -= 1

    def tick(self) -> bool:
        """Time passed; whether the router is to be ended. True once for each silence."""
        self._ticks = self._ticks + 1 if self._open_calls else 0
        is_silent = self._ticks >= (SILENT_TICKS if self._has_answered else STARTING_TICKS)
        if is_silent:
            self._ticks = 0
            self._has_answered = False
        return is_silent
