"""What the code never does: run what a model's repository brings along.

That it never unpickles, evaluates or goes through a shell is held by the linter (``pyproject.toml``: S and TID251).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN_NO_SUCH_CODE = {"Qwen2VLImageProcessorPil", "ScriptDirectory"}
FILES = sorted(path for room in ("app", "producer", "workers") for path in (ROOT / room).rglob("*.py"))


def _calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def test_every_model_and_tokenizer_is_loaded_without_remote_code() -> None:
    """`trust_remote_code` stands as False at each `from_pretrained`, but for the classes that run no such code."""
    seen = 0
    for path in FILES:
        for call in _calls(path):
            if not (isinstance(call.func, ast.Attribute) and call.func.attr in ("from_pretrained", "from_config")):
                continue
            words = {word.arg: ast.unparse(word.value) for word in call.keywords}
            of = ast.unparse(call.func.value).rpartition(".")[2]
            if of in RUN_NO_SUCH_CODE and "trust_remote_code" not in words:
                continue
            seen += 1
            assert words.get("trust_remote_code") == "False", f"{path}:{call.lineno}"
    assert seen >= 4
