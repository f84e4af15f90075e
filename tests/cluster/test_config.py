"""Settings: file, environment and flags in that order of strength, and nothing silently ignored."""

import pickle
from pathlib import Path

import pytest

from moeray.cluster.config import Settings, SettingsError, load_settings, ray_address


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOERAY_CACHE_DIR", raising=False)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "moeray.yaml"
    path.write_text(text)
    return path


def test_order_of_strength(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path, "port: 1001\nranks: 4\nengines: 2\n")
    monkeypatch.setenv("MOERAY_PORT", "1002")
    monkeypatch.setenv("MOERAY_RANKS", "2")
    settings = load_settings(config, {"port": 1003})
    assert (settings.port, settings.ranks, settings.engines) == (1003, 2, 2)


def test_defaults_need_nothing() -> None:
    settings = load_settings(None, {})
    assert settings.model is None
    assert settings.ranks is None
    assert settings.cache_dir.is_absolute()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot: 1\n", "prot: unknown setting"),
        ("ranks: 3\n", "ranks: Value error, ranks must be 1, 2, 4 or 8 (got 3)"),
        ("port: 70000\n", "port: "),
        ("- port\n", "no YAML mapping"),
        ("port: [\n", "no YAML mapping"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(write(tmp_path, text), {})
    assert said in str(refused.value)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(write(tmp_path, "ranks: 3\nport: x\n"), {})
    assert "ranks" in str(refused.value)
    assert "port" in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is no file"):
        load_settings(tmp_path / "none.yaml", {})


def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOERAY_PROT", "1")
    with pytest.raises(SettingsError, match="MOERAY_PROT"):
        load_settings(None, {})


def test_ray_address_is_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert ray_address() == "127.0.0.1:6379"


def test_settings_travel_to_actors(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "ranks: 2\n"), {})
    assert type(settings) is Settings
    assert pickle.loads(pickle.dumps(settings)) == settings
