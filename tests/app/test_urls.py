"""REDIS_URL: what is taken, what is spelled out, and that no refusal repeats it."""

from __future__ import annotations

import ssl

import pytest

from app.database.connection import database_url
from app.errors import SettingsError
from app.queue.celery_app import make_app
from app.settings import load_settings
from app.urls import checked_redis_url


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379/0",
        "redis://:pw@localhost",
        "redis://user:p%40ss%2Fword@[::1]:6380/12",
        "rediss://:pw@host/0?ssl_cert_reqs=required&ssl_ca_certs=/etc/ca.pem",
        "redis+socket:///run/redis.sock?virtual_host=0",
    ],
)
def test_a_good_url_stays_as_it_is(url: str) -> None:
    assert checked_redis_url(url) == url
    assert checked_redis_url(f" {url}\n") == url


@pytest.mark.parametrize(
    ("url", "meaning"),
    [
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
        ("unix://u:p%40w@/run/redis.sock?db=3", "redis+socket://u:p%40w@/run/redis.sock?virtual_host=3"),
        ("valkey://:pw@host:1/2", "redis://:pw@host:1/2"),
        ("valkeys://host", "rediss://host?ssl_cert_reqs=required"),
        ("REDIS://host", "redis://host"),
    ],
)
def test_other_spellings_are_understood(url: str, meaning: str) -> None:
    assert checked_redis_url(url) == meaning


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://:hush@h/0?socket_timeout=5", "socket_timeout"),
        ("redis://:hush@h?db=1", "db"),
        ("redis://:hush@h/0?protocol=3", "protocol"),
        ("redis://:hush@h/0?retry_on_timeout=yes", "retry_on_timeout"),
        ("redis://h/0?password=hush", "password"),
        ("redis://:hush@h/0?max_connections=3", "max_connections"),
        ("rediss://:hush@h/0?ssl_check_hostname=no", "ssl_check_hostname"),
        ("unix:///run/redis.sock?virtual_host=hush", "virtual_host"),
        ("unix:///run/redis.sock?db=hush", "db"),
        ("unix://run/redis.sock", "whole URL|not a Redis URL"),
        ("unix://:hush@", "path"),
        ("sentinel://:hush@h:26379/mymaster", "Sentinel"),
        ("redis+sentinel://:hush@h:26379/mymaster/0", "Sentinel"),
        ("redis-cluster://:hush@h:7000", "Cluster"),
        ("redis://:hush@h1:6379,h2:6379/0", "several servers"),
        ("redis://:hush@h1:6379/0;redis://h2", "several servers"),
    ],
)
def test_what_is_not_understood_is_refused_by_its_name(url: str, name: str) -> None:
    with pytest.raises(SettingsError, match=name) as refused:
        load_settings(redis_url=url)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("options", ["", "?ssl_ca_certs=/etc/ca.pem"])
def test_rediss_without_a_word_on_certificates_means_that_they_are_checked(options: str) -> None:
    settings = load_settings(redis_url=f"rediss://:pw@localhost:1/0{options}", state_dir="x")
    with make_app(settings).connection_for_write() as connection:
        assert connection.ssl["ssl_cert_reqs"] is ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hush#hush@localhost:6379/0",
        "redis://:hush/hush@localhost:6379/0",
        "redis://:1234/hush@localhost:6379/0",
        "redis://:1234?hush@localhost/0",
        "redis://:hush@localhost:hush/0",
        "redis://:hush@localhost:6379/hush",
        "redis://:hush@localhost:6379/0?ssl_cert_reqs=required",
        "rediss://:hush@localhost:6379/0?ssl_cert_reqs=hush",
        "http://:hush@localhost:6379/0",
        ":hush@localhost:6379",
        "redis://",
    ],
)
def test_a_bad_url_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^REDIS_URL: ") as refused:
        load_settings(redis_url=url)
    assert "hush" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "url",
    ["postgresql://farm:1/hush@host:hush/farm", "postgresql:farm:hush@host", "mysql://farm:hush@host/farm", "hush"],
)
def test_a_bad_database_url_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^DATABASE_URL") as refused:
        database_url(load_settings(database_url=url))
    assert "hush" not in str(refused.value)


def test_settings_do_not_show_their_secrets() -> None:
    settings = load_settings(redis_url="redis://:hush@h/0", database_url="postgresql://farm:hush@h/farm")
    assert "hush" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert "hush" not in f"{database_url(settings)}{database_url(settings)!r}"
