"""The generated pages are what the code says, and the page on the architecture names what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from tools import reference

ROOT = Path(__file__).parents[2]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("path", reference.pages(), ids=lambda path: path.name)
def test_a_generated_page_is_not_stale(path: Path) -> None:
    assert path.read_text() == reference.pages()[path], "run `make docs`"


def test_a_stale_page_is_told_and_written_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "DOCS", tmp_path)
    checked = CliRunner().invoke(reference.main, ["--check"])
    assert checked.exit_code == 1
    assert "settings.md, cli.md" in checked.output
    assert list(tmp_path.iterdir()) == []
    assert CliRunner().invoke(reference.main, []).exit_code == 0
    assert CliRunner().invoke(reference.main, ["--check"]).exit_code == 0


def test_every_setting_and_its_default_is_on_the_page() -> None:
    rows = {
        line.split("|")[1].strip(" `"): line for line in reference.settings_page().splitlines() if "| `" in line[:4]
    }
    assert "REDIS_URL" in rows
    assert "| `30.0` | 1.0 to 86,400.0 |" in rows["FARM_LEASE_S"]
    assert "`bfloat16`" in rows["FARM_DTYPE"]
    assert all(len(line.split("|")[4].split()) > 3 for line in rows.values())


def test_the_tree_of_the_architecture_names_what_is_there() -> None:
    [tree] = re.findall(r"## The tree\n\n```text\n(.*?)```", ARCHITECTURE, re.S)
    folders: list[tuple[int, str]] = []
    for line in tree.splitlines():
        depth = len(line) - len(line.lstrip())
        folders = [(at, name) for at, name in folders if at < depth]
        base = ROOT.joinpath(*[name for _, name in folders])
        for name in re.findall(r"(?<!\S)([a-z_]+\.py|[a-z_]+/)(?=\s|$)", line):
            assert (base / name).exists(), f"{base / name}"
        first = line.split()[0]
        if first.endswith("/"):
            folders.append((depth, first.rstrip("/")))


def test_the_pages_link_to_pages_that_are_there() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for link in re.findall(r"\]\(([a-z_]+\.md)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_no_comment_points_to_a_decision_by_a_number() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in ("app", "producer", "benchmarks", "tools", "tests")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\bdecision \d", line)
    ]
    assert not found
