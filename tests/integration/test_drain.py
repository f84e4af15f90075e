"""SIGTERM in the middle of an answer: the answer ends whole, and everything is gone after.

Ctrl-C ends the clusters of the other tests.
"""

import signal
import threading
from pathlib import Path

import pytest

from moeray.cluster.client import Client, user_request
from moeray.cluster.whole_answer import WholeAnswer
from moeray.v1 import inference_pb2 as pb
from tests.integration.serving import Server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def test_a_running_answer_is_finished(random_model: Path) -> None:
    answer, started = WholeAnswer(), threading.Event()

    def listen(target: str) -> None:
        request = user_request("hi", thinking_budget=50, max_output_tokens=120)
        with Client(target) as client:
            for event in client.generate(request):
                answer.add(event)
                started.set()

    arguments = ("--model", str(random_model), "--ranks", "2")
    with Server(*arguments, MOERAY_DRAIN_TIMEOUT_S="40") as server:
        listener = threading.Thread(target=listen, args=(server.target,))
        listener.start()
        assert started.wait(30)
        assert server.stop(signal.SIGTERM) == 0, server.output
        listener.join(30)
    assert "draining" in server.output
    assert answer.first.finished.reason == pb.FINISH_REASON_LENGTH
    assert answer.first.usage.output_tokens == 120
