"""One cluster per port, also against servers that share ports."""

import socket
import subprocess
import sys
from concurrent import futures

import grpc
import pytest

from moeray.cluster.port_lock import PortTaken, hold_port, host_port

HOST = "127.0.0.1"


def test_a_held_port_is_refused_and_free_again_after() -> None:
    with (
        hold_port(HOST, 0) as port,
        pytest.raises(PortTaken, match="another Moeray cluster"),
        hold_port(HOST, port),
    ):
        pass
    with hold_port(HOST, port) as again:
        assert again == port


def test_another_process_is_refused_until_the_holder_is_killed() -> None:
    program = (
        "import sys\n"
        "from moeray.cluster.port_lock import hold_port\n"
        f"with hold_port({HOST!r}, 0) as port:\n"
        "    print(port, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        port = int(holder.stdout.readline())
        with pytest.raises(PortTaken, match=str(holder.pid)), hold_port(HOST, port):
            pass
        holder.kill()
        holder.wait()
        with hold_port(HOST, port):
            pass


def test_a_plain_listener_is_refused() -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortTaken, match="cannot be bound"), hold_port(HOST, port):
            pass


def test_a_grpc_server_that_shares_ports_is_refused() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 1)])
    port = server.add_insecure_port(f"{HOST}:0")
    server.start()
    try:
        with pytest.raises(PortTaken, match="cannot be bound"), hold_port(HOST, port):
            pass
    finally:
        server.stop(None).wait()


def test_a_held_port_can_be_served_on() -> None:
    with hold_port(HOST, 0) as port:
        server = grpc.server(futures.ThreadPoolExecutor(1))
        assert server.add_insecure_port(f"{HOST}:{port}") == port
        server.stop(None).wait()


def test_addresses() -> None:
    assert host_port("127.0.0.1", 5) == "127.0.0.1:5"
    assert host_port("::1", 5) == "[::1]:5"
