"""A real ``moeray serve`` in a process of its own, for the tests of whole clusters."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

CACHE = Path(os.environ.get("MOERAY_CACHE_DIR") or Path(__file__).parents[2] / ".cache" / "moeray")
START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 60.0


def moeray(*arguments: str) -> list[str]:
    """The command line of ``moeray ARGUMENTS``."""
    return [sys.executable, "-c", "from moeray.cluster.cli import main; main()", *arguments]


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without Ray's address, and the repository's own cache."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return kept | {"MOERAY_CACHE_DIR": str(CACHE)} | extra


def ray_environment(**extra: str) -> dict[str, str]:
    """The same for a Ray cluster that is joined, which should run so (cluster/README.md)."""
    return environment(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_worker_niceness="0",
        RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS="1",
        **extra,
    )


def run(*arguments: str, timeout_s: float = 90.0, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a ``moeray`` command to its end."""
    return subprocess.run(
        moeray(*arguments),
        capture_output=True,
        text=True,
        env=environment(**env),
        timeout=timeout_s,
        check=False,
    )


class Server:
    """One ``moeray serve``; ``target`` is where it listens. Use as a context."""

    def __init__(self, *arguments: str, **env: str) -> None:
        self._arguments: Sequence[str] = arguments
        self._env = env
        self.lines: list[str] = []
        self.target = ""

    def __enter__(self) -> "Server":
        self.process = subprocess.Popen(
            moeray("serve", "--port", "0", *self._arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(**self._env),
        )
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(START_TIMEOUT_S) or not self.target:
            self.process.kill()
            raise RuntimeError(f"moeray serve did not start: {self.output}")
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.stop()
        self._reader.join(STOP_TIMEOUT_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def children(self, name: str = "") -> list[psutil.Process]:
        """Processes below this one whose command line holds ``name``."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if name in " ".join(child.cmdline()):
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return found

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Signal the server and wait for its end; returns its exit code."""
        started = self.children()
        self.process.send_signal(number)
        code = self.process.wait(STOP_TIMEOUT_S)
        _, alive = psutil.wait_procs(started, timeout=15)
        assert not alive, f"left behind: {[process.name() for process in alive]}"
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.strip().startswith("gRPC"):
                self.target = line.split()[1]
            if "Ctrl-C" in line:
                self._ready.set()
        self._ready.set()


def wait_until(condition: "object", timeout_s: float, what: str) -> None:
    """Poll ``condition`` until it is true."""
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {timeout_s} s: {what}")
        time.sleep(0.05)
