"""The plain client against gateways that stand still, and its words for failed calls."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from moeray.cluster.client import Client, ClientError, user_request

# A gateway without a cluster: it starts to answer, and never goes on.
GATEWAY = """
import time
from concurrent import futures
import grpc
from moeray.cluster.gateway_server import ServerOptions
from moeray.v1 import inference_pb2 as pb, inference_pb2_grpc

class Service(inference_pb2_grpc.InferenceServiceServicer):
    def Generate(self, request, context):
        yield pb.GenerateResponse(started=pb.Started(request_id="r"))
        time.sleep(3600)

options = ServerOptions(host="127.0.0.1", port=0).channel_arguments()
server = grpc.server(futures.ThreadPoolExecutor(4), options=options)
inference_pb2_grpc.add_InferenceServiceServicer_to_server(Service(), server)
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""


SILENCE_S = 8.0
"""Of a stream: in it the client asks three times whether the gateway is still there."""


@pytest.fixture
def gateway() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", GATEWAY], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    yield process
    process.kill()
    process.communicate()


def target_of(gateway: subprocess.Popen[str]) -> str:
    assert gateway.stdout is not None
    return f"127.0.0.1:{gateway.stdout.readline().strip()}"


@pytest.mark.timeout(90)
@pytest.mark.parametrize(
    ("number", "silence_s"),
    [(signal.SIGSTOP, 0.0), (signal.SIGSTOP, SILENCE_S), (signal.SIGKILL, 0.0)],
)
def test_a_gateway_that_stops_or_dies_ends_its_calls(
    gateway: subprocess.Popen[str], number: signal.Signals, silence_s: float
) -> None:
    with Client(target_of(gateway)) as client:
        events = client.generate(user_request("hi"), timeout_s=silence_s + 30)
        assert next(events).started.request_id == "r"
        time.sleep(silence_s)
        gateway.send_signal(number)
        with pytest.raises(ClientError, match="UNAVAILABLE"):
            next(events)


@pytest.mark.timeout(60)
def test_a_gateway_that_stands_still_takes_no_new_calls(gateway: subprocess.Popen[str]) -> None:
    target = target_of(gateway)
    gateway.send_signal(signal.SIGSTOP)
    with Client(target) as client, pytest.raises(ClientError, match="UNAVAILABLE"):
        next(client.generate(user_request("hi")))


@pytest.mark.timeout(60)
def test_the_server_lets_the_client_ask_as_often_as_it_does(
    gateway: subprocess.Popen[str],
) -> None:
    # A server that finds the pings too many ends the connection after the third.
    with Client(target_of(gateway)) as client:
        events = client.generate(user_request("hi"), timeout_s=SILENCE_S + 4)
        assert next(events).started.request_id == "r"
        # A machine that leaves the server no time for an answer is another matter.
        with pytest.raises(ClientError, match=r"DEADLINE_EXCEEDED|ping timeout"):
            next(events)
