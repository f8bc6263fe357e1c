"""A certificate authority, and Redis and PostgreSQL servers that speak TLS alone and ask for a password.

Debian's ``redis-server`` and ``postgresql``: the servers that come by pip are built without TLS. Where one of them
is not installed, what needs it is skipped with the reason.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
import redis

PASSWORD = "hush/hush@hush%hush hush"
"""Of both servers: every character that is special in a URL. A look for ``hush`` finds it however it is quoted."""

_START_S = 30.0


@dataclass(frozen=True)
class Authority:
    """A certificate authority of its own in a folder, with a server's certificate for localhost."""

    folder: Path

    @property
    def certificate(self) -> Path:
        """What a client trusts."""
        return self.folder / "ca.crt"

    def create(self) -> Authority:
        """Make the keys and certificates. Skips the test where there is no openssl."""
        if shutil.which("openssl") is None:
            pytest.skip("no openssl command to make certificates with")
        self.folder.mkdir(parents=True)
        self._openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout ca.key -out ca.crt "
                      "-subj /CN=authority -addext keyUsage=critical,keyCertSign")  # fmt: skip
        self._openssl("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.csr "
                      "-subj /CN=localhost")  # fmt: skip
        (self.folder / "server.ext").write_text("subjectAltName=DNS:localhost\n")
        self._openssl("x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 "
                      "-extfile server.ext -out server.crt")  # fmt: skip
        return self

    def _openssl(self, arguments: str) -> None:
        subprocess.run(["openssl", *arguments.split()], cwd=self.folder, check=True, capture_output=True, timeout=60)


@dataclass(frozen=True)
class TLSServer:
    """A server on localhost and what a client trusts to reach it."""

    port: int
    authority: Authority

    def redis_url(self, *, trusts: Authority | None = None, password: str = PASSWORD) -> str:
        """REDIS_URL with the certificate checked against ``trusts`` (default: the right authority)."""
        ca = (trusts or self.authority).certificate
        return f"rediss://:{quote(password, safe='')}@localhost:{self.port}/0?ssl_cert_reqs=required&ssl_ca_certs={ca}"

    def database_url(self, *, trusts: Authority | None = None, password: str = PASSWORD) -> str:
        """DATABASE_URL with the certificate and the host's name checked."""
        ca = (trusts or self.authority).certificate
        return (
            f"postgresql://farm:{quote(password, safe='')}@localhost:{self.port}/postgres"
            f"?sslmode=verify-full&sslrootcert={ca}"
        )


@contextmanager
def tls_redis(folder: Path, authority: Authority) -> Iterator[TLSServer]:
    """Debian's redis-server: TLS alone, its password in its configuration file and so in no process list."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on the PATH (Debian: apt-get install redis-server)")
    server = TLSServer(_free_port(), authority)
    keys = authority.folder
    configuration = folder / "redis.conf"
    configuration.write_text(
        f'port 0\nbind 127.0.0.1\ntls-port {server.port}\ntls-auth-clients no\nrequirepass "{PASSWORD}"\n'
        f"tls-cert-file {keys / 'server.crt'}\ntls-key-file {keys / 'server.key'}\n"
        f'tls-ca-cert-file {keys / "ca.crt"}\ndir {folder}\nsave ""\nlogfile {folder / "redis.log"}\n'
    )
    with _running([binary, str(configuration)], stop=signal.SIGTERM) as process:
        _until(lambda: _redis_answers(server), process, folder / "redis.log")
        yield server


@contextmanager
def tls_postgresql(authority: Authority) -> Iterator[TLSServer]:
    """Debian's postgresql: TLS alone, scram passwords; as an unprivileged user, since it refuses to run as root."""
    programs = _postgresql_programs()
    folder = Path(tempfile.mkdtemp(prefix="farm-tls-"))  # not pytest's folder, into which no other user may look
    try:
        server = TLSServer(_free_port(), authority)
        user = "nobody" if os.getuid() == 0 else None
        for name in ("server.key", "server.crt"):
            shutil.copy(authority.folder / name, folder)
        (folder / "password").write_text(PASSWORD)
        for path in (folder, *folder.iterdir()):
            os.chmod(path, 0o700 if path is folder else 0o600)
            if user:
                shutil.chown(path, user)
        _initialise(programs, folder, user)
        command = [str(programs / "postgres"), "-D", str(folder / "data"), "-p", str(server.port)]
        with _running(command, stop=signal.SIGINT, user=user, log=folder / "log") as process:
            _until(lambda: _postgresql_answers(server), process, folder / "log")
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _postgresql_programs() -> Path:
    found = [Path(path).resolve().parent for path in [shutil.which("initdb")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in found:
        if (folder / "initdb").exists() and b"--with-openssl" in subprocess.run(
            [folder / "pg_config", "--configure"], capture_output=True, timeout=20
        ).stdout.replace(b"--with-ssl=openssl", b"--with-openssl"):
            return folder
    pytest.skip("no PostgreSQL server with TLS (Debian: apt-get install postgresql)")


def _initialise(programs: Path, folder: Path, user: str | None) -> None:
    data = folder / "data"
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "farm", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}",
         "--no-locale", "--encoding=UTF8", "--no-sync"],
        user=user, cwd="/", check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
    with (data / "postgresql.conf").open("a") as configuration:
        configuration.write(
            f"ssl = on\nssl_cert_file = '{folder / 'server.crt'}'\nssl_key_file = '{folder / 'server.key'}'\n"
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\n"
        )


@contextmanager
def _running(
    command: list[str], *, stop: signal.Signals, user: str | None = None, log: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    output = log.open("wb") if log else subprocess.DEVNULL
    process = subprocess.Popen(command, user=user, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(answers: object, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not answers():  # type: ignore[operator]
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the server does not answer: {log.read_text()[-2000:] if log.exists() else 'no log'}")
        time.sleep(0.1)


def _redis_answers(server: TLSServer) -> bool:
    try:
        with closing(redis.Redis.from_url(server.redis_url(), socket_timeout=2)) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


def _postgresql_answers(server: TLSServer) -> bool:
    try:
        psycopg.connect(server.database_url(), connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
