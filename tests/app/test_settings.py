"""Settings: each from its variable, unknown ones refused, secrets kept."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from app.errors import SettingsError
from app.settings import DTYPES, ENGINES, Settings, load_settings, variable_of
from producer.cli import main as producer_cli
from workers.cli import main as workers_cli


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
        ("FARM_PAIRS_IN_FLIGHT", "1000000"),
        ("FARM_QUEUE_SHARDS", "1025"),
        ("FARM_BATCH_SIZE", "1e3"),
        ("FARM_THREADS", "0"),
        ("FARM_DTYPE", "foo"),
        ("FARM_DTYPE", "torch.float32"),
        ("FARM_DEVICE", "gpu"),
        ("FARM_DEVICE", "cuda:x"),
        ("FARM_LEASE_S", "inf"),
        ("FARM_LEASE_S", "0.001"),
        ("FARM_LEASE_S", "1e300"),
        ("FARM_SHUTDOWN_GRACE_S", "nan"),
        ("FARM_VISIBILITY_TIMEOUT_S", "inf"),
        ("FARM_REFRESH_S", "nan"),
        ("FARM_SWEEP_S", "-inf"),
        ("FARM_MEMORY_FRACTION", "nan"),
        ("FARM_MEMORY_FRACTION", "0"),
    ],
)
def test_a_value_that_does_not_hold_is_refused_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert str(raised.value).startswith(f"{variable} ({value}): ")
    assert "\n" not in str(raised.value)


CONTRADICTIONS = [
    ({"refresh_s": 30, "visibility_timeout_s": 40}, ["FARM_REFRESH_S (30.0)", "FARM_VISIBILITY_TIMEOUT_S (40.0)"]),
    ({"refresh_s": 300, "visibility_timeout_s": 900}, ["FARM_REFRESH_S (300.0)", "shard lease (45 s)"]),
    ({"sweep_s": 50, "lease_s": 60}, ["FARM_SWEEP_S (50.0)", "FARM_VISIBILITY_TIMEOUT_S (40.0)"]),
    ({"sweep_s": 35, "lease_s": 15}, ["FARM_SWEEP_S (35.0)", "FARM_LEASE_S (15.0)"]),
]


@pytest.mark.parametrize(("given", "named"), CONTRADICTIONS)
def test_settings_that_do_not_go_together_are_refused_with_their_values(
    given: dict[str, float], named: list[str]
) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(**given)
    assert all(part in str(raised.value) for part in named)


def test_all_contradictions_are_told_at_once() -> None:
    with pytest.raises(SettingsError, match=r"FARM_REFRESH_S .*; FARM_SWEEP_S .*; FARM_SWEEP_S "):
        load_settings(refresh_s=30, sweep_s=100)


def test_an_empty_variable_counts_as_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    unset = load_settings()
    for name in Settings.model_fields:
        monkeypatch.setenv(variable_of(name), "")
    assert load_settings() == unset


@pytest.mark.parametrize("variable", ["CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_CONFIG_MODULE"])
def test_what_celery_would_put_before_the_settings_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "redis://elsewhere/0")
    with pytest.raises(SettingsError, match=f"{variable} is set"):
        load_settings()


def test_the_engine_and_the_commands_take_the_names_of_the_settings() -> None:
    from workers.engine import config

    assert (*config.ENGINES, "openai") == ENGINES  # a server is configured otherwise
    assert [name for name in config.DTYPES if name is not None] == list(DTYPES)
    for name, group, command in (("engine", producer_cli, "run"), ("dtype", workers_cli, "up")):
        option = next(one for one in group.commands[command].params if one.name == name)
        assert isinstance(option.type, click.Choice)
        assert tuple(option.type.choices) == {"engine": ENGINES, "dtype": DTYPES}[name]


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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_option_goes_before_the_environment_and_that_before_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "farm.toml").write_text('redis_url = "redis://file:1/0"\nlease_s = 11\nqueue_shards = 8\nmodel = "m"\n')
    monkeypatch.setenv("REDIS_URL", "redis://variable:1/0")
    monkeypatch.setenv("FARM_LEASE_S", "12")
    monkeypatch.setenv("FARM_MODEL", "")
    found = load_settings(lease_s=13.0)
    assert (found.lease_s, found.queue_shards, found.model) == (13.0, 8, "m")
    assert found.redis_url is not None
    assert found.redis_url.get_secret_value() == "redis://variable:1/0"
    assert load_settings().lease_s == 12.0


def test_the_file_that_is_named_is_read_alone_and_children_read_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "farm.toml").write_text("lease_s = 11\nthreads = 3\n")
    (folder / "other.toml").write_text('lease_s = 14\nimage_prefixes = ["/a=/b"]\n')
    found = load_settings(Path("other.toml"))
    assert (found.lease_s, found.threads, found.prefixes) == (14.0, None, (("/a", "/b"),))
    monkeypatch.setenv("FARM_CONFIG", "other.toml")
    assert load_settings().lease_s == 14.0
    for name, value in found.environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings().threads is None
    assert load_settings().lease_s == 14.0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("lease_s = -1", "farm.toml: lease_s (-1): "), ("les = 3", "farm.toml: les (3): there is no such setting"),
        ("lease_s =", "farm.toml: this is no TOML: "), ("[lease_s]\na = 1", "farm.toml: lease_s ("),
        (b"model = '\xff'", "farm.toml: this is no UTF-8"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_one_line(folder: Path, content: str | bytes, said: str) -> None:
    (folder / "farm.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert str(refused.value).startswith(said)
    assert len(str(refused.value).splitlines()) == 1


def test_a_password_in_the_file_is_not_repeated(folder: Path) -> None:
    (folder / "farm.toml").write_text('redis_url = "redis://:hunter2@host:99999999/0"\n')
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "hunter2" not in str(refused.value)


def test_a_file_that_is_named_must_be_there(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"--config \(none.toml\): there is no such file"):
        load_settings(Path("none.toml"))
