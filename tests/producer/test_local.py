"""``producer run`` while it works: its phases, and what Ctrl-C says."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from producer.waiting import Pace
from tests.support.commands import SCENES, Commands
from tests.support.processes import lives
from tests.support.waits import wait_for


def test_the_rate_is_that_since_the_first_description() -> None:
    pace = Pace(ended=10, began=100.0)
    assert pace.phase(10, 130.0, ready=False) == "loading the model (30 s)"
    assert pace.phase(10, 160.0, ready=True) == "first descriptions (60 s)"
    assert pace.phase(12, 170.0, ready=True) == "describing"
    assert pace.rate == 0.0, "not yet known"
    assert pace.phase(32, 180.0, ready=True) == "describing"
    assert pace.rate == 2.0


def test_ctrl_c_says_what_it_waits_for_and_the_second_what_it_costs(short_folder: Path) -> None:
    commands = Commands(short_folder)
    files = ("--stage1-result", str(SCENES / "recall_results.json"), "--input-data", str(SCENES / "images.json"))
    output = short_folder / "out.json"
    with commands.running("producer", "run", *files, "--output", str(output), "--num-gpus", "0") as run:
        assert run.says("describing:"), run.said
        worker = int(re.findall(r"started \(process (\d+)\)", run.said)[-1])
        os.kill(worker, signal.SIGSTOP)  # it cannot finish what is waited for
        try:
            run.signal(signal.SIGINT)
            assert run.says("interrupted: waiting for"), run.said
            assert run.says("stopping: 1 workers"), run.said
            assert run.alive
            run.signal(signal.SIGINT)
            assert run.says("stopped at once:"), run.said
            assert run.wait() == 1
            wait_for(lambda: not lives(worker), "the worker is gone")
        finally:
            if lives(worker):
                os.kill(worker, signal.SIGKILL)
    assert "the same command resumes" in run.said
    assert not output.exists()
    assert "loading the model (" in run.said
