"""grpc channel options by which one side of a connection asks whether the other still lives.

A process that stands still sends no end of stream: only its silence shows it.
"""


def keepalive_options(*, every_s: float, timeout_s: float) -> tuple[tuple[str, int], ...]:
    """Ask every ``every_s`` seconds; who takes ``timeout_s`` to answer is lost.

    The other side must allow it so often.
    """
    timeout_ms = round(timeout_s * 1e3)
    return (
        ("grpc.keepalive_time_ms", round(every_s * 1e3)),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        # The keepalive's own timeout does not end a connection in grpc 1.85, the ping's does.
        ("grpc.http2.ping_timeout_ms", timeout_ms),
        # Or else the third ping without data of one's own, and each after it, waits for a minute.
        ("grpc.http2.max_pings_without_data", 0),
    )
