"""docs/cluster.md: its commands exist with the options that it gives them, its units and URLs hold."""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import app.results.cli
import producer.cli
import workers.cli
from app.settings import Settings, load_settings

PAGE = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text()
PROGRAMS = {"producer": producer.cli.main, "results": app.results.cli.main, "workers": workers.cli.main}


def _commands() -> Iterator[list[str]]:
    for block in re.findall(r"```(?:sh|ini)\n(.*?)```", PAGE, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.search(r"(?:^|[/ ])((?:producer|results|workers) [a-z]+ --.*)", line):
                yield shlex.split(found[1], comments=True)


COMMANDS = list(_commands())


def test_the_page_has_commands() -> None:
    assert {words[0] for words in COMMANDS} == set(PROGRAMS)
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_each_command_takes_the_options_that_the_page_gives_it(words: list[str]) -> None:
    group = PROGRAMS[words[0]]
    assert isinstance(group, click.Group)
    command = group.commands[words[1]]
    files = {"--stage1-result", "--input-data", "--image-root"}  # they are not here
    known = {name: option for option in command.params for name in option.opts}
    arguments = words[2:]
    for name, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if name.startswith("--"):
            assert name in known
            if name not in files and not value.startswith("--") and value:
                known[name].type.convert(value, known[name], None)


def test_the_settings_and_addresses_of_the_page_hold() -> None:
    variables = re.findall(r"FARM_([A-Z_]+)", PAGE)
    assert variables
    for variable in variables:
        assert variable.lower() in Settings.model_fields
    [redis_url] = re.findall(r"^REDIS_URL='(\S+)'$", PAGE, re.M)
    [database_url] = re.findall(r"^DATABASE_URL='(\S+)'$", PAGE, re.M)
    assert load_settings(redis_url=redis_url, database_url=database_url).redis_url
    assert Settings.model_fields["queue_shards"].default == 64


def test_the_unit_stops_the_launcher_and_waits_longer_than_the_grace() -> None:
    [unit] = re.findall(r"```ini\n(.*?)```", PAGE, re.S)
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(unit)
    service = parser["Service"]
    assert (service["KillMode"], service["KillSignal"]) == ("mixed", "SIGTERM")
    assert float(service["TimeoutStopSec"]) >= load_settings().shutdown_grace_s + 15
    assert "PASSWORD" not in unit
