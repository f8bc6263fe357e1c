"""What the three commands share: help that explains itself, versions, the field's words, numbers that are numbers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from app.results.cli import main as results
from producer.cli import main as producer
from workers.cli import main as workers

ROOT = Path(__file__).parents[1]
PROGRAMS = {"producer": producer, "results": results, "workers": workers}
PRIVATE_WORDS = re.compile(
    r"\b(road|door|house|houses|housekeeper|texts|in hand|begun|beside|anew|hand(s|ed)? (it )?back|deaf|strikes?|whose "
    r"worker is gone|written together|what generates|the device tells|the old script)\b",
    re.I,
)
DOCUMENTS = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docker/compose.yaml")
]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))


def commands() -> dict[str, click.Command]:
    """Every command and group by what one types."""
    found: dict[str, click.Command] = dict(PROGRAMS)
    for name, command in list(found.items()):
        pending = [(name, command)]
        while pending:
            typed, one = pending.pop()
            found[typed] = one
            if isinstance(one, click.Group):
                pending += [(f"{typed} {part}", inner) for part, inner in one.commands.items()]
    return found


COMMANDS = commands()


def call(name: str, *arguments: str) -> str:
    program, *rest = name.split()
    done = CliRunner().invoke(PROGRAMS[program], [*rest, *arguments], prog_name=program)
    assert done.exit_code == 0, done.output
    return done.output


def help_of(option: click.Parameter) -> str:
    assert isinstance(option, click.Option)
    return option.help or ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_version_and_two_spellings_of_help(name: str) -> None:
    assert call(name, "--version") == f"relation-farm {version('relation-farm')}\n"
    assert call(name, "-h") == call(name, "--help")
    assert f"Usage: {name}" in call(name, "-h")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_line_of_help_stands_alone_and_names_its_default(name: str) -> None:
    command = COMMANDS[name]
    for option in command.params:
        if isinstance(option, click.Argument):  # it has no help of its own: the command's names it
            assert option.human_readable_name.upper() in call(name, "--help").partition("Options:")[0]
            continue
        said = help_of(option)
        assert re.match(r"[A-Z]", said), option.name
        assert said.endswith("."), option.name
        assert len(said.split()) >= 4, f"{option.name}: {said}"
        assert not re.match(r"(And|Of|By|Or|It|What|How|Where)\b", said), f"{option.name}: {said}"
        if "without effect" not in said and not option.required and not getattr(option, "is_flag", False):
            assert getattr(option, "show_default", None), f"{option.name} names no default"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_uses_the_words_of_the_glossary(name: str) -> None:
    assert not PRIVATE_WORDS.search(call(name, "--help"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_use_the_words_of_the_glossary(path: Path) -> None:
    # The glossary itself lists the words that it replaces, if it must, in code spans.
    text = re.sub(r"`[^`\n]*`", "", path.read_text())
    assert not [found[0] for found in PRIVATE_WORDS.finditer(text)]


def test_log_lines_use_the_words_of_the_glossary() -> None:
    said = []
    for package in ("app", "producer", "workers"):
        for path in (ROOT / package).rglob("*.py"):
            said += re.findall(r'(?:log\.\w+|echo|say)\(\s*f?"([^"]*)"', path.read_text())
    assert len(said) > 20
    assert not [line for line in said if PRIVATE_WORDS.search(line)]


@pytest.mark.parametrize("given", ["nan", "inf", "0", "-1"])
def test_a_pause_that_is_none_is_wrong_use(given: str) -> None:
    assert CliRunner().invoke(results, ["status", "--watch", given]).exit_code == 2
    assert CliRunner().invoke(results, ["failures", "--limit", given]).exit_code == (2 if given != "1" else 0)


def test_a_checkout_that_is_not_installed_says_so(tmp_path: Path) -> None:
    code = (
        "import importlib.metadata as m\n"
        "known = m.version\n"
        "def gone(name):\n"
        "    if name == 'relation-farm': raise m.PackageNotFoundError(name)\n"
        "    return known(name)\n"
        "m.version = gone\n"
        "from producer.cli import main\nmain(['--version'])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "relation-farm of a checkout that is not installed\n")
