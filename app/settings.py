"""Every setting of the farm: its default, its unit and the environment variable that sets it.

Nothing else in the project reads the environment. A variable is the field's name in capitals behind ``FARM_``
(``FARM_LEASE_S``); only ``REDIS_URL`` and ``DATABASE_URL`` keep the names that everyone knows. Commands pass what
was given as options to ``load_settings`` and to the workers that they start.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import SettingsError
from app.redis_url import checked_redis_url

_PREFIX = "FARM_"


class Settings(BaseSettings):
    """One process's settings; durations in seconds, sizes in the unit that the name ends in."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid", populate_by_name=True)

    # where things are
    redis_url: SecretStr | None = Field(None, validation_alias="REDIS_URL")
    database_url: SecretStr | None = Field(None, validation_alias="DATABASE_URL")
    state_dir: Path = Path(".farm")  # the embedded broker and SQLite live here where no URL is given
    image_root: Path | None = None  # this host's root of relative image paths; else the run's

    # the model and its engine
    model: str = "small"  # "small" (shipped), a folder, or a hub name
    model_revision: str | None = None
    engine: Literal["auto", "builtin", "transformers", "vllm"] = "auto"
    device: str = "auto"  # "auto", "cpu", "cuda"
    dtype: str | None = None  # None: bfloat16 on CUDA, float32 on a CPU
    batch_size: int | None = Field(None, ge=1)  # cap of generations decoded together
    memory_fraction: float | None = Field(None, gt=0, le=1)  # of one GPU's memory, for this process
    threads: int | None = Field(None, ge=1)  # torch threads of one worker on a CPU
    max_image_pixels: int = Field(178_956_970, ge=1)  # a larger image is refused, not decoded

    # one worker process
    worker_id: str | None = None  # its name in claims and rows; the launcher gives one
    pairs_in_flight: int = Field(32, ge=1)  # Celery's concurrency: pairs that the engine may mix
    max_attempts: int = Field(3, ge=1)  # of a pair whose model fails or whose worker dies under it alone
    lease_s: float = Field(30.0, gt=0)  # a claim not renewed for so long is free
    shutdown_grace_s: float = Field(20.0, ge=0)  # after SIGTERM: finish what can be, then hand back

    # the queue
    queue_shards: int = Field(64, ge=1, le=1024)  # an image's pairs share a shard
    visibility_timeout_s: float = Field(40.0, gt=0)
    refresh_s: float = Field(10.0, gt=0)  # how often unacknowledged messages are kept alive
    sweep_s: float = Field(5.0, gt=0)  # how often lost messages and leases are looked for

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: SecretStr | None) -> SecretStr | None:
        return SecretStr(checked_redis_url(url.get_secret_value())) if url else None

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, url: SecretStr | None) -> SecretStr | None:
        return SecretStr(url.get_secret_value().strip()) if url else None

    @model_validator(mode="after")
    def _validate_consistency(self) -> Settings:
        if self.refresh_s * 2 > self.visibility_timeout_s:
            raise ValueError(
                f"FARM_REFRESH_S ({self.refresh_s}) must be at most half of FARM_VISIBILITY_TIMEOUT_S "
                f"({self.visibility_timeout_s}), or messages of healthy workers are delivered twice"
            )
        return self

    @property
    def sqlite_path(self) -> Path:
        """The embedded database's file."""
        return self.state_dir.resolve() / "farm.sqlite"

    def environment(self) -> dict[str, str]:
        """What a child process needs in its environment to have these settings."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name not in _NAMED_BY_ALIAS}
        values["state_dir"] = self.state_dir.resolve()
        found = {f"{_PREFIX}{name.upper()}": str(value) for name, value in values.items() if value is not None}
        for name, variable in _NAMED_BY_ALIAS.items():
            if secret := getattr(self, name):
                found[variable] = secret.get_secret_value()
        return found


_NAMED_BY_ALIAS = {"redis_url": "REDIS_URL", "database_url": "DATABASE_URL"}


def load_settings(**given: Any) -> Settings:
    """Settings from the environment, with ``given`` (those not None) on top.

    Raises SettingsError for an unknown ``FARM_`` variable or a value that does not hold, and names it.
    """
    known = {_variable(name) for name in Settings.model_fields}
    if unknown := sorted(set(filter(lambda name: name.startswith(_PREFIX), os.environ)) - known):
        raise SettingsError(f"unknown setting {unknown[0]}; known are {', '.join(sorted(known))}")
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{_variable(name) if name else 'settings'}: {message}") from None


def _variable(name: str) -> str:
    """The environment's name of a field, which may be given as that name already."""
    return name if name.isupper() else _NAMED_BY_ALIAS.get(name, f"{_PREFIX}{name.upper()}")


@lru_cache(maxsize=1)
def current_settings() -> Settings:
    """The process's settings, read once."""
    return load_settings()
