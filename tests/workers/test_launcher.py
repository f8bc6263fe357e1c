"""The launcher: workers are restarted, judged by how they died, and stopped together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import Engine, select

from app.database.claim_rows import claim_pair
from app.database.connection import open_database, reading
from app.database.schema import claims
from app.errors import SettingsError, WorkersError
from app.queue.celery_app import embedded_broker
from tests.conftest import MakeSettings
from tests.support.processes import Process
from tests.support.runs import StoredRun, claimant, pair, store_run
from tests.support.waits import wait_for
from workers import launcher as launcher_module
from workers.exit_codes import EXIT_DEVICE_LOST, EXIT_NO_NUMBERS
from workers.launcher import Launcher, Slot, refuse_contradictions, slots_for

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def sqlite(make_settings: MakeSettings) -> Iterator[Engine]:
    engine = open_database(make_settings())
    yield engine
    engine.dispose()


@pytest.fixture
def stored(sqlite: Engine) -> StoredRun:
    return store_run(sqlite, [pair(number) for number in range(2)])


class Watched(Launcher):
    """A launcher whose workers are any program."""

    command = SLEEPER

    def _spawn(self, command: list[str], environment: Any, slot: Slot) -> subprocess.Popen[bytes]:
        return super()._spawn(self.command, environment, slot)


@pytest.fixture
def launch(
    sqlite: Engine, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Watched]]:
    """Makes launchers that restart at once, and stops them."""
    monkeypatch.setattr(launcher_module, "_FIRST_BACKOFF_S", 0.01)
    made: list[Watched] = []

    def make(slots: int = 1, command: list[str] = SLEEPER, **options: Any) -> Watched:
        launcher = Watched(make_settings(shutdown_grace_s=0), slots_for([], slots), sqlite, **options)
        launcher.command = command
        made.append(launcher)
        return launcher

    yield make
    for launcher in made:
        launcher.stop()
        launcher._stop_children()
    embedded_broker(make_settings()).stop()  # a launcher keeps one running


def running(launcher: Launcher) -> list[int]:
    launcher.tend()
    return launcher.pids()


def die(launcher: Launcher, sqlite: Engine, stored: StoredRun, number: int) -> Any:
    """End the launcher's worker by a signal while it holds a pair; gives the pair's claim after the judgement."""
    (pid,) = running(launcher)
    worker_id = launcher._children[0].worker_id
    claim_pair(sqlite, (stored.run.uuid, stored.ids[0]), claimant(worker_id, lease_s=600))
    os.kill(pid, number)
    wait_for(lambda: running(launcher) not in ([pid], []), "another worker runs")
    with reading(sqlite) as connection:
        return connection.execute(select(claims)).one()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_death_from_outside_frees_the_pair_and_blames_nobody(
    launch: Callable[..., Watched], sqlite: Engine, stored: StoredRun, number: int
) -> None:
    claim = die(launch(), sqlite, stored, number)
    assert (claim.worker, claim.crash_count, claim.lost, claim.detail) == ("", 0, 0, "")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_crash_makes_a_suspect(
    launch: Callable[..., Watched], sqlite: Engine, stored: StoredRun, number: signal.Signals
) -> None:
    claim = die(launch(), sqlite, stored, number)
    assert claim.worker == ""
    assert number.name in claim.detail
    _, again = claim_pair(sqlite, (stored.run.uuid, stored.ids[0]), claimant("next"))
    assert again is not None
    assert again.quarantined


def test_a_kill_for_memory_is_a_crash(
    launch: Callable[..., Watched], sqlite: Engine, stored: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter(range(10))
    monkeypatch.setattr(launcher_module, "oom_kills", lambda: next(kills))
    assert "memory" in die(launch(), sqlite, stored, signal.SIGKILL).detail


def test_a_lost_device_is_a_crash(launch: Callable[..., Watched], sqlite: Engine, stored: StoredRun) -> None:
    launcher = launch(command=[sys.executable, "-c", f"import sys; sys.stdin.read(); sys.exit({EXIT_DEVICE_LOST})"])
    launcher.tend()
    worker_id = launcher._children[0].worker_id
    claim_pair(sqlite, (stored.run.uuid, stored.ids[0]), claimant(worker_id, lease_s=600))
    wait_for(lambda: running(launcher) and launcher._children[0].worker_id != worker_id, "another worker runs")
    with reading(sqlite) as connection:
        assert "70" in connection.execute(select(claims.c.detail)).scalar_one()


def test_a_worker_whose_model_gives_no_numbers_is_not_started_again(launch: Callable[..., Watched]) -> None:
    """While another slot's worker lives, the launcher goes on; after the last one it ends."""
    launcher = launch(2)
    first, second = launcher._children
    launcher.tend()
    launcher.command = [sys.executable, "-c", f"import sys; sys.exit({EXIT_NO_NUMBERS})"]
    for child in (first, second):
        assert child.process is not None
        child.process.kill()
        wait_for(lambda child=child: ended(launcher, child), "its end is seen")  # type: ignore[misc]
        child.start_at = float("inf")
    first.start_at = 0.0
    wait_for(lambda: ended(launcher, first) and first.given_up, "its model's fault is seen")
    first.start_at = 0.0
    launcher.tend()
    assert first.process is None
    second.start_at = 0.0
    with pytest.raises(WorkersError, match="gives no numbers"):
        wait_for(lambda: ended(launcher, second) and second.given_up, "its model's fault is seen")


def ended(launcher: Launcher, child: Any) -> bool:
    launcher.tend()
    return child.process is None


def test_each_start_has_a_name_of_its_own_and_waits_longer(
    launch: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = launch(command=["/bin/false"])
    child = launcher._children[0]
    names, pauses = set(), []
    for _ in range(5):
        launcher.tend()
        names.add(child.worker_id)
        wait_for(lambda: ended(launcher, child), "its end is seen")
        pauses.append(child.backoff)
        child.start_at = 0.0
    assert len(names) == 5
    assert pauses == sorted(pauses)
    assert pauses[4] == pytest.approx(16 * pauses[0])


def test_giving_up_after_young_deaths_is_said(launch: Callable[..., Watched]) -> None:
    with pytest.raises(WorkersError, match="cpu-0"):
        launch(command=["/bin/false"], give_up=True).run()


def test_all_slots_run_until_it_is_told_to_stop(launch: Callable[..., Watched]) -> None:
    launcher = launch(slots=3)
    thread = Thread(target=launcher.run)
    thread.start()
    pids = wait_for(lambda: launcher.pids() if len(launcher.pids()) == 3 else None, "three workers")
    launcher.stop()
    thread.join(60)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_logs_go_to_a_file_for_each_slot(launch: Callable[..., Watched], tmp_path: Path) -> None:
    launcher = launch(slots=2, log_folder=tmp_path / "logs", command=[sys.executable, "-c", "print('hello')"])
    launcher.tend()
    wait_for(
        lambda: [path.read_text() for path in sorted((tmp_path / "logs").glob("*.log"))] == ["hello\n"] * 2,
        "both have said hello",
    )


def test_slots_pin_their_gpu_and_share_its_memory() -> None:
    slots = slots_for(["0", "GPU-abc"], 2)
    assert [slot.name for slot in slots] == ["gpu0-0", "gpu0-1", "gpuGPU-abc-0", "gpuGPU-abc-1"]
    environment = slots[3].environment()
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-abc"
    assert float(environment["FARM_MEMORY_FRACTION"]) == pytest.approx(0.4)
    assert [(slot.name, slot.environment()["FARM_DEVICE"]) for slot in slots_for([], 1)] == [("cpu-0", "cpu")]


def test_workers_on_a_cpu_share_its_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert slots_for([], 1)[0].environment()["FARM_THREADS"] == str(cores)
    assert {slot.environment()["FARM_THREADS"] for slot in slots_for([], 2 * cores)} == {"1"}


@pytest.mark.parametrize(
    ("given", "gpus", "said"),
    [
        ({"device": "cuda:1"}, ["0", "1"], r"FARM_DEVICE \(cuda:1\).*--gpus"),
        ({"device": "cuda"}, [], r"FARM_DEVICE \(cuda\).*no GPU"),
        ({"memory_fraction": 0.6}, ["0"], r"FARM_MEMORY_FRACTION \(0.6\).*--workers-per-gpu \(2\)"),
    ],
)
def test_settings_that_do_not_go_with_the_slots_are_refused(
    make_settings: MakeSettings, given: dict[str, Any], gpus: list[str], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        refuse_contradictions(make_settings(**given), gpus, 2)


def test_more_threads_than_cores_are_taken_with_a_warning(
    make_settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_contradictions(make_settings(threads=1024), [], 1)
    assert "FARM_THREADS (1024)" in caplog.text


def test_pairs_in_flight_on_a_gpu_have_twice_the_generations_that_are_decoded_together() -> None:
    slot = slots_for(["0"], 1)[0]
    assert slot.environment()["FARM_PAIRS_IN_FLIGHT"] == "128"  # 256 rows, 4 a pair
    assert slot.environment(64)["FARM_PAIRS_IN_FLIGHT"] == "32"
    assert "FARM_PAIRS_IN_FLIGHT" not in slots_for([], 1)[0].environment()


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"memory_fraction": 0.3}, "FARM_MEMORY_FRACTION", "0.3"),
        ({"pairs_in_flight": 7}, "FARM_PAIRS_IN_FLIGHT", "7"),
        ({"batch_size": 100}, "FARM_PAIRS_IN_FLIGHT", "50"),
    ],
)
def test_what_was_asked_for_goes_before_what_the_slot_supposes(
    sqlite: Engine, make_settings: MakeSettings, given: dict[str, Any], name: str, value: str
) -> None:
    class Told(Watched):
        def _spawn(self, command: list[str], environment: Any, slot: Slot) -> subprocess.Popen[bytes]:
            self.environment = environment
            return super()._spawn(command, environment, slot)

    launcher = Told(make_settings(**given, shutdown_grace_s=0), slots_for(["0"], 2), sqlite)
    launcher.tend()
    launcher._stop_children()
    embedded_broker(launcher._settings).stop()
    assert launcher.environment[name] == value


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_up_stops_its_workers_and_exits_with_0(
    make_settings: MakeSettings, tiny_model: Path, tmp_path: Path, number: int
) -> None:
    settings = make_settings(model=str(tiny_model), threads=1, shutdown_grace_s=1)
    command = [sys.executable, "-m", "workers", "up", "--num-gpus", "0", "--log-dir", str(tmp_path)]
    environment = {**os.environ, **settings.environment(), "CUDA_VISIBLE_DEVICES": ""}
    up = Process(command, environment, tmp_path / "launcher.log")
    log = tmp_path / "cpu-0.log"
    try:
        wait_for(lambda: log.exists() and " ready." in log.read_text(), "the worker is ready")
        up.signal(number)
        assert up.wait(60) == 0
        assert "Warm shutdown" in log.read_text()
    finally:
        up.kill()
        embedded_broker(settings).stop()


LEAVES_A_CHILD = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""


@pytest.mark.parametrize("by_signal", [True, False], ids=["it dies", "all stop"])
def test_what_a_worker_leaves_behind_ends_with_it(
    launch: Callable[..., Watched], tmp_path: Path, by_signal: bool
) -> None:
    """vLLM's engine is a process of its own: it would hold the GPU's memory for ever."""
    note = tmp_path / "child"
    launcher = launch(command=[sys.executable, "-c", LEAVES_A_CHILD, str(note)])
    (pid,) = running(launcher)
    child = int(wait_for(lambda: note.exists() and note.read_text(), "the worker's child runs"))
    if by_signal:
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: running(launcher) != [pid], "its death is seen")
    else:
        launcher._stop_children()
    wait_for(
        lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text(), "it ends too"
    )


def test_a_model_over_several_gpus_has_a_slot_that_owns_them() -> None:
    slots = slots_for(["0", "1", "2", "3"], 1, gpus_per_worker=2)
    assert [slot.name for slot in slots] == ["gpu0+1-0", "gpu2+3-0"]
    environment = slots[1].environment()
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["FARM_MEMORY_FRACTION"]) == ("2,3", "0.8")


@pytest.mark.parametrize(
    ("gpus", "workers_per_gpu", "words"),
    [(["0", "1", "2"], 1, "no whole number"), ([], 1, "0 GPUs"), (["0", "1"], 2, "owns its GPUs")],
)
def test_gpus_that_cannot_be_parted_so_are_refused(
    make_settings: MakeSettings, gpus: list[str], workers_per_gpu: int, words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        refuse_contradictions(make_settings(gpus_per_worker=2), gpus, workers_per_gpu)
