"""The cluster's settings: one pydantic-settings model over a YAML file, environment and flags.

Flags are stronger than the environment (``MOERAY_PORT=...``), which is stronger than the file.
Nothing is silently ignored: an unknown key in the file, an unknown ``MOERAY_`` variable and a value
out of range are errors that name where they stand. This is the only module that reads the
environment.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

ENVIRONMENT_PREFIX = "MOERAY_"


class SettingsError(ValueError):
    """Settings that cannot be honoured; the message names each and says where it came from."""


class Settings(BaseSettings):
    """Everything a cluster can be told. Sizes are in tokens, times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, extra="forbid", frozen=True, protected_namespaces=()
    )

    _sources_below: ClassVar[tuple[PydanticBaseSettingsSource, ...]] = ()
    """Weaker than flags and environment: the file, in ``load_settings``."""

    model: Path | None = None
    """Checkpoint folder in Hugging Face's gpt-oss layout. None: the embedded model."""
    model_name: str | None = Field(default=None, pattern=r"^[\w.:/-]{1,128}$")
    """Name that clients use. None: the folder's name."""
    tokenizer_file: Path | None = None
    """A tokenizer.json or tiktoken file that wins over the checkpoint's tokenizer.json."""
    cache_dir: Path = Field(
        default_factory=lambda: Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "moeray"
    )
    """Where the embedded checkpoint is kept."""

    host: str = "127.0.0.1"
    """Address of the gateways' gRPC port."""
    port: Annotated[int, Field(ge=0, le=65535)] = 50051
    """The gateways' gRPC port. 0: a free one."""
    gateways: Annotated[int, Field(ge=1, le=64)] = 1
    """Gateway replicas; on one node they share the port."""
    reflection: bool = True
    """Whether gRPC reflection is served."""

    engines: Annotated[int, Field(ge=1, le=1024)] = 1
    """Engine replicas: expert-parallel groups."""
    ranks: int | None = None
    """Expert-parallel ranks of one engine. None: one per GPU of a node, or 2 without GPUs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where ranks compute. auto: cuda where the cluster has GPUs."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of dense weights, activations and KV cache. auto: bfloat16 on cuda, float32 on cpu."""
    rank_threads: Annotated[int, Field(ge=1, le=256)] = 1
    """torch's threads in a CPU rank."""
    block_tokens: Annotated[int, Field(ge=1, le=256)] = 16
    """Tokens in one KV block."""
    kv_tokens_per_rank: Annotated[int, Field(ge=512)] = 131072
    """KV cache of one rank, in tokens of the full-attention layers."""
    max_running_per_rank: Annotated[int, Field(ge=1, le=4096)] = 64
    """Requests that run at once on one rank."""
    step_tokens_per_rank: Annotated[int, Field(ge=1, le=65536)] = 512
    """Rows that one rank runs in one step."""
    step_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """A rank that answers no step within this time counts as dead."""

    default_max_output_tokens: Annotated[int, Field(ge=16)] | None = None
    """Limit when a request sets none. None: 4096, or 256 for the embedded model."""
    max_waiting_requests: Annotated[int, Field(ge=0)] = 1024
    """Requests that may wait for a place; more are refused with a retry delay."""
    max_waiting_tokens: Annotated[int, Field(ge=0)] = 4_000_000
    """Prompt tokens that may wait for a place."""
    no_engine_timeout_s: Annotated[float, Field(ge=0)] = 30.0
    """How long a request waits while no engine is registered, if its deadline is not earlier."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """How long the cluster may take to answer its first health check."""
    drain_timeout_s: Annotated[float, Field(ge=0)] = 30.0
    """How long running answers may take to finish when the cluster stops."""

    @field_validator("ranks")
    @classmethod
    def _divides_expert_groups(cls, value: int | None) -> int | None:
        if value not in (None, 1, 2, 4, 8):
            raise ValueError("ranks must be 1, 2, 4 or 8")
        return value

    @field_validator("model", "tokenizer_file", "cache_dir")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, *cls._sources_below)


def load_settings(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Settings from the YAML file ``config`` (if any), the environment, and ``flags``.

    ``flags`` holds only what was given. Raises SettingsError.
    """
    _refuse_unknown_environment()
    try:
        if config is None:
            return Settings(**flags)
        loaded = _with_file(config)(**flags)
        return Settings(**loaded.model_dump())
    except ValidationError as error:
        raise SettingsError(_describe(error)) from error


def ray_address() -> str | None:
    """Address of a running Ray cluster to join; None: start one."""
    return os.environ.get("RAY_ADDRESS") or None


def use_ray_token() -> None:
    """Show the joined Ray cluster the token that this user has; call it before Ray is imported.

    `ray start` turns token authentication on where a token is found, but ray.init does not for a
    cluster that it joins: without this, a cluster that the same user started would refuse us.
    """
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if "RAY_AUTH_TOKEN" in os.environ or token_file.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _with_file(config: Path) -> type[Settings]:
    if not config.is_file():
        raise SettingsError(f"--config: {config} is no file")
    try:
        file_source = YamlConfigSettingsSource(Settings, yaml_file=config)
    except Exception as error:  # the YAML library's own tree of errors, and a file of no mapping
        raise SettingsError(f"--config: {config} is no YAML mapping: {error}") from error

    class FileSettings(Settings):
        _sources_below = (file_source,)

    return FileSettings


def _refuse_unknown_environment() -> None:
    known = {f"{ENVIRONMENT_PREFIX}{name}".upper() for name in Settings.model_fields}
    unknown = [
        name for name in os.environ if name.upper().startswith(ENVIRONMENT_PREFIX)
        and name.upper() not in known
    ]  # fmt: skip
    if unknown:
        raise SettingsError(f"unknown environment variables: {', '.join(sorted(unknown))}")


def _describe(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or "settings"
        got = "" if item["type"] == "extra_forbidden" else f" (got {item['input']!r})"
        message = "unknown setting" if item["type"] == "extra_forbidden" else item["msg"]
        lines.append(f"{name}: {message}{got}")
    return "; ".join(lines)
