"""Settings: each from its variable, unknown ones refused, secrets kept."""

from __future__ import annotations

import pytest

from app.errors import SettingsError
from app.settings import load_settings


def test_an_unknown_variable_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_LEASES_S", "5")
    with pytest.raises(SettingsError, match="FARM_LEASES_S"):
        load_settings()


def test_a_prefix_where_none_belongs_is_refused_with_the_right_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_REDIS_URL", "redis://host/0")
    with pytest.raises(SettingsError, match=r"FARM_REDIS_URL; known are .*, REDIS_URL$"):
        load_settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FARM_LEASE_S", "soon"),
        ("FARM_LEASE_S", "-1"),
        ("FARM_QUEUE_SHARDS", "0"),
        ("FARM_ENGINE", "steam"),
        ("FARM_MEMORY_FRACTION", "1.5"),
        ("FARM_PAIRS_IN_FLIGHT", "0"),
    ],
)
def test_a_value_that_does_not_hold_is_refused_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable):
        load_settings()


def test_a_refresh_slower_than_half_the_visibility_timeout_is_refused() -> None:
    with pytest.raises(SettingsError, match="FARM_REFRESH_S"):
        load_settings(refresh_s=30, visibility_timeout_s=40)


def test_options_go_before_the_environment_and_none_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_LEASE_S", "7")
    monkeypatch.setenv("FARM_MODEL", "from/environment")
    settings = load_settings(lease_s=9, model=None)
    assert (settings.lease_s, settings.model) == (9, "from/environment")


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hunter2@host/0")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hunter2@host/farm")
    settings = load_settings()
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump()}"
    assert settings.redis_url is not None
    assert "hunter2" in settings.redis_url.get_secret_value()


def test_a_child_process_gets_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    ours = load_settings(
        redis_url="redis://:secret@host/0", state_dir=str(tmp_path), batch_size=3, lease_s=4, image_root="/images"
    )
    for name, value in ours.environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings() == ours
