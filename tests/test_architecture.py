"""The house stays as it was drawn: who may import whom, sizes, docstrings, and commands that explain themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
OURS = ("app", "producer", "workers")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in OURS
    for path in sorted((ROOT / package).rglob("*.py"))
}

FORBIDDEN = {
    "app": ("producer", "workers", "tools", "benchmarks", "tests", "transformers"),
    "producer": ("workers", "torch", "transformers", "tools", "benchmarks", "tests"),
    "workers": ("producer", "tools", "benchmarks", "tests"),
    "workers.engine": ("app", "producer", "celery", "sqlalchemy", "redis", "tools", "benchmarks", "tests"),
}
# The policy of the engine is tested without a device.
WITHOUT_TORCH = ("workers.engine.packed.scheduler", "workers.engine.packed.prefix_cache", "workers.engine.api")
HEAVY = ("torch", "transformers", "workers", "pyarrow", "PIL", "numpy")


def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it leads"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def under(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_run_one_way(room: str) -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, path in MODULES.items()
        if under(name, room)
        for imported in imports(path)
        if any(under(imported, forbidden) for forbidden in FORBIDDEN[room])
    ]
    assert not wrong


def test_the_engine_stands_alone() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, path in MODULES.items()
        if under(name, "workers.engine")
        for imported in imports(path)
        if imported.partition(".")[0] in OURS and not under(imported, "workers.engine")
    ]
    assert not wrong


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_policy_imports_no_torch(name: str) -> None:
    assert not [imported for imported in imports(MODULES[name]) if under(imported, "torch")]


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {name: {found for found in imports(path) if found in MODULES} - {name} for name, path in MODULES.items()}

    def visit(name: str, trail: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if name in trail:
            yield (*trail[trail.index(name) :], name)
        elif name not in done:
            for imported in graph[name]:
                yield from visit(imported, (*trail, name))
            done.add(name)

    done: set[str] = set()
    assert not [cycle for name in graph for cycle in visit(name, ())]


@pytest.mark.parametrize("module", ["producer.cli", "app.results.cli"])
def test_commands_start_without_what_is_heavy(module: str) -> None:
    code = f"import {module}, sys; sys.stdout.write(' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert loaded == ""


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_short_and_say_what_they_are_for(name: str) -> None:
    text = MODULES[name].read_text()
    assert len(text.splitlines()) <= 300
    if text:  # workers/__init__.py is empty on purpose
        assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("name", MODULES)
def test_nothing_is_printed_and_only_settings_read_the_environment(name: str) -> None:
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}"
        assert not isinstance(node, ast.Global), "a global"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except"


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
    for option in command.params:
        assert not isinstance(option, click.Option) or option.help, option.name


def test_the_readme_tells_of_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not [name for name in commands() if name not in readme]
