"""A rank's side of the socket: take a plan, run it, answer; until the leader goes away.

A thread says once in a while that the process is alive, also while a step runs: torch lets other
threads run while it computes. A leader that hears nothing takes the rank as lost.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator

from moeray.worker.ranks import StepExecutor
from moeray.worker.wire import (
    Hello,
    StepError,
    StepResult,
    decode_plan,
    encode_error,
    encode_heartbeat,
    encode_hello,
    encode_result,
    receive_message,
    send_message,
)

HEARTBEAT_S = 0.5


class _Speaker:
    """The sending side of the socket, for two threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: bytes) -> None:
        with self._lock:
            send_message(self._connection, message)


def serve_rank(
    executor: StepExecutor, *, rank: int, path: str, secret: bytes, heartbeat_s: float = HEARTBEAT_S
) -> None:
    """Connects to the leader's socket at ``path`` and runs its plans.

    Returns when the leader closes the connection or dies. Where a step fails, the leader is told
    why and RuntimeError goes to the caller: a rank that failed once does not go on.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        speaker = _Speaker(connection)
        try:
            speaker.send(encode_hello(Hello(rank, secret)))
            with _heartbeats(speaker, heartbeat_s):
                while True:
                    speaker.send(_answer(executor, connection, speaker))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


@contextlib.contextmanager
def _heartbeats(speaker: _Speaker, period_s: float) -> Iterator[None]:
    ended = threading.Event()

    def beat() -> None:
        # A leader that has gone is met by the thread that reads.
        with contextlib.suppress(OSError):
            while not ended.wait(period_s):
                speaker.send(encode_heartbeat())

    thread = threading.Thread(target=beat, name="heartbeats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _answer(executor: StepExecutor, connection: socket.socket, speaker: _Speaker) -> bytes:
    data = receive_message(connection)
    try:
        plan = decode_plan(data)
        return encode_result(StepResult(plan.step, executor.execute(plan)))
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        speaker.send(encode_error(StepError(failure)))
        raise RuntimeError(f"the rank failed in a step: {failure}") from error
