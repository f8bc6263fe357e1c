"""What the code never does: run what a model's repository brings along, unpickle, evaluate, go through a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for room in ("app", "producer", "workers") for path in (ROOT / room).rglob("*.py"))
_FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
_FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "torch.load", "yaml.load", "pickle.loads"}


def _calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def test_there_is_code_to_look_at() -> None:
    assert len(FILES) > 40
    assert any("from_pretrained" in path.read_text() for path in FILES)


def test_every_model_and_tokenizer_is_loaded_without_remote_code() -> None:
    """`trust_remote_code` stands as False at each `from_pretrained`, but for the classes that run no such code."""
    for path in FILES:
        for call in _calls(path):
            if not (isinstance(call.func, ast.Attribute) and call.func.attr in ("from_pretrained", "from_config")):
                continue
            words = {word.arg: word.value for word in call.keywords}
            auto = isinstance(call.func.value, ast.Name) and call.func.value.id.startswith("Auto")
            trust = words.get("trust_remote_code")
            said = isinstance(trust, ast.Constant) and trust.value is False
            assert said if auto or trust is not None else True, f"{path}:{call.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_evaluates_or_goes_through_a_shell(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert not imported & _FORBIDDEN_MODULES
    assert not {ast.unparse(call.func) for call in _calls(path)} & _FORBIDDEN_CALLS
    shells = [call for call in _calls(path) for word in call.keywords if word.arg == "shell"]
    assert not shells
