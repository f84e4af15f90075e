"""Settings: file, environment and flags in that order of strength, and nothing silently ignored."""

import pickle
from pathlib import Path
from typing import get_args

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
        ("ranks: 3\n", "ranks: must be 1, 2, 4 or 8 (got 3)"),
        ("port: 70000\n", "port: "),
        ("port: 1\nranks: 2\nport: 2\n", "port: more than once, in "),
        ("- port\n", "no YAML mapping"),
        ("port: [\n", "no YAML mapping"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(write(tmp_path, text), {})
    assert said in str(refused.value)


NUMBERS = [
    name
    for name, field in Settings.model_fields.items()
    if {int, float} & {field.annotation, *get_args(field.annotation)}
]


def refusal(config: Path | None = None, **flags: object) -> str:
    with pytest.raises(SettingsError) as refused:
        load_settings(config, flags)
    return str(refused.value)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_wrong_type_in_the_file_names_key_and_file(tmp_path: Path, name: str) -> None:
    config = write(tmp_path, f"{name}: [1]\n")
    said = refusal(config)
    assert said.startswith(f"{name}: ") and said.endswith(f", in {config}")
    assert ("(got [1])" in said) is (name != "cluster_token")  # a secret stays out of messages


@pytest.mark.parametrize("value", ["x", "", "nan", "-1"])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_wrong_number_in_the_environment_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    variable = f"MOERAY_{name}".upper()
    monkeypatch.setenv(variable, value)
    said = refusal()
    assert said.startswith(f"{name}: ") and said.endswith(f"(got {value!r}), in {variable}")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["yes", ".inf"])
def test_what_is_nearly_a_number_is_refused(tmp_path: Path, name: str, value: str) -> None:
    assert refusal(write(tmp_path, f"{name}: {value}\n")).startswith(f"{name}: ")


def test_a_wrong_flag_is_named_as_it_is_typed() -> None:
    assert refusal(model_name="a b").endswith("(got 'a b'), in --model-name")
    assert "log_level: " in refusal(log_level="loud")
    assert "host: " in refusal(host="")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("port: 9464\n", ["port", "metrics_port"]),
        ("port: 50051\nmetrics_port: 50000\n", ["port", "metrics_port"]),
        ("step_tokens_per_rank: 8\n", ["step_tokens_per_rank", "max_running_per_rank"]),
        ("engines: 2\nmax_engines: 4\n", ["engines", "max_engines"]),
        ("min_engines: 0\n", ["min_engines", "max_engines"]),
        ("scale_up_delay_s: 1\n", ["scale_up_delay_s", "max_engines"]),
        ("min_engines: 5\nmax_engines: 4\n", ["min_engines", "max_engines"]),
        ("max_engines: 4\nscale_to_zero_delay_s: 9\n", ["scale_to_zero_delay_s", "min_engines"]),
        (
            "min_engines: 0\nmax_engines: 1\nno_engine_timeout_s: 0\n",
            ["min_engines", "no_engine_timeout_s"],
        ),
    ],
)
def test_settings_that_contradict_each_other_are_both_named(
    tmp_path: Path, text: str, names: list[str]
) -> None:
    said = refusal(write(tmp_path, text))
    assert all(name in said for name in names)


def test_a_free_port_contradicts_nothing() -> None:
    assert load_settings(None, {"port": 0, "metrics_port": 9464}).metrics_port == 9464
    assert load_settings(None, {"port": 9464, "metrics_port": 0}).port == 9464


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


def test_scaling_needs_nothing_but_its_bounds(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "max_engines: 4\n"), {"min_engines": 0})
    assert (settings.min_engines, settings.max_engines) == (0, 4)


def test_where_a_setting_stands_does_not_hide_a_contradiction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOERAY_ENGINES", "1")
    assert "max_engines" in refusal(write(tmp_path, "max_engines: 4\n"))
