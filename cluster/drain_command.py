"""``moeray drain-node``: before this machine leaves the Ray cluster, let its replicas finish.

Ray is told that the node is about to go, so that nothing new is placed on it and Serve starts its
replicas elsewhere; then they stop as at any other time: a gateway and an engine finish what they
run. A pod's preStop hook is the place for it (k8s/base).
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from moeray.cluster.config import ray_address, use_ray_token
from moeray.cluster.terminal import fail

_PROC = Path("/proc")
_POLL_S = 0.5
_TELL_TIMEOUT_S = 60.0
_REPLICA = "ray::ServeReplica:"
"""How Ray names the processes of replicas."""


def drain_node(
    timeout: Annotated[
        int, typer.Option(min=1, help="Seconds that running requests may take to finish.")
    ] = 300,
) -> None:
    """Have Serve move this machine's replicas elsewhere, and wait until they are gone."""
    address = ray_address()
    if address is None:
        fail("RAY_ADDRESS is not set: which Ray cluster does this machine belong to?")
    use_ray_token()
    _tell_ray(address, timeout)
    deadline = time.monotonic() + timeout
    while left := replicas():
        if time.monotonic() > deadline:
            fail(f"{len(left)} replicas still run after {timeout} s: {', '.join(left)}")
        time.sleep(_POLL_S)


def replicas(proc: Path = _PROC) -> list[str]:
    """The names of the replicas that run on this machine."""
    names = []
    for file in proc.glob("[0-9]*/cmdline"):
        try:
            name = file.read_bytes().rstrip(b"\0").decode(errors="replace")
        except OSError:  # the process is gone
            continue
        if name.startswith(_REPLICA):
            names.append(name.removeprefix(_REPLICA))
    return sorted(names)


def _tell_ray(address: str, timeout: int) -> None:
    command = [
        str(Path(sys.executable).with_name("ray")),
        "drain-node",
        f"--address={address}",
        # The other reason, idle termination, is refused while anything runs.
        "--reason=DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message=moeray drain-node",
        f"--deadline-remaining-seconds={timeout}",
    ]
    from moeray.cluster.lifecycle import StartError, check_address

    try:
        check_address(address)
        told = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_TELL_TIMEOUT_S
        )
    except StartError as error:
        fail(str(error))
    except subprocess.TimeoutExpired:
        fail(f"Ray at {address} did not answer within {_TELL_TIMEOUT_S:g} s")
    if told.returncode:
        fail(f"Ray did not take this node out: {(told.stderr or told.stdout).strip()}")
