"""Logs as a process writes them: every line one JSON object, whoever spoke."""

import json
import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
import logging, warnings
import structlog
from moeray.cluster.logs import configure_logs

early = structlog.get_logger("moeray.early")
configure_logs("gateway", "{level}", gateway_id="gateway-1")
log = structlog.get_logger("moeray.test")
log.debug("fine_grained")
with structlog.contextvars.bound_contextvars(request_id="r1"):
    early.info("served", tokens=3, engine_id="e1")
    logging.getLogger("some.library").warning("it said %s", "this\\nand that")
try:
    raise ValueError("broken")
except ValueError:
    logging.getLogger("some.library").exception("failed")
logging.getLogger("some.library").info("by the way")
logging.getLogger("asyncio").info("narrates")
log.error("odd", value=object)
"""


def lines(level: str) -> list[dict[str, Any]]:
    program = PROGRAM.format(level=level)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stderr == ""
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_every_line_is_json_and_says_who() -> None:
    found = lines("info")
    assert [line["event"] for line in found] == [
        "served", "it said this\nand that", "failed", "by the way", "odd",
    ]  # fmt: skip
    for line in found:
        assert line["component"] == "gateway" and line["gateway_id"] == "gateway-1"
        assert line["timestamp"].endswith("Z") and line["level"]
    served, said, failed, _, _ = found
    assert (served["level"], served["tokens"], served["engine_id"]) == ("info", 3, "e1")
    assert served["request_id"] == said["request_id"] == "r1" and "request_id" not in failed
    assert (said["level"], said["logger"]) == ("warning", "some.library")
    assert "ValueError: broken" in failed["exception"]


@pytest.mark.parametrize(("level", "count"), [("debug", 6), ("warning", 3), ("error", 2)])
def test_the_level_holds_for_all(level: str, count: int) -> None:
    assert len(lines(level)) == count
