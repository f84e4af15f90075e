"""A private folder for a Unix socket, which does not outlive its process for long.

A process that is killed leaves its folder behind. Each holds a lock on its own as long as it lives,
so the next one can tell: what is not locked and holds nothing but a socket is removed. Locks work
across containers that share a temporary folder, where process ids would not.
"""

import contextlib
import fcntl
import os
import tempfile
import time
from pathlib import Path

SOCKET_NAME = "ranks"
_PREFIX = "moeray-ranks-"
_YOUNG_S = 60.0
"""A folder this new may not be locked yet."""


class SocketFolder:
    """Makes the folder, for this user alone (0700), and removes what dead processes left."""

    def __init__(self) -> None:
        _remove_abandoned(Path(tempfile.gettempdir()))
        self._path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self.socket = self._path / SOCKET_NAME
        self._lock: int | None = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove the folder; again does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
            with contextlib.suppress(OSError):
                _remove(self._path)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        # Another process may remove it first, and other users' folders cannot be opened.
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > _YOUNG_S:
                _remove_unlocked(folder)


def _remove_unlocked(folder: Path) -> None:
    """Raises OSError where the folder is locked, no folder, or holds more than a socket."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(folder)
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    socket = folder / SOCKET_NAME
    if socket.is_socket():
        socket.unlink()
    folder.rmdir()
