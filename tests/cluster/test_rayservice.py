"""Settings that a RayService cannot be built from are refused by name, before anything starts."""

from typing import Any

import pytest

from moeray.cluster.config import SettingsError
from moeray.cluster.rayservice import build

COMPLETE = {"cluster_token": "t" * 32, "device": "cpu", "ranks": 1}


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (COMPLETE | {"cluster_token": None}, "cluster_token"),
        (COMPLETE | {"cluster_token": "short"}, "cluster_token"),
        (COMPLETE | {"device": "auto"}, "device"),
        ({key: value for key, value in COMPLETE.items() if key != "ranks"}, "ranks"),
        (COMPLETE | {"port": 0}, "port"),
        (COMPLETE | {"enigmas": 2}, "enigmas"),
    ],
)
def test_refused_by_name(args: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOERAY_CLUSTER_TOKEN", raising=False)
    with pytest.raises(SettingsError, match=named) as refused:
        build(args)
    assert "short" not in str(refused.value), "a secret stands in the error"
