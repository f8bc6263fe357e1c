"""The architecture stays as it was drawn: who may import whom, sizes, and commands that explain themselves.

``python -m tools.imports`` prints what the first of these tests hold.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import click
import pytest

from tools.imports import FARM, PACKAGES, Imports, modules

ROOT = Path(__file__).parents[1]
OURS = {name: path for name, path in modules().items() if name.partition(".")[0] in FARM}

# Lower these where the code allows it; none may rise.
# The 31st of app: log lines (app.logs) are escaped by the one function that escapes (app.errors).
MOST_SIBLING_ARROWS = {"app": 30, "workers.engine": 40}
LONGEST_CHAIN = 8  # arrows
LONGEST_FILE = 300  # lines
TABLES = {"app.settings"}  # a setting a paragraph, with its help: longer, and not harder to read

# Third-party packages that a room does without, inside functions, too.
MAY_NOT_USE = {
    "app": {"torch", "transformers", "vllm"},
    "producer": {"torch", "transformers", "vllm"},
    "workers.engine": {"celery", "kombu", "sqlalchemy", "redis", "click"},
}
# The engine's policy is tested without a device.
WITHOUT_TORCH = (
    "workers.engine.api", "workers.engine.config", "workers.engine.request_queue",
    "workers.engine.packed.memory_planner", "workers.engine.packed.prefix_cache", "workers.engine.packed.scheduler",
)  # fmt: skip
# Commands start in well under a second.
HEAVY = ("torch", "transformers", "workers", "pyarrow", "PIL", "numpy")

MAY_TOUCH_THE_ENVIRONMENT = {
    "app.settings": "the one reader of the farm's own variables",
    "app.processes": "CUDA_VISIBLE_DEVICES, which is the driver's and is read before torch may be loaded",
    "producer.local": "hands its environment on to the processes that it starts",
    "producer.broker_keeper": "hands its environment on to the process that it starts",
    "workers.launcher": "hands its environment on to the processes that it starts",
    "workers.calibration": "hands its environment on to the processes that it starts",
    "workers.engine.runner.cpu.kernels": "CC and XDG_CACHE_HOME, which every C build and every cache goes by",
    "workers.engine.vllm.core": "sets what vLLM reads from the environment alone",
}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv", "expandvars"}

# What one types, and the engine of each kind of engine.
SHARED_NAMES = {"cli", "__main__", "__init__", "engine"}


@pytest.fixture(scope="module")
def imports() -> Imports:
    return Imports.of()


def test_rooms_import_only_the_rooms_that_the_table_allows(imports: Imports) -> None:
    assert len(imports.arrows) > 150, "the files are not where they are looked for"
    assert not (forbidden := imports.forbidden()), "\n".join(forbidden)


def test_no_module_imports_itself_by_way_of_others(imports: Imports) -> None:
    assert imports.cycle() == []


def test_chains_of_imports_are_short(imports: Imports) -> None:
    chain = imports.longest_chain()
    assert 1 < len(chain) <= LONGEST_CHAIN + 1, " > ".join(chain)


@pytest.mark.parametrize("package", MOST_SIBLING_ARROWS)
def test_what_lies_side_by_side_is_loosely_coupled(imports: Imports, package: str) -> None:
    arrows = imports.siblings(package)
    assert 0 < len(arrows) <= MOST_SIBLING_ARROWS[package], sorted(arrows)


def write_modules(root: Path, **modules: str) -> Imports:
    """The imports of a project of these modules; two underscores are a dot."""
    for package in PACKAGES:
        (root / package).mkdir()
    for name, code in modules.items():
        path = (root / name.replace("__", "/")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return Imports.of(root)


def test_an_import_against_the_table_is_named_wherever_it_stands(tmp_path: Path) -> None:
    found = write_modules(
        tmp_path,
        app__settings="def lazily():\n    from workers import retry\n",
        workers__retry="import app.settings\n",
        workers__engine__api="from workers.engine.packed import scheduler\n",
        workers__engine__packed__scheduler="from workers.engine import api\n",
    )
    assert found.forbidden() == [
        "app.settings (line 2) imports workers.retry: app may not import workers",
        "workers.engine.api (line 1) imports workers.engine.packed.scheduler: "
        "workers.engine may not import workers.engine.packed",
    ]


def test_cycles_chains_and_arrows_count_imports_inside_functions(tmp_path: Path) -> None:
    found = write_modules(
        tmp_path,
        app__pair="from app.prompts import x\nfrom app.prompts import y\n",
        app__prompts="def lazily():\n    import app.database.schema\n",
        app__database__schema="",
    )
    assert found.cycle() == []
    assert found.longest_chain() == ["app.pair", "app.prompts", "app.database.schema"]
    assert found.siblings("app") == {("pair", "prompts"), ("prompts", "database")}
    (tmp_path / "app/database/schema.py").write_text("def lazily():\n    from app import pair\n")
    assert sorted(Imports.of(tmp_path).cycle()[1:]) == ["app.database.schema", "app.pair", "app.prompts"]


def test_no_two_modules_share_a_name() -> None:
    named: dict[str, set[str]] = defaultdict(set)
    for name, path in OURS.items():
        one_of_both = name.replace(".runner.torch.", ".runner.BACKEND.").replace(".runner.cpu.", ".runner.BACKEND.")
        one_of_both = one_of_both.replace(".runner.paged.", ".runner.BACKEND.")
        named[path.stem].add(one_of_both)
    assert {stem: names for stem, names in named.items() if len(names) > 1 and stem not in SHARED_NAMES} == {}


def third_party(path: Path) -> set[str]:
    """The top packages that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize("room", MAY_NOT_USE)
def test_a_room_does_without_packages_that_are_not_its_own(room: str) -> None:
    inside = {name: third_party(path) for name, path in OURS.items() if name == room or name.startswith(f"{room}.")}
    assert len(inside) > 5
    assert {
        name: sorted(found & MAY_NOT_USE[room]) for name, found in inside.items() if found & MAY_NOT_USE[room]
    } == {}


def loaded_by(module: str, *names: str) -> list[str]:
    """Which of these packages are loaded once a module is imported."""
    code = f"import {module}, sys; sys.stdout.write(' '.join(name for name in {names!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_policy_loads_no_torch() -> None:
    assert loaded_by("workers.engine.model", "torch") == ["torch"], "what is looked for would not be seen"
    assert loaded_by(", ".join(WITHOUT_TORCH), "torch") == []


@pytest.mark.parametrize("module", ["producer.cli", "app.results.cli"])
def test_commands_start_without_what_is_heavy(module: str) -> None:
    assert loaded_by(module, *HEAVY) == []


def test_modules_are_short() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in OURS.items()}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE and name not in TABLES} == {}


def environment_touched(code: str) -> list[int]:
    """The lines that read or write the environment, by whatever name the module ``os`` goes."""
    lines = []
    for node in ast.walk(ast.parse(code)):
        if (
            (isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT)
            or (isinstance(node, ast.ImportFrom) and _names_it(node))
            or (isinstance(node, ast.keyword) and "envvar" in (node.arg or ""))  # click reads it by itself
        ):
            lines.append(node.lineno)
    return lines


def _names_it(node: ast.ImportFrom) -> bool:
    return any(alias.name in ENVIRONMENT or (node.module, alias.name) == ("os", "*") for alias in node.names)


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfound = os.environ['X']", "import os\nfound = os.getenv('X')",
        "import os as it\nit.environ.get('X')",
        "from os import environ", "from os import getenv as ask", "from os import *",
        "def lazily():\n    from os import environ", "import click\nclick.option('--x', envvar='X')",
    ],
)  # fmt: skip
def test_a_look_into_the_environment_is_seen(code: str) -> None:
    assert environment_touched(code)
    assert not environment_touched("import os\nfound = os.path.join('environ', environ)")


def test_only_settings_read_the_environment() -> None:
    touched = {name: lines for name, path in OURS.items() if (lines := environment_touched(path.read_text()))}
    assert {name: lines for name, lines in touched.items() if name not in MAY_TOUCH_THE_ENVIRONMENT} == {}
    assert set(MAY_TOUCH_THE_ENVIRONMENT) - set(touched) == set(), "these need no exception any more"


def commands() -> dict[str, click.Command]:
    """Every command by what one types."""
    from app.results.cli import main as results
    from producer.cli import main as producer
    from workers.cli import main as workers

    found: dict[str, click.Command] = {}

    def collect(name: str, command: click.Command) -> None:
        if isinstance(command, click.Group):
            for part, inner in command.commands.items():
                collect(f"{name} {part}", inner)
        else:
            found[name] = command

    for name, group in (("producer", producer), ("results", results), ("workers", workers)):
        collect(name, group)
    return found


@pytest.mark.parametrize("name", commands())
def test_every_command_shows_an_example_and_explains_its_options(name: str) -> None:
    command = commands()[name]
    assert f"Example: {name}" in (command.help or "")
    assert [option.name for option in command.params if isinstance(option, click.Option) and not option.help] == []


def test_the_readme_tells_of_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in commands() if name not in readme] == []
