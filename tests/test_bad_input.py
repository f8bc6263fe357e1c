"""Whatever a user gets wrong is one line that names it, in every command, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, make_url, text

from app.results.cli import main as results
from producer.cli import main as producer
from producer.run_request import Inputs
from tests.support.processes import CHECKOUT
from tests.support.runs import write_inputs
from workers.cli import main as workers

BYTES = "not\udcffutf8"  # as Python holds bytes that are not UTF-8

COMMANDS: dict[str, tuple[click.Command, Callable[[Inputs, Path], tuple[object, ...]]]] = {
    "producer enqueue": (producer, lambda files, _: ("enqueue", *of(files))),
    "producer run": (producer, lambda files, tmp: ("run", *of(files), "--output", tmp / "out.json", "--num-gpus", 0)),
    "producer check": (producer, lambda *_: ("check",)),
    "producer verify": (producer, lambda *_: ("verify",)),
    "producer retry": (producer, lambda *_: ("retry",)),
    "producer migrate": (producer, lambda *_: ("migrate",)),
    "producer pause": (producer, lambda *_: ("pause", "x")),
    "producer resume": (producer, lambda *_: ("resume", "x")),
    "producer cancel": (producer, lambda *_: ("cancel", "x")),
    "producer priority": (producer, lambda *_: ("priority", "x", 1)),
    "producer delete": (producer, lambda *_: ("delete", "x", "--yes")),
    "producer redo": (producer, lambda *_: ("redo", "--image", "1")),
    "producer stop": (producer, lambda *_: ("stop",)),
    "results export": (results, lambda _, tmp: ("export", "--out", tmp / "out.json")),
    "results check": (results, lambda *_: ("check",)),
    "results status": (results, lambda *_: ("status",)),
    "results runs": (results, lambda *_: ("runs",)),
    "results failures": (results, lambda *_: ("failures",)),
    "results drops": (results, lambda *_: ("drops",)),
    "results report": (results, lambda _, tmp: ("report", "--out", tmp / "out.json")),
    "results copy": (results, lambda _, tmp: ("copy", "--to", f"sqlite:///{tmp / 'copy.sqlite'}")),
    "workers up": (workers, lambda *_: ("up", "--num-gpus", 0, "--give-up")),
}

BAD: dict[str, tuple[dict[str, str], str]] = {  # what is wrong: the variables, and what the line must name
    "a database in memory": ({"DATABASE_URL": "sqlite://"}, "DATABASE_URL"),
    "a folder for a database": ({"DATABASE_URL": "sqlite:///{tmp}"}, "{tmp}"),
    "another file for a database": ({"DATABASE_URL": "sqlite:///{tmp}/in/images.json"}, "{tmp}/in/images.json"),
    "another kind of database": ({"DATABASE_URL": "mysql://a/b"}, "mysql"),
    "no URL": ({"DATABASE_URL": "::::"}, "DATABASE_URL"),
    "an option that PostgreSQL does not know": (
        {"DATABASE_URL": "postgresql://u@127.0.0.1:1/x?nonsense=1"},
        "nonsense",
    ),
    "a value that is none": (
        {"DATABASE_URL": "postgresql://u@127.0.0.1:1/x?prepare_threshold=no"},
        "prepare_threshold",
    ),
    "a mode of TLS that is none": ({"DATABASE_URL": "postgresql://u@127.0.0.1:1/x?sslmode=maybe"}, "sslmode"),
    "a port that is none": ({"DATABASE_URL": "postgresql://u@127.0.0.1:port/x"}, "DATABASE_URL"),
    "a server that is not there": ({"DATABASE_URL": "postgresql://u@127.0.0.1:1/x?prepare_threshold=0"}, "port 1"),
    "bytes in the database's name": ({"DATABASE_URL": f"sqlite:////tmp/{BYTES}"}, "DATABASE_URL"),
    "bytes in the broker's name": ({"REDIS_URL": f"redis://{BYTES}:1/0"}, "REDIS_URL"),
    "bytes in the state folder's name": ({"FARM_STATE_DIR": f"/tmp/{BYTES}"}, "FARM_STATE_DIR"),
    "a file for the state folder": ({"FARM_STATE_DIR": "{tmp}/in/images.json"}, "{tmp}/in/images.json"),
    "a state folder that cannot be made": ({"FARM_STATE_DIR": "/proc/nowhere"}, "/proc/nowhere"),
    "a broker of another kind": ({"REDIS_URL": "http://127.0.0.1:1"}, "REDIS_URL"),
    "a database number that is none": ({"REDIS_URL": "redis://127.0.0.1:1/abc"}, "REDIS_URL"),
    "a setting that is none": ({"FARM_NONSENSE": "1"}, "FARM_NONSENSE"),
    "a device that is none": ({"FARM_DEVICE": "tpu"}, "FARM_DEVICE (tpu)"),
    "prefixes that are no list": ({"FARM_IMAGE_PREFIXES": "a=b"}, "FARM_IMAGE_PREFIXES (a=b)"),
}


def of(files: Inputs) -> tuple[object, ...]:
    return ("--stage1-result", files.stage1, "--input-data", files.images)


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return write_inputs(tmp_path / "in", images=1, pairs=1)


def leaves(group: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command under a group, by the words that call it."""
    if not isinstance(group, click.Group):
        yield name, group
        return
    for word, command in group.commands.items():
        yield from leaves(command, f"{name} {word}")


PROGRAMS = {"producer": producer, "results": results, "workers": workers}
ALL = dict(leaf for name, main in PROGRAMS.items() for leaf in leaves(main, name))
NO_DATABASE = {"producer broker start", "producer broker stop", "workers calibrate"}


def test_no_command_is_left_out() -> None:
    assert set(COMMANDS) == set(ALL) - NO_DATABASE


@pytest.mark.parametrize("wrong", BAD)
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_wrong_in_the_environment_is_one_line(
    name: str, wrong: str, inputs: Inputs, tmp_path: Path, short_folder: Path
) -> None:
    program, arguments = COMMANDS[name]
    variables, named = BAD[wrong]
    environment = {"FARM_STATE_DIR": str(short_folder / "state"), "REDIS_URL": "redis://127.0.0.1:1/0"}
    environment |= {key: value.replace("{tmp}", str(tmp_path)) for key, value in variables.items()}
    done = CliRunner().invoke(program, [str(word) for word in arguments(inputs, tmp_path)], env=environment)
    assert isinstance(done.exception, SystemExit), done.output
    assert done.exit_code == 1
    last = done.output.strip().splitlines()[-1]
    assert last.startswith("Error: "), done.output
    assert named.replace("{tmp}", str(tmp_path)) in last
    assert not (tmp_path / "out.json").exists()


def bad_values(option: click.Parameter, tmp_path: Path) -> Iterator[str]:
    """What an option does not take, whichever it is."""
    yield BYTES
    match option.type:
        case click.Path() as path if not path.dir_okay:
            yield str(tmp_path / "in")
            if path.exists:
                yield str(tmp_path / "in" / "images.json" / "under a file")
        case click.Path():
            yield str(tmp_path / "in" / "images.json")
        case click.Choice():
            yield "none of these"
        case click.IntRange() | click.FloatRange() as numbers:
            wrong = ["many", "1e400", str(10**25), str(-(10**25))]
            if numbers.min:
                wrong.append(str(numbers.min - 1))
            # A value that may be left out does not begin with a dash.
            yield from (each for each in wrong if not (getattr(option, "flag_value", None) and each.startswith("-")))


@pytest.mark.parametrize("name", ALL)
def test_what_is_wrong_in_an_option_is_one_line_that_names_it(
    name: str, inputs: Inputs, tmp_path: Path, database_url: str, short_folder: Path
) -> None:
    environment = {"DATABASE_URL": database_url, "FARM_STATE_DIR": str(short_folder / "state")}
    environment["REDIS_URL"] = "redis://127.0.0.1:1/0"
    CliRunner().invoke(producer, ["migrate"], env=environment)
    program, *words = name.split()
    out, target = tmp_path / "out.json", f"sqlite:///{tmp_path / 'copy.sqlite'}"
    needed: dict[str, object] = {"stage1_results": inputs.stage1, "input_data": inputs.images, "images": 1}
    needed |= {"output": out, "out": out, "target": target}
    options = [each for each in ALL[name].params if not getattr(each, "is_flag", False)]
    assert options
    for option in options:
        for value in bad_values(option, tmp_path):
            given: dict[click.Parameter, object] = {
                each: needed[str(each.name)] for each in options if each.name in needed
            }
            given |= {each: 1 for each in options if isinstance(each, click.Argument)} | {option: value}
            call = [*words]
            for each, what in given.items():
                call += [str(what)] if isinstance(each, click.Argument) else [each.opts[0], *[str(what)] * each.nargs]
            done = CliRunner().invoke(PROGRAMS[program], call, env=environment)
            assert isinstance(done.exception, SystemExit), (call, done.exception)
            assert done.exit_code in (1, 2), (call, done.output)
            last = done.output.strip().splitlines()[-1]
            shown = value.replace("\udcff", r"\udcff")
            assert shown in last or str(option.opts[0]) in last or option.human_readable_name in last, (call, last)
            assert last.startswith("Error: "), (call, last)
    assert not out.exists()


@pytest.mark.parametrize(
    "wrong",
    ["a folder for a database", "another file for a database", "bytes in the broker's name",
     "a file for the state folder", "an option that PostgreSQL does not know", "a state folder that cannot be made"],
)  # fmt: skip
def test_a_worker_that_cannot_start_says_why_in_one_line_and_ends(
    wrong: str, inputs: Inputs, tmp_path: Path, short_folder: Path
) -> None:
    variables, named = BAD[wrong]
    environment = os.environ | {"FARM_STATE_DIR": str(short_folder / "state"), "FARM_MODEL": "small"}
    environment |= {key: value.replace("{tmp}", str(tmp_path)) for key, value in variables.items()}
    command = [sys.executable, "-m", "celery", "-A", "workers", "worker"]
    done = subprocess.run(
        command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 78, done.stderr
    assert "Traceback" not in done.stderr
    assert named.replace("{tmp}", str(tmp_path)) in done.stderr.strip().splitlines()[-1]


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
def other_encoding(postgresql: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a database in another encoding."""
    name = f"encoded_{request.param.lower()}"
    server = create_engine(make_url(postgresql).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} ENCODING '{request.param}' TEMPLATE template0 LOCALE 'C'"))
    yield make_url(postgresql).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.mark.parametrize("name", ["producer enqueue", "producer migrate", "results status", "workers up"])
def test_a_database_in_another_encoding_is_refused(
    name: str, other_encoding: str, inputs: Inputs, tmp_path: Path
) -> None:
    program, arguments = COMMANDS[name]
    environment = {"DATABASE_URL": other_encoding, "REDIS_URL": "redis://127.0.0.1:1/0"}
    done = CliRunner().invoke(program, [str(word) for word in arguments(inputs, tmp_path)], env=environment)
    assert done.exit_code == 1
    assert "not in UTF8; make one by `createdb --encoding UTF8" in done.output


@pytest.mark.parametrize("threshold", ["0", "none", "5"])
def test_psycopgs_own_option_is_taken(postgresql: str, threshold: str) -> None:
    url = make_url(postgresql).update_query_dict({"prepare_threshold": threshold})
    environment = {"DATABASE_URL": url.render_as_string(hide_password=False)}
    done = CliRunner().invoke(producer, ["migrate"], env=environment)
    assert done.exit_code == 0, done.output
