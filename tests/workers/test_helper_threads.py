"""A thread that a worker cannot live without ends its process, and what was in flight is all that is done again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.farm import QUICK, Farm
from tests.support.processes import CHECKOUT
from tests.support.runs import write_inputs
from tests.support.servers import open_server
from tests.support.waits import wait_for
from workers.exit_codes import EXIT_HELPER_DIED

# Python imports this module at its start wherever it is on the path; the product knows nothing of it.
DEADLY = """
import os, pathlib, sys
died = pathlib.Path(os.environ["DIED"])
if not died.exists() and "worker" in sys.argv:
    import {module} as module
    real, calls = module.{name}, []
    def deadly(*arguments, **options):
        if not calls.append(None) and len(calls) == {after}:
            died.touch()
            raise MemoryError("unexpected")
        return real(*arguments, **options)
    module.{name} = deadly
"""


@pytest.mark.parametrize(
    ("module", "name", "after", "thread"),
    [
        ("workers.maintenance", "renew_claims", 3, "renew leases"),
        pytest.param("workers.maintenance", "runs_of_models", 6, "sweep", marks=pytest.mark.slow),
        pytest.param("workers.committer", "write_outcomes", 3, "committer", marks=pytest.mark.slow),
    ],
    ids=["renew leases", "sweep", "committer"],
)
def test_a_helper_thread_that_dies_ends_its_process_and_little_is_done_again(
    tmp_path: Path, tiny_model: Path, module: str, name: str, after: int, thread: str
) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(DEADLY.format(module=module, name=name, after=after))
    environment = {"PYTHONPATH": f"{tmp_path / 'path'}:{CHECKOUT}", "DIED": str(tmp_path / "died")}
    server = open_server("sqlite", tmp_path)
    with Farm(tmp_path, server, model=tiny_model, environment=environment, **QUICK) as farm:
        farm.start_launcher()
        farm.enqueue(write_inputs(tmp_path / "in", images=6, pairs=10), max_new_tokens=60)
        wait_for((tmp_path / "died").exists, "the thread dies")
        assert farm.wait_done() == (60, 60, 0, 0)
        assert farm.generated_again() <= farm.settings.pairs_in_flight
        assert farm.launcher is not None
        assert farm.launcher.says(f"exit code {EXIT_HELPER_DIED}")
        assert f"the thread {thread!r} died" in (farm.folder / "logs" / "cpu-0.log").read_text()
