"""A short run of the chaos harness: parts of a real cluster die and stop under observed streams.

``python -m tests.chaos.run`` is the long form, and judges times; here only that every stream ends
as it should, every fault heals, and nothing is left.
"""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.chaos.campaign import Plan, run_campaign
from tests.chaos.processes import Kind
from tests.integration.serving import Server

KILL, STOP = signal.SIGKILL, signal.SIGSTOP
STRIKES = [(Kind.RANK, KILL), (Kind.GATEWAY, STOP), (Kind.LEADER, KILL), (Kind.ROUTER, KILL)]


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_streams_end_as_they_should_whatever_dies(random_model: Path) -> None:
    plan = Plan(strikes=STRIKES, streams=8, seed=1, engines=1, ranks=2, gateways=2, pool=12)
    said: list[str] = []
    with Server("--model", str(random_model), *plan.arguments()) as server:
        report = asyncio.run(run_campaign(server, plan, said.append))
        assert server.stop() == 0, server.output
    assert report.failures(judge_times=False) == [], "\n".join([*said, report.table()])
    assert report.unavailable > 0, "no fault met a stream"
    assert report.complete > 0
