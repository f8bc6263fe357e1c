"""Fixtures for the tests of the input readers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.input_files import Inputs


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return Inputs(tmp_path)
