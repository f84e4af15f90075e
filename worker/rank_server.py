"""A rank's side of the socket: take a plan, run it, answer; until the leader goes away."""

import socket

from moeray.worker.ranks import StepExecutor
from moeray.worker.wire import (
    Hello,
    StepError,
    StepResult,
    decode_plan,
    encode_error,
    encode_hello,
    encode_result,
    receive_message,
    send_message,
)


def serve_rank(executor: StepExecutor, *, rank: int, path: str, secret: bytes) -> None:
    """Connects to the leader's socket at ``path`` and runs its plans.

    Returns when the leader closes the connection or dies. Where a step fails, the leader is told
    why and RuntimeError goes to the caller: a rank that failed once does not go on.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        try:
            send_message(connection, encode_hello(Hello(rank, secret)))
            while True:
                send_message(connection, _answer(executor, connection))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def _answer(executor: StepExecutor, connection: socket.socket) -> bytes:
    data = receive_message(connection)
    try:
        plan = decode_plan(data)
        return encode_result(StepResult(plan.step, executor.execute(plan)))
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        send_message(connection, encode_error(StepError(failure)))
        raise RuntimeError(f"the rank failed in a step: {failure}") from error
