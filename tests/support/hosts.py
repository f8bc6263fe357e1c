"""What happens to hosts: one stands still past its leases, loses its images, or has wrong ones, or a wrong clock."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.farm import Farm
from tests.support.faults import Fault, Scene
from tests.support.processes import Process, send_signal

_FAKETIME = "faketime/libfaketimeMT.so.1"  # https://github.com/wolfcw/libfaketime, a package of Debian's
_GO_ON_S = 3.0


def freeze_a_worker(scene: Scene) -> Fault:
    """A worker stands still until its leases are over, and then goes on as if nothing had been."""
    farm = scene.farm
    pids = farm.pids()
    if not pids:
        return Fault("no worker was alive to stand still", 0)
    pid = scene.numbers.choice(list(pids))
    seconds = farm.settings.lease_s + _GO_ON_S
    in_flight = farm.in_flight(pids[pid])
    send_signal(pid, signal.SIGSTOP)
    time.sleep(seconds)
    send_signal(pid, signal.SIGCONT)
    return Fault(f"worker {pid}: stood still for {seconds:.0f} s with {in_flight} pairs in flight", in_flight)


def hide_images(scene: Scene) -> Fault:
    """The images are away for some seconds, as if their share were not mounted; the inputs stay."""
    folder, in_flight = scene.inputs.stage1.parent, _all_places(scene.farm)
    away = folder / "away"
    away.mkdir(exist_ok=True)
    images, seconds = sorted(folder.glob("*.png")), scene.numbers.uniform(2.0, 10.0)
    for image in images:
        image.rename(away / image.name)
    time.sleep(seconds)
    for image in images:
        (away / image.name).rename(image)
    return Fault(f"{len(images)} images away for {seconds:.1f} s", in_flight)


def add_a_worker_without_images(scene: Scene) -> Fault:
    """A worker of another host whose image root is wrong, for as long as it takes to fail what it gets."""
    empty = scene.farm.folder / "no images"
    empty.mkdir(exist_ok=True)
    return _passing_worker(scene, "with a wrong image root", {"FARM_IMAGE_ROOT": str(empty)})


def add_a_worker_of_another_time(scene: Scene) -> Fault:
    """A worker whose wall clock is an hour off: leases go by the database's."""
    library = next(Path("/usr/lib").glob(f"*/{_FAKETIME}"), None)
    if library is None:
        return Fault("no libfaketime here: no clock was changed", 0)
    ahead = scene.numbers.choice(["+3600", "-3600"])
    clock = {"LD_PRELOAD": str(library), "FAKETIME": ahead, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return _passing_worker(scene, f"whose clock is {ahead} s off", clock)


def tear_the_queues_file(scene: Scene) -> Fault:
    """Redis dies as in a power cut: the end of its append-only file is torn off, or its manifest is empty."""
    farm, in_flight = scene.farm, scene.farm.in_flight()
    farm.broker.stop(signal.SIGKILL)
    data = farm.broker.data
    manifest = next(data.glob("*.manifest"), None)
    files = sorted(data.glob("*.aof"), key=lambda path: path.stat().st_size)
    if manifest is not None and scene.numbers.random() < 0.5:
        manifest.write_bytes(b"")
        how = "its manifest empty"
    elif files:
        whole = files[-1].read_bytes()
        files[-1].write_bytes(whole[: len(whole) * 2 // 3] + b"\0" * 64)
        how = "the end of its file torn off"
    else:
        how = "without a file to tear"
    farm.broker.start()
    return Fault(f"Redis: SIGKILL, back with {how}", in_flight)


def run_twice_and_kill_one(scene: Scene) -> Fault:
    """Two ``producer run`` of our run beside the workers that are there; one is killed, the other one stopped."""
    farm = scene.farm
    files = ("--stage1-result", str(scene.inputs.stage1), "--input-data", str(scene.inputs.images))
    model = ("--model-path", str(farm.settings.model), "--num-gpus", "0", *scene.options)
    both = [
        farm.command("run", *files, *model, "--output", str(farm.folder / f"run-{number}.json")) for number in range(2)
    ]
    time.sleep(scene.numbers.uniform(6.0, 12.0))
    in_flight = farm.in_flight()
    both[0].kill()
    ended = both[1].stop()
    return Fault(f"producer run twice: one SIGKILL, one SIGTERM (exit {ended})", in_flight)


def _passing_worker(scene: Scene, what: str, environment: dict[str, str]) -> Fault:
    """A worker beside the launcher's, for some seconds of its work; then it is told to stop."""
    farm = scene.farm
    worker: Process = farm.spawn_worker(environment=environment)
    worker.says(" ready.")
    time.sleep(scene.numbers.uniform(2.0, 6.0))
    in_flight = farm.in_flight()
    ended = worker.stop()
    return Fault(f"worker {worker.pid} {what}: stopped with exit {ended}", in_flight)


def _all_places(farm: Farm) -> int:
    """Pairs that may be given back: as many as all workers may hold."""
    return len(farm.pids()) * farm.settings.pairs_in_flight


HOST_TROUBLE: tuple[Callable[[Scene], Fault], ...] = (
    freeze_a_worker, hide_images, add_a_worker_without_images, add_a_worker_of_another_time, tear_the_queues_file,
    run_twice_and_kill_one,
)  # fmt: skip
