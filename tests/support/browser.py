"""A real headless Chromium; tests that need one skip, with the reason, where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

_FLAGS = ("--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update",
          "--disable-sync", "--allow-file-access-from-files=false")  # fmt: skip


@contextmanager
def open_page(*, width: int = 1200, height: int = 900) -> Iterator[tuple[Page, list[str]]]:
    """An empty page, and what its console complains of."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no chromium on the PATH (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=list(_FLAGS))
        page = browser.new_page(viewport={"width": width, "height": height})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        try:
            yield page, errors
        finally:
            browser.close()


def accessibility_faults(page: Page) -> list[str]:
    """What axe finds wrong with the page as it is now."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['help']}: {[node['html'] for node in each['nodes']][:3]}" for each in found]


def address(folder: Path) -> str:
    """The page of a folder, as a person opens it."""
    return (folder / "index.html").resolve().as_uri()
