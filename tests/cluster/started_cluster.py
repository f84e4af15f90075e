"""Commands that start a cluster of their own, given a server of this process in its place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from moeray.cluster.config import Settings


def replace_cluster(monkeypatch: pytest.MonkeyPatch, target: str, *, embedded: bool) -> list[Any]:
    """Have ``running_cluster`` give ``target``; returns the settings that it is asked for."""
    asked: list[Settings] = []

    @contextmanager
    def running_cluster(settings: Settings, progress: Callable[[str], None]) -> Iterator[Any]:
        asked.append(settings)
        progress("starting Ray")
        model = SimpleNamespace(embedded=embedded)
        yield SimpleNamespace(target=target, spec=SimpleNamespace(model=model))
        progress("draining")

    monkeypatch.setattr("moeray.cluster.lifecycle.running_cluster", running_cluster)
    return asked
