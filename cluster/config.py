"""The cluster's settings: one pydantic-settings model over a YAML file, environment and flags.

Flags are stronger than the environment (``MOERAY_PORT=...``), which is stronger than the file.
Nothing is silently ignored: an unknown key in the file, an unknown ``MOERAY_`` variable and a value
out of range are errors that name where they stand. This is the only module that reads the
environment.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from moeray.cluster.logs import LogLevel
from moeray.cluster.port_lock import METRICS_PORTS

ENVIRONMENT_PREFIX = "MOERAY_"

_SCALING = frozenset(
    {
        "min_engines",
        "target_kv_usage",
        "target_waiting_tokens",
        "scale_up_delay_s",
        "scale_down_delay_s",
        "scale_to_zero_delay_s",
    }
)
"""Settings that need max_engines."""


class SettingsError(ValueError):
    """Settings that cannot be honoured; the message names each and says where it came from."""


class Settings(BaseSettings):
    """Everything a cluster can be told. Sizes are in tokens, times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
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

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address of the gateways' gRPC port, and of every process's metrics."""
    port: Annotated[int, Field(ge=0, le=65535)] = 50051
    """The gateways' gRPC port. 0: a free one."""
    gateways: Annotated[int, Field(ge=1, le=64)] = 1
    """Gateway replicas; on one node they share the port."""
    cluster_token: Annotated[SecretStr, Field(min_length=32)] | None = None
    """What gateways and engines prove to each other that they know. None: a new one at each start,
    which an update of a running deployment cannot do."""
    reflection: bool = True
    """Whether gRPC reflection is served."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9464
    """HTTP with /metrics and /healthz: each process takes the first free port of the 64 from this
    one. 0: none."""
    log_level: LogLevel = "info"
    """Log lines that are less grave are not written."""

    flush_ms: Annotated[float, Field(ge=0, le=1000)] = 20.0
    """How many milliseconds tokens may wait for more of their answer. A message costs a gateway far
    more than a token. 0: each step of the engine is sent at once."""

    engines: Annotated[int, Field(ge=1, le=1024)] = 1
    """Engine replicas: expert-parallel groups. A fixed number; max_engines has them scale."""
    min_engines: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Engines that are never taken away. 0: none runs while nothing is asked. None: 1."""
    max_engines: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Engines come and go with the load, up to this many. None: as many as ``engines``, always."""
    target_kv_usage: Annotated[float, Field(ge=0.05, le=1)] = 0.8
    """Share of an engine's KV cache, or of its places, above which another engine is wanted."""
    target_waiting_tokens: Annotated[int, Field(ge=1)] = 8192
    """Tokens of prompts that may wait for each engine before another one is wanted."""
    scale_up_delay_s: Annotated[float, Field(ge=0)] = 5.0
    """How long more engines must be wanted before they come. The first one comes at once."""
    scale_down_delay_s: Annotated[float, Field(ge=0)] = 300.0
    """How long fewer engines must be wanted before they go."""
    scale_to_zero_delay_s: Annotated[float, Field(ge=0)] = 600.0
    """How long nothing may run or wait before the last engine goes."""
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
    rank_silence_s: Annotated[float, Field(ge=1)] = 3.0
    """A rank whose process says nothing for this long, not even a heartbeat, counts as dead."""

    default_max_output_tokens: Annotated[int, Field(ge=16)] | None = None
    """Limit when a request sets none. None: 4096, or 1024 for the embedded model."""
    engine_surge_percent: Annotated[int, Field(ge=0, le=100)] = 0
    """Engines beyond their number that an update may start before it stops old ones. 0: old ones
    stop first, for want of GPUs for more; requests wait meanwhile."""
    max_waiting_requests: Annotated[int, Field(ge=0)] = 1024
    """Requests that may wait for a place; more are refused with a retry delay."""
    max_waiting_tokens: Annotated[int, Field(ge=0)] = 4_000_000
    """Prompt tokens that may wait for a place."""
    no_engine_timeout_s: Annotated[float, Field(ge=0)] = 30.0
    """How long a request without a deadline waits while no engine is registered; one that has a
    deadline waits until then. With min_engines 0 it should be longer than an engine takes to start.
    """
    start_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """How long the cluster may take to answer its first health check."""
    drain_timeout_s: Annotated[float, Field(ge=0)] = 30.0
    """How long running answers may take to finish when the cluster stops."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic takes true for 1, so that `engines: yes` would be one engine.
        if isinstance(value, bool) and info.field_name != "reflection":
            raise ValueError("is no yes-or-no setting")
        return value

    @field_validator("ranks")
    @classmethod
    def _divides_expert_groups(cls, value: int | None) -> int | None:
        if value not in (None, 1, 2, 4, 8):
            raise ValueError("must be 1, 2, 4 or 8")
        return value

    @field_validator("model", "tokenizer_file", "cache_dir")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @model_validator(mode="after")
    def _scales_without_contradiction(self) -> Self:
        if problems := [*self._contradictions(), *self._autoscaling_problems()]:
            raise ValueError("; ".join(problems))
        return self

    def _contradictions(self) -> list[str]:
        problems = []
        last = self.metrics_port + METRICS_PORTS - 1
        if self.metrics_port and self.metrics_port <= self.port <= last:
            problems.append(
                f"port: {self.port} is one of the ports of metrics_port"
                f" ({self.metrics_port} to {last})"
            )
        if self.step_tokens_per_rank < self.max_running_per_rank:
            problems.append(
                f"step_tokens_per_rank: {self.step_tokens_per_rank} is below max_running_per_rank"
                f" ({self.max_running_per_rank})"
            )
        return problems

    def _autoscaling_problems(self) -> list[str]:
        given = sorted(_SCALING & self.model_fields_set)
        if self.max_engines is None:
            return [f"{name}: max_engines is not set, so engines do not scale" for name in given]
        if "engines" in self.model_fields_set:
            return ["engines: a fixed number contradicts max_engines"]
        if (self.min_engines or 0) > self.max_engines:
            return [f"min_engines: {self.min_engines} is above max_engines ({self.max_engines})"]
        if self.min_engines != 0:
            unused = "scale_to_zero_delay_s: engines scale to zero only with min_engines 0"
            return [unused] if "scale_to_zero_delay_s" in given else []
        if self.no_engine_timeout_s == 0:
            return ["no_engine_timeout_s: with min_engines 0 requests must wait for an engine"]
        return []

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
        return Settings(**loaded.model_dump(exclude_unset=True))
    except ValidationError as error:
        raise SettingsError(_describe(error, config, flags)) from error


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

    _refuse_repeated_keys(config)

    class FileSettings(Settings):
        _sources_below = (file_source,)

    return FileSettings


def _refuse_repeated_keys(config: Path) -> None:
    """YAML's library keeps the last one without a word."""
    root = yaml.compose(config.read_text(), Loader=yaml.SafeLoader)
    names = [key.value for key, _ in root.value] if isinstance(root, yaml.MappingNode) else []
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(f"{', '.join(repeated)}: more than once, in {config}")


def _refuse_unknown_environment() -> None:
    known = {f"{ENVIRONMENT_PREFIX}{name}".upper() for name in Settings.model_fields}
    unknown = [
        name for name in os.environ if name.upper().startswith(ENVIRONMENT_PREFIX)
        and name.upper() not in known
    ]  # fmt: skip
    if unknown:
        raise SettingsError(f"unknown environment variables: {', '.join(sorted(unknown))}")


def _describe(error: ValidationError, config: Path | None, flags: Mapping[str, Any]) -> str:
    lines = []
    for item in error.errors():
        message = item["msg"].removeprefix("Value error, ")
        if not item["loc"]:  # of several settings together; the message names them
            lines.append(message)
            continue
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            message = "unknown setting"
        elif name != "cluster_token":  # a secret stays out of messages
            message += f" (got {item['input']!r})"
        lines.append(f"{name}: {message}{_origin(str(item['loc'][0]), config, flags)}")
    return "; ".join(lines)


def _origin(name: str, config: Path | None, flags: Mapping[str, Any]) -> str:
    variable = f"{ENVIRONMENT_PREFIX}{name}".upper()
    if name in flags:
        return f", in --{name.replace('_', '-')}"
    if variable in map(str.upper, os.environ):
        return f", in {variable}"
    return f", in {config}" if config else ""
