"""SIGINT and SIGTERM as a foreground command wants them.

While the command starts or drains, a signal interrupts it (KeyboardInterrupt); while it serves, a
signal only ends the wait. An exception out of a blocked wait could hit Python's own locks half-way,
so the wait is a select on a pipe that the interpreter's C-level handler writes to.
"""

import select
import signal
import socket
import time
from types import FrameType, TracebackType
from typing import Final, Self

DEBOUNCE_S: Final = 1.0
"""Some parents send a signal to the process and to its group: the second is the same wish."""

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Handles both signals inside its context, which must be entered in the main thread."""

    def __enter__(self) -> Self:
        self._waiting = False
        self._ended_at: float | None = None
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._reader.close()
        self._writer.close()

    def wait(self) -> None:
        """Return when a signal has come."""
        self._waiting = True
        while self._waiting:
            select.select([self._reader], [], [])
            # Signals of other kinds write here too.
            if {signal.Signals(byte) for byte in self._reader.recv(4096)} & set(_SIGNALS):
                self._ended_at = time.monotonic()
                self._waiting = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        recent = self._ended_at is not None and time.monotonic() - self._ended_at < DEBOUNCE_S
        if not self._waiting and not recent:
            raise KeyboardInterrupt
