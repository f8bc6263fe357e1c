"""The fault benchmark in its short form."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.faults import Finished, difference


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_nothing_is_lost_doubled_or_different_after_six_faults(database: str) -> None:
    command = [sys.executable, "-m", "benchmarks.faults", "--quick", "--seed", "5", "--database", database]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["lost"], report["doubled"], report["different"]) == (0, 0, 0)
    assert report["generated_again"] <= report["in_flight"]


def test_the_comparison_sees_what_is_lost_doubled_and_different() -> None:
    def record(number: int, text: str = "on") -> dict[str, object]:
        return {"image_id": number, "subject_id": 1, "object_id": 2, "text": text}

    calm = Finished([record(number) for number in range(4)], {("9", "1", "2"): "image unreadable"})
    disturbed = Finished([record(0), record(0), record(1, "off")], {("2", "1", "2"): "kills its worker"})
    assert difference(calm, calm) == {"lost": 0, "doubled": 0, "different": 0}
    assert difference(calm, disturbed) == {"lost": 3, "doubled": 1, "different": 1}
