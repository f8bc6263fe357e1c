"""Redis and PostgreSQL over TLS: certificates, host names and passwords are checked, and refusals keep the secret."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from app.database.connection import open_database
from app.queue.celery_app import make_app
from app.queue.client import BROKER_AWAY
from app.queue.publisher import Broker
from app.settings import Settings, load_settings
from tests.support.tls_servers import PASSWORD, Authority, TLSServer


def test_messages_are_published_in_bulk_over_tls(secure_redis: TLSServer) -> None:
    broker = Broker(make_app(load_settings(redis_url=secure_redis.redis_url())))
    broker.push({"tls-test": [f"message {number}" for number in range(1200)]})
    assert broker.waiting(["tls-test"]) == 1200
    broker.redis.delete("farm:tls-test")
    broker.close()


def test_the_database_is_migrated_and_used_over_tls(secure_postgresql: TLSServer) -> None:
    database = open_database(load_settings(database_url=secure_postgresql.database_url()))
    with database.connect() as connection:
        ours = text("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert connection.execute(ours).one() == (True, "TLSv1.3")
    assert "hush" not in f"{database!r} {database.url}"
    database.dispose()


def _redis_refused(url: str) -> str:
    with pytest.raises(BROKER_AWAY) as refused:
        Broker(make_app(_settings(redis_url=url))).redis.ping()
    return _whole(refused.value)


def _database_refused(url: str) -> str:
    with pytest.raises(OperationalError) as refused:
        open_database(_settings(database_url=url))
    return _whole(refused.value)


def _settings(**given: str) -> Settings:
    return load_settings(**given)


def _whole(error: BaseException | None) -> str:
    """The error and all that led to it, as a log with a traceback would show them."""
    lines = []
    while error is not None:
        lines.append(f"{error!r} {error}")
        error = error.__cause__ or error.__context__
    assert "hush" not in "\n".join(lines)
    return "\n".join(lines)


def test_redis_with_a_certificate_of_another_authority_is_refused(secure_redis: TLSServer, stranger: Authority) -> None:
    assert "certificate verify failed" in _redis_refused(secure_redis.redis_url(trusts=stranger))


def test_redis_is_checked_against_the_machines_authorities_where_the_url_names_none(secure_redis: TLSServer) -> None:
    assert "certificate verify failed" in _redis_refused(secure_redis.redis_url().split("?")[0])


def test_redis_under_another_host_name_is_refused(secure_redis: TLSServer) -> None:
    assert "certificate" in _redis_refused(secure_redis.redis_url().replace("@localhost", "@127.0.0.1"))


def test_redis_with_a_wrong_password_is_refused(secure_redis: TLSServer) -> None:
    assert "invalid username-password" in _redis_refused(secure_redis.redis_url(password=PASSWORD + "!"))


def test_a_tls_redis_is_not_spoken_to_in_clear(secure_redis: TLSServer) -> None:
    url = secure_redis.redis_url().split("?")[0].replace("rediss://", "redis://")
    assert "reading from localhost" in _redis_refused(url)  # the server hangs up


def test_postgresql_with_a_certificate_of_another_authority_is_refused(
    secure_postgresql: TLSServer, stranger: Authority
) -> None:
    assert "certificate verify failed" in _database_refused(secure_postgresql.database_url(trusts=stranger))


def test_postgresql_under_another_host_name_is_refused(secure_postgresql: TLSServer) -> None:
    url = secure_postgresql.database_url().replace("@localhost", "@127.0.0.1")
    assert "does not match host name" in _database_refused(url)


def test_postgresql_with_a_wrong_password_is_refused(secure_postgresql: TLSServer) -> None:
    refused = _database_refused(secure_postgresql.database_url(password=PASSWORD + "!"))
    assert "password authentication failed" in refused


def test_postgresql_without_tls_is_refused_by_the_server(secure_postgresql: TLSServer) -> None:
    assert "no encryption" in _database_refused(secure_postgresql.database_url().replace("verify-full", "disable"))


def test_servers_that_are_away_are_told_without_their_passwords(authority: Authority) -> None:
    nobody = replace(TLSServer(1, authority))
    assert "refused" in _redis_refused(nobody.redis_url())
    assert "refused" in _database_refused(nobody.database_url())


def test_the_password_is_asked_for_at_all(secure_redis: TLSServer) -> None:
    client = redis.Redis(port=secure_redis.port, ssl=True, ssl_ca_certs=str(secure_redis.authority.certificate))
    with pytest.raises(redis.AuthenticationError):
        client.ping()
