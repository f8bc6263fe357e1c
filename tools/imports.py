"""Who imports whom: rooms and the arrows between them, cycles, and the longest chain of imports.

    python -m tools.imports

An arrow is a module (a file) that imports another of ours, counted once however often and wherever in the file it
does: an import inside a function is one, too. The files are read and not imported. ``tests/test_architecture.py``
holds what is printed here to its limits.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
PACKAGES = ("app", "producer", "workers", "tools", "benchmarks", "tests")
FARM = ("app", "producer", "workers")  # what is installed

_APP = ("app", "app.inputs", "app.judge", "app.queue", "app.database", "app.results")
_ENGINE = "workers.engine"
_ENGINES = (
    _ENGINE, "workers.engine.load", "workers.engine.packed", "workers.engine.runner", "workers.engine.runner.torch",
    "workers.engine.runner.cpu", "workers.engine.runner.paged", "workers.engine.hf", "workers.engine.vllm",
    "workers.engine.openai",
)  # fmt: skip

MAY_IMPORT: dict[str, Sequence[str]] = {
    "app": (),
    "app.inputs": ("app",),
    "app.judge": (),  # plain values in and out, so that whoever has a text may judge it
    "app.database": ("app",),
    "app.queue": ("app", "app.database"),
    "app.results": ("app", "app.database", "app.judge", "app.queue"),
    "producer": _APP,
    "workers": ("app", "app.database", "app.queue", _ENGINE, "workers.engine.load", "workers.engine.openai"),
    _ENGINE: (),
    "workers.engine.load": tuple(
        room for room in _ENGINES if room not in ("workers.engine.load", "workers.engine.openai")
    ),
    "workers.engine.packed": (_ENGINE, "workers.engine.runner"),
    "workers.engine.runner": (_ENGINE, "workers.engine.runner.torch", "workers.engine.runner.cpu"),
    "workers.engine.runner.paged": (_ENGINE, "workers.engine.runner"),
    "workers.engine.runner.torch": (_ENGINE, "workers.engine.runner"),
    "workers.engine.runner.cpu": (_ENGINE, "workers.engine.runner"),
    "workers.engine.hf": (_ENGINE,),
    "workers.engine.vllm": (_ENGINE,),
    "workers.engine.openai": (_ENGINE,),
    "tools": ("app", "app.judge"),
    "tools.reference": (*_APP, "producer", "workers"),
    "tests.tools": ("app", "tools", "tools.reference", "tests.support"),
    "tests.support": (*_APP, "producer", "workers", *_ENGINES, "tools"),
    "benchmarks": (*_APP, "producer", "workers", *_ENGINES, "tools", "tests.support"),
    "tests": (*_APP, "producer", "workers", *_ENGINES, "tools", "tests.support"),
    "tests.benchmarks": ("benchmarks", "tests.support"),
    "tests.gpu_ready": ("benchmarks", "tests", "tests.support", "tools", *_ENGINES),
}
"""Each room and the other rooms that it may import.

A module is in the room with the longest name that it lies under: ``app`` and ``workers`` are the single files at
their top, ``workers.engine`` is what every engine uses.
"""

NOT_YET = {("app.commands", "app.queue.client")}
"""Imports that the table forbids and that are still there. None may be added."""


@dataclass(frozen=True, repr=False)
class Imports:
    """Each module, the modules of ours that it imports, and the first line that does."""

    arrows: Mapping[str, Mapping[str, int]]

    @classmethod
    def of(cls, root: Path = ROOT) -> Imports:
        """Read every file of our packages. Raises ValueError for a relative import, which hides where it leads."""
        files = modules(root)
        return cls({name: _imported(name, path, files.keys()) for name, path in files.items()})

    def forbidden(self) -> list[str]:
        """Every import from one room into another that ``MAY_IMPORT`` does not allow."""
        return [
            f"{name} (line {line}) imports {imported}: {room_of(name)} may not import {room_of(imported)}"
            for name, found in self.arrows.items()
            for imported, line in found.items()
            if room_of(imported) not in (room_of(name), *MAY_IMPORT[room_of(name)]) and (name, imported) not in NOT_YET
        ]

    def cycle(self) -> list[str]:
        """Modules of which each imports the next and the last the first; empty where there is no such circle."""
        try:
            TopologicalSorter(self.arrows).prepare()
        except CycleError as error:
            return list(reversed(error.args[1]))
        return []

    def longest_chain(self, packages: Sequence[str] = FARM) -> list[str]:
        """The most modules of these packages of which each imports the next. Raises CycleError."""
        inside = {name: [to for to in found if _top(to) in packages] for name, found in self.arrows.items()}
        chains: dict[str, list[str]] = {}
        for name in TopologicalSorter(
            {name: to for name, to in inside.items() if _top(name) in packages}
        ).static_order():
            chains[name] = [name, *max((chains[to] for to in inside[name]), key=len, default=[])]
        return max(chains.values(), key=len, default=[])

    def siblings(self, package: str) -> set[tuple[str, str]]:
        """The arrows between what lies directly in a package: a file, or a sub-package as a whole."""
        inside = [name for name in self.arrows if _under(name, package)]
        pairs = {
            (_child(name, package), _child(to, package))
            for name in inside
            for to in self.arrows[name]
            if _under(to, package)
        }
        return {(one, other) for one, other in pairs if one != other}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def room_of(name: str) -> str:
    """The room in which a module is."""
    return max((room for room in MAY_IMPORT if _under(name, room)), key=len)


def _imported(name: str, path: Path, ours: Set[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    statements = (
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
    )
    for node in statements:
        for module in _named(node, path):
            # `from app.queue import keys` means the module where there is one, else a name in the package.
            target = module if module in ours else module.rpartition(".")[0]
            if target in ours and target != name:
                found[target] = min(node.lineno, found.get(target, node.lineno))
    return found


def _named(node: ast.Import | ast.ImportFrom, path: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if node.level:
        raise ValueError(f"{path}, line {node.lineno}: a relative import hides where it leads")
    return [f"{node.module}.{alias.name}" for alias in node.names]


def _top(name: str) -> str:
    return name.partition(".")[0]


def _under(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _child(name: str, package: str) -> str:
    return name[len(package) + 1 :].partition(".")[0]


@click.command()
def main() -> None:
    """Print rooms, arrows, the longest chain and what is not allowed; exit 1 if anything is not.

    Example: python -m tools.imports
    """
    imports = Imports.of()
    for line in _rooms(imports):
        click.echo(line)
    for package in FARM:
        click.echo(f"arrows between siblings in {package}: {len(imports.siblings(package))}")
    click.echo(f"arrows between siblings in {_ENGINE}: {len(imports.siblings(_ENGINE))}")
    cycle, forbidden = imports.cycle(), imports.forbidden()
    if not cycle:
        chain = imports.longest_chain()
        click.echo(f"longest chain: {len(chain) - 1} arrows: {' > '.join(chain)}")
    click.echo(f"cycle: {' > '.join(cycle) or 'none'}")
    click.echo("\n".join(["not allowed:", *forbidden]) if forbidden else "not allowed: none")
    raise SystemExit(bool(cycle or forbidden))


def _rooms(imports: Imports) -> Iterator[str]:
    counts = Counter((room_of(name), room_of(to)) for name, found in imports.arrows.items() for to in found)
    for room in MAY_IMPORT:
        files = sum(room_of(name) == room for name in imports.arrows)
        others = ", ".join(f"{to} {number}" for (one, to), number in sorted(counts.items()) if one == room != to)
        yield f"{room} ({files} modules, {counts[room, room]} arrows inside) > {others or 'nothing'}"


if __name__ == "__main__":
    main()
