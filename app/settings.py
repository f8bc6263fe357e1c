"""Every setting of the farm: its default, its unit and the environment variable that sets it.

Nothing else in the project reads the environment. A variable is the field's name in capitals behind ``FARM_``
(``FARM_LEASE_S``); only ``REDIS_URL`` and ``DATABASE_URL`` keep the names that everyone knows. An empty variable counts
as one that is not set. Commands pass what was given as options to ``load_settings`` and to the workers that they start.
``docs/settings.md`` is generated from this module.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as NotParsed

from app.errors import SettingsError
from app.urls import checked_base_url, checked_redis_url

_PREFIX = "FARM_"
_DAY_S = 86_400.0

EngineName = Literal["auto", "builtin", "transformers", "vllm", "openai"]
DtypeName = Literal["float32", "bfloat16", "float16"]
ENGINES: tuple[str, ...] = get_args(EngineName)
DTYPES: tuple[str, ...] = get_args(DtypeName)
LogFormat = Literal["text", "json"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
LOG_FORMATS: tuple[str, ...] = get_args(LogFormat)
LOG_LEVELS: tuple[str, ...] = get_args(LogLevel)
DEVICES = ("auto", "cpu", "cuda", "cuda:N")

SHARD_LEASE_S = 45
"""How long a worker's lease of a queue shard lasts; it is renewed with the messages, every ``refresh_s``."""


def _seconds(default: float, description: str, *, least: float) -> Any:
    """A duration. Finite, and short enough that no clock or timeout of another library overflows."""
    return Field(default, ge=least, le=_DAY_S, allow_inf_nan=False, description=description)


CONFIG = "FARM_CONFIG"
CONFIG_FILE = Path("farm.toml")  # of the current folder, where CONFIG and --config name none
_CONFIG: ContextVar[Path | None] = ContextVar("config", default=None)


class _ConfigFile(TomlConfigSettingsSource):
    """The file's keys are the fields' names in small letters: ``redis_url``, ``model``, ``lease_s``."""

    def __call__(self) -> dict[str, Any]:
        """As pydantic-settings says; under the names that the environment gives, so that each goes before this."""
        return {_NAMED_BY_ALIAS.get(name, name): value for name, value in super().__call__().items()}


class Settings(BaseSettings):
    """One process's settings; durations in seconds, sizes in the unit that the name ends in."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", populate_by_name=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options go before the environment, and that before the file."""
        path = _CONFIG.get()
        return init_settings, env_settings, *([_ConfigFile(settings_cls, path)] if path else [])

    # where things are
    redis_url: SecretStr | None = Field(
        None,
        validation_alias="REDIS_URL",
        description="URL of the broker: redis://, rediss:// for TLS, unix://, or the same with valkey; one server, no "
        "Sentinel or Cluster. Without it an embedded Valkey server is started under the state folder.",
    )
    database_url: SecretStr | None = Field(
        None,
        validation_alias="DATABASE_URL",
        description="URL of the database: postgresql://… or sqlite:///PATH. Without it an SQLite file in the state "
        "folder.",
    )
    state_dir: Path = Field(
        Path(".farm"), description="Folder of the embedded broker, the SQLite file and the workers' logs."
    )
    image_root: Path | None = Field(
        None, description="Folder on this host that relative image paths start from. Without it the run's own."
    )

    image_prefixes: tuple[str, ...] = Field(
        (),
        description="OLD=NEW, each saying which folder NEW of this host stands for the folder OLD of the producer's, "
        "as a JSON list of strings. The longest OLD that fits wins.",
    )
    wait_images_s: float = _seconds(
        600.0, "Seconds to wait for images that are away as a whole, before their pairs fail.", least=0.0
    )

    # the model and its engine
    model: str = Field(
        "small", min_length=1, description='Model: "small" (the one that comes along), a folder, or a hub name.'
    )
    model_revision: str | None = Field(
        None, min_length=1, description="Branch, tag or commit of a hub model. Without it the hub's default branch."
    )
    engine: EngineName = Field(
        "auto",
        description='Engine that generates. "auto" is the built-in one for the Qwen-VL families and that of '
        "transformers for every other model.",
    )
    base_url: str | None = Field(
        None,
        description="Address of an OpenAI-compatible chat server that has the model, like http://host:8000/v1; "
        '"auto" is then "openai".',
    )
    api_key_env: str | None = Field(
        None, description="NAME of the environment variable that holds the key of the server at FARM_BASE_URL."
    )
    request_timeout_s: float = _seconds(
        600.0, "Seconds that a server may take for one description, before it is asked again.", least=0.1
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$",
        description='Device: auto, cpu, cuda or cuda:N. "auto" is the first GPU, or the CPU where there is none.',
    )
    dtype: DtypeName | None = Field(
        None, description="Type of the weights. Without it bfloat16 on a GPU and float32 on a CPU."
    )
    batch_size: int | None = Field(
        None, ge=1, le=65_536, description="Most generations decoded together. Without it as many as memory allows."
    )
    memory_fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Share of one GPU's memory that this process may use, 0 to 1. Without it 0.8, divided by the "
        "workers on the GPU.",
    )
    gpus_per_worker: int = Field(
        1,
        ge=1,
        le=64,
        description="GPUs that one worker's model is spread over (vLLM's tensor parallelism).",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads of torch in one worker. Without it the machine's cores, divided by its workers.",
    )
    image_read_s: float = _seconds(
        30.0, "Seconds that the system may take for one step of reading an image, before the read is abandoned.",
        least=0.1,
    )  # fmt: skip
    max_image_pixels: int = Field(
        178_956_970, ge=1, description="Most pixels of an image file; a larger one fails its pairs, undecoded."
    )

    # one worker process
    worker_id: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Name of this worker process in claims and rows; `workers up` gives one. Without it one is made.",
    )
    only_run: str | None = Field(
        None, description="UUID of the one run to work for. Without it every run of the model."
    )
    pairs_in_flight: int = Field(
        32, ge=1, le=4096, description="Pairs that one worker runs at once (the concurrency of Celery)."
    )
    max_attempts: int = Field(
        3, ge=1, le=1000, description="Attempts at a pair whose model fails, or whose worker dies while it runs alone."
    )
    lease_s: float = _seconds(
        30.0, "Seconds after which a claim that is not renewed has expired, so that another worker may take it.",
        least=1.0,
    )  # fmt: skip
    shutdown_grace_s: float = _seconds(
        20.0, "Seconds after SIGTERM in which a worker finishes pairs, before it requeues the rest.", least=0.0
    )

    # the queue
    queue_shards: int = Field(
        64,
        ge=1,
        le=1024,
        description="Queue shards of a model; an image's pairs share one. The same on every host.",
    )
    visibility_timeout_s: float = _seconds(
        40.0, "Seconds after which Redis redelivers a message that no worker acknowledges or refreshes.", least=1.0
    )
    refresh_s: float = _seconds(
        10.0, "Seconds between two refreshes of a worker's unacknowledged messages and shard leases.", least=0.1
    )
    sweep_s: float = _seconds(
        5.0, "Seconds between two searches for lost messages and expired leases.", least=0.1
    )  # fmt: skip

    # what is said of the work
    log_format: LogFormat = Field(
        "text", description="Form of the log lines: text for people, or json, one object a line."
    )
    log_level: LogLevel | None = Field(
        None, description="Least severe level that is logged. Without it INFO of workers, WARNING of producers."
    )
    log_file: Path | None = Field(
        None, description="File of a worker's log, which logrotate may move; `workers up --log-dir` gives one each."
    )
    events: bool = Field(
        False, description="Whether workers send Celery's events of every pair through Redis, for Flower."
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="TCP port at which a worker answers Prometheus. Without it none; `workers up` counts up from it.",
    )
    metrics_host: str = Field(
        "127.0.0.1", min_length=1, description="Address that metrics are served at. Anybody who reaches it reads them."
    )
    restarts: int = Field(0, ge=0, description="Restarts of this worker's slot so far; `workers up` counts them.")
    summary_s: float = _seconds(
        60.0, "Seconds between two lines of a worker that sum up its pairs, rates, rows at work and memory.",
        least=0.1,
    )  # fmt: skip

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, level: object) -> object:
        return level.upper() if isinstance(level, str) else level

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: SecretStr | None) -> SecretStr | None:
        return SecretStr(checked_redis_url(url.get_secret_value())) if url else None

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, url: SecretStr | None) -> SecretStr | None:
        return SecretStr(url.get_secret_value().strip()) if url else None

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, url: str | None) -> str | None:
        return checked_base_url(url) if url else None

    @field_validator("api_key_env")
    @classmethod
    def _check_api_key_env(cls, name: str | None) -> str | None:
        if name and not name.isidentifier():
            raise ValueError("this is the NAME of an environment variable, not the key")
        return name or None

    @model_validator(mode="after")
    def _validate_consistency(self) -> Settings:
        """Each setting may hold by itself and yet not alongside another."""
        if problems := [f"{_shown(self, *names)}: {why}" for names, why in self._contradictions()]:
            raise ValueError("; ".join(problems))
        return self

    def _contradictions(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """The names of settings that do not go together, and why."""
        if self.engine == "openai" and not self.base_url:
            yield ("engine", "base_url"), "the first needs the second (--base-url), the address of its server"
        if self.base_url and self.engine not in ("auto", "openai"):
            yield ("base_url", "engine"), "the first (--base-url) is for the engine openai alone"
        if self.refresh_s * 2 > self.visibility_timeout_s:
            yield (
                ("refresh_s", "visibility_timeout_s"),
                "the first must be at most half of the second, or messages of healthy workers are delivered twice",
            )
        if self.refresh_s * 2 > SHARD_LEASE_S:
            yield (
                ("refresh_s",),
                f"must be at most half of a shard lease ({SHARD_LEASE_S} s), which is renewed as often, "
                "or two workers drain one shard and encode its images twice",
            )
        if self.sweep_s > self.visibility_timeout_s:
            yield (
                ("sweep_s", "visibility_timeout_s"),
                "the first must not be above the second, or lost messages come back long after their timeout",
            )
        if self.sweep_s > 2 * self.lease_s:
            yield (
                ("sweep_s", "lease_s"),
                "the first must be at most twice the second, or expired leases are noticed long after their end",
            )

    @field_validator("image_prefixes")
    @classmethod
    def _check_prefixes(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in prefixes:
            parse_prefix(prefix)
        return prefixes

    @property
    def prefixes(self) -> tuple[tuple[str, str], ...]:
        """``image_prefixes``, parted."""
        return tuple(map(parse_prefix, self.image_prefixes))

    @property
    def api_key(self) -> SecretStr | None:
        """The server's key, out of the variable that ``api_key_env`` names. Raises SettingsError if it is not set."""
        if not self.api_key_env:
            return None
        if key := os.environ.get(self.api_key_env, "").strip():
            return SecretStr(key)
        raise SettingsError(f"FARM_API_KEY_ENV names {self.api_key_env}, and there is no such environment variable")

    @property
    def sqlite_path(self) -> Path:
        """The embedded database's file."""
        return self.state_dir.resolve() / "farm.sqlite"

    def environment(self) -> dict[str, str]:
        """What a child process needs in its environment to have these settings."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name not in _NAMED_BY_ALIAS}
        values["state_dir"] = self.state_dir.resolve()
        found = {variable_of(name): _written(value) for name, value in values.items() if value is not None}
        found[CONFIG] = os.devnull  # all of it is here; a file in the child's folder adds nothing
        for name, variable in _NAMED_BY_ALIAS.items():
            if secret := getattr(self, name):
                found[variable] = secret.get_secret_value()
        return found


_NAMED_BY_ALIAS = {"redis_url": "REDIS_URL", "database_url": "DATABASE_URL"}
_MAY_HOLD_SECRETS = {*_NAMED_BY_ALIAS.values(), "FARM_BASE_URL", "FARM_API_KEY_ENV"}  # the last two by mistake
_OVERRIDES_OF_CELERY = (
    "CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_CONFIG_MODULE", "CELERY_LOADER"
)  # fmt: skip
"""With one of these Celery takes another broker or configuration than the settings say."""


def _written(value: Any) -> str:
    return json.dumps(value) if isinstance(value, tuple) else str(value)


def parse_prefix(text: str) -> tuple[str, str]:
    """``OLD=NEW`` parted at its first "=". Raises ValueError, which says what is wrong."""
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise ValueError(f"{text!r} is not OLD=NEW, the beginning of a path and the folder that stands for it here")
    return old, new


def load_settings(config: Path | None = None, /, **given: Any) -> Settings:
    """Settings from the environment, with ``given`` (those not None) on top, and below it those of a TOML file:
    ``config``, else that which FARM_CONFIG names, else ``farm.toml`` in the current folder if there is one.

    Raises SettingsError for an unknown ``FARM_`` variable or a value that does not hold, and names it.
    """
    known = {CONFIG, *(variable_of(name) for name in Settings.model_fields)}
    if unknown := sorted(set(filter(lambda name: name.startswith(_PREFIX), os.environ)) - known):
        raise SettingsError(f"unknown setting {unknown[0]}; known are {', '.join(sorted(known))}")
    if overrides := [name for name in _OVERRIDES_OF_CELERY if os.environ.get(name)]:
        raise SettingsError(f"{overrides[0]} is set, which Celery puts before the farm's settings; use REDIS_URL")
    for variable, value in [(name, os.environ.get(name, "")) for name in known] + list(given.items()):
        if isinstance(value, str | Path) and not is_text(str(value)):
            raise SettingsError(f"{variable_of(variable)} holds bytes that are not UTF-8")
    path = _config_file(config)
    chosen = _CONFIG.set(path)
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: this is no TOML: {error}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: this is no UTF-8") from None
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except NotParsed as error:  # its text has the field's name in quotes, and no value
        name = str(error).partition('"')[2].partition('"')[0]
        raise SettingsError(f"{variable_of(name)} ({os.environ.get(variable_of(name), '')!s:.100}): no JSON") from None
    except ValidationError as error:
        raise SettingsError(_one_line(error.errors(include_url=False)[0], path, given)) from None
    finally:
        _CONFIG.reset(chosen)


def _config_file(config: Path | None) -> Path | None:
    """Which file is read. Raises SettingsError where the one that is named is not there."""
    named = os.environ.get(CONFIG)
    if config is None and not named:
        return CONFIG_FILE if CONFIG_FILE.is_file() else None
    path = config or Path(str(named))
    if path != Path(os.devnull) and not path.is_file():
        raise SettingsError(f"{'--config' if config else CONFIG} ({path}): there is no such file")
    return path


def is_text(value: str) -> bool:
    """Whether every byte of what the system gave us was UTF-8."""
    return not any("\udc80" <= character <= "\udcff" for character in value)


def variable_of(name: str) -> str:
    """The environment's name of a field, which may be given as that name already."""
    return name if name.isupper() else _NAMED_BY_ALIAS.get(name, f"{_PREFIX}{name.upper()}")


@lru_cache(maxsize=1)
def current_settings() -> Settings:
    """The process's settings, read once."""
    return load_settings()


def _shown(settings: Settings, *names: str) -> str:
    return " and ".join(f"{variable_of(name)} ({getattr(settings, name)})" for name in names)


def _one_line(error: ErrorDetails, path: Path | None, given: Mapping[str, Any]) -> str:
    """The variable, or the file and its key, then the value unless that is a secret, and what is wrong with it."""
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return message
    key = str(error["loc"][0])
    variable = variable_of(key)
    if error["type"] == "string_pattern_mismatch":
        message = f"is not one of {', '.join(DEVICES)}"  # the one setting with a pattern
    if error["type"] == "extra_forbidden":
        message = "there is no such setting (docs/settings.md)"
    from_file = path is not None and given.get(key) is None and not os.environ.get(variable)
    shown = f"{path}: {key}" if from_file else variable
    secret = variable in _MAY_HOLD_SECRETS
    return f"{shown}: {message}" if secret else f"{shown} ({error['input']!s:.100}): {message}"
