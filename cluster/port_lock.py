"""One cluster per port: grpc.aio would share a taken port without a word.

gRPC servers bind with SO_REUSEPORT, so that gateway replicas can share their port; a second cluster
on the same port would silently take half of the first one's clients. Two checks refuse it: a file
lock per host and port among Moeray's clusters, and a bind without SO_REUSEPORT against anyone else.
"""

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

METRICS_PORTS: Final = 64
"""How many ports processes of one machine may choose from for their metrics, which lock none."""


class PortTaken(RuntimeError):
    """The port is in use; the message says by whom, as far as that can be known."""


@contextmanager
def hold_port(host: str, port: int) -> Iterator[int]:
    """Hold ``host:port`` for one cluster; yields the port (a free one if ``port`` is 0).

    The lock lives as long as this process, also through a kill -9, and no longer.
    Raises PortTaken.
    """
    port = port or _free_port(host)
    lock = _lock_file(port)
    descriptor = _lock(lock, host, port)
    try:
        _refuse_listener(host, port)
        yield port
    finally:
        lock.unlink()  # while it is locked, so that it is this process's
        os.close(descriptor)


def host_port(host: str, port: int) -> str:
    """HOST:PORT as gRPC reads it, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _lock_file(port: int) -> Path:
    folder = Path(tempfile.gettempdir()) / f"moeray-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"port-{port}.lock"


def _lock(path: Path, host: str, port: int) -> int:
    """Make and lock the file; returns its descriptor. Raises PortTaken."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 64, 0).decode(errors="replace") or "unknown"
            os.close(descriptor)
            raise PortTaken(
                f"port {port} on {host} is taken by another Moeray cluster (process {holder});"
                " stop it, or choose another --port"
            ) from None
        # The last holder may have removed the file between the opening and the locking.
        if _is_still_there(path, descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            return descriptor
        os.close(descriptor)


def _is_still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _refuse_listener(host: str, port: int) -> None:
    try:
        _bind(host, port).close()
    except PermissionError as error:
        raise PortTaken(f"port {port} on {host} cannot be bound: {error.strerror}") from error
    except OSError as error:
        raise PortTaken(
            f"port {port} on {host} cannot be bound: {error.strerror}; choose another --port"
        ) from error


def _free_port(host: str) -> int:
    with _bind(host, 0) as listener:
        return int(listener.getsockname()[1])


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # Connections of an earlier server may still be in TIME_WAIT; they hold nothing.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener
