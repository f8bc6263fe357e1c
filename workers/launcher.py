"""One machine's workers: started, each pinned to its GPU, watched, restarted, stopped together."""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.database.claim_rows import record_crash, release_claims
from app.database.private_files import make_private_file, make_private_folder
from app.database.tally_rows import fold
from app.database.worker_rows import worker_gone
from app.errors import BrokerError, SettingsError, WorkersError
from app.processes import available_cores, die_with_parent, python_command, python_path
from app.queue.celery_app import ensure_broker
from app.settings import Settings
from workers.ending import end_all, end_group
from workers.engine.config import CUDA_ROWS
from workers.exit_codes import EXIT_CANNOT_START, EXIT_DEVICE_LOST, EXIT_NO_NUMBERS, describe_exit, oom_kills
from workers.gpu_memory import memory_fraction, pairs_in_flight

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 1.0, 60.0
_STEADY_S = 60.0  # a worker that lived so long, or died over pairs, starts again at once
_LOOK_AT_BROKER_S = 3.0
_YOUNG_DEATHS = 3
_POLL_S = 0.2
_CRASHES = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE, EXIT_DEVICE_LOST}


@dataclass(frozen=True)
class Slot:
    """A place for one worker process: its GPU, several with commas, or None for the CPU; and its number there."""

    gpu: str | None
    number: int
    workers_per_gpu: int

    @property
    def name(self) -> str:
        """In Celery's node names and in log lines."""
        return f"{'cpu' if self.gpu is None else 'gpu' + self.gpu.replace(',', '+')}-{self.number}"

    def environment(self, batch_size: int | None = None) -> dict[str, str]:
        """What pins a process to this slot, and what it supposes; set before Python starts, because CUDA reads it once.

        ``batch_size``: generations that are decoded together at most, if that is asked for.
        """
        if self.gpu is None:
            # Workers whose threads together outnumber the cores wait for each other, ten times and more.
            threads = max(1, available_cores() // self.workers_per_gpu)
            return {"CUDA_VISIBLE_DEVICES": "", "FARM_DEVICE": "cpu", "FARM_THREADS": str(threads)}
        return {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": self.gpu,
            "FARM_DEVICE": "cuda",  # and not "auto": without a usable driver that would be the CPU
            "FARM_MEMORY_FRACTION": str(memory_fraction(self.workers_per_gpu)),
            "FARM_PAIRS_IN_FLIGHT": str(pairs_in_flight(batch_size or CUDA_ROWS)),
        }


def refuse_contradictions(settings: Settings, gpus: Sequence[str], workers_per_gpu: int) -> None:
    """Raise SettingsError where settings of one process do not go with so many workers on these GPUs."""
    if settings.device.startswith("cuda:"):
        raise SettingsError(
            f"FARM_DEVICE ({settings.device}): a worker here sees its own GPU alone; choose by --gpus instead"
        )
    if settings.device == "cuda" and not gpus:
        raise SettingsError("FARM_DEVICE (cuda): no GPU is visible here or asked for")
    share = settings.memory_fraction
    if gpus and share is not None and share * workers_per_gpu > 1:
        raise SettingsError(
            f"FARM_MEMORY_FRACTION ({share}) times --workers-per-gpu ({workers_per_gpu}) is above 1, the whole GPU"
        )
    several = settings.gpus_per_worker
    if several > 1 and workers_per_gpu > 1:
        raise SettingsError(f"--gpus-per-worker {several}: such a worker owns its GPUs, --workers-per-gpu must be 1")
    if several > 1 and (not gpus or len(gpus) % several):
        raise SettingsError(f"--gpus-per-worker {several}: {len(gpus)} GPUs are no whole number of workers")
    cores = available_cores()
    if not gpus and settings.threads is not None and settings.threads * workers_per_gpu > cores:
        log.warning(
            "FARM_THREADS (%d) times --workers-per-gpu (%d) is above this machine's %d cores: "
            "workers will wait for each other",
            settings.threads, workers_per_gpu, cores,
        )  # fmt: skip


def slots_for(gpus: Sequence[str], workers_per_gpu: int, gpus_per_worker: int = 1) -> list[Slot]:
    """The slots of these GPUs, of so many each where a worker takes several, or of the CPU where there is none."""
    groups = [",".join(gpus[at : at + gpus_per_worker]) for at in range(0, len(gpus), gpus_per_worker)]
    devices: list[str | None] = [*groups] or [None]
    return [Slot(gpu, number, workers_per_gpu) for gpu in devices for number in range(workers_per_gpu)]


@dataclass
class _Child:
    slot: Slot
    worker_id: str = ""
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    backoff: float = 0.0
    start_at: float = 0.0
    starts: int = 0
    young_deaths: int = 0  # in a row, with no pair in flight
    oom_kills: int = 0
    given_up: bool = False  # not started again


class Launcher:
    """Starts a ``celery worker`` in each slot and keeps it there until told to stop."""

    def __init__(
        self,
        settings: Settings,
        slots: Sequence[Slot],
        database: Engine,
        *,
        log_folder: Path | None = None,
        give_up: bool = False,
    ) -> None:
        self._settings = settings
        self._give_up = give_up
        self._children = [_Child(slot) for slot in slots]
        self._database = database
        self._log_folder = log_folder
        self._stopping = Event()
        self._hurry = Event()
        self._to_judge: list[tuple[str, str]] = []  # worker id, and how it crashed ("" if it did not)
        self._look_at_broker = 0.0

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Watch until ``stop`` is called or ``until`` says so, then stop all and return when they have ended.

        Raises WorkersError, if made with ``give_up``, when a slot's worker cannot start, or died young three times;
        in any case when no slot has a model that gives numbers.
        """
        try:
            while not self._stopping.is_set() and not until():
                self.tend()
                self._stopping.wait(_POLL_S)
        finally:
            self._stopping.set()
            self._stop_children()

    def stop(self) -> None:
        """Ask ``run`` to come to its end, a second time to do so at once; safe in a signal handler."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    def tend(self) -> None:
        """One look at every slot: start what is due, judge what has ended; and at an embedded broker."""
        self._keep_broker()
        for child in self._children:
            if child.process is None:
                if not child.given_up and time.monotonic() >= child.start_at:
                    self._start(child)
            elif child.process.poll() is not None:
                self._judge(child, child.process.returncode)

    def pids(self) -> list[int]:
        """Of the processes that run."""
        return [child.process.pid for child in self._children if child.process is not None]

    def _start(self, child: _Child) -> None:
        child.worker_id = f"{socket.gethostname()}:{child.slot.name}:{uuid.uuid4().hex[:8]}"
        environment = {
            **os.environ,
            **python_path(),
            **self._settings.environment(),
            **child.slot.environment(self._settings.batch_size),
            "FARM_WORKER_ID": child.worker_id,
        }
        # What was asked for goes before what the slot supposes.
        if self._settings.threads is not None:
            environment["FARM_THREADS"] = str(self._settings.threads)
        if "pairs_in_flight" in self._settings.model_fields_set:
            environment["FARM_PAIRS_IN_FLIGHT"] = str(self._settings.pairs_in_flight)
        if self._settings.memory_fraction is not None:
            environment["FARM_MEMORY_FRACTION"] = str(self._settings.memory_fraction)
        environment["FARM_RESTARTS"] = str(child.starts)
        child.starts += 1
        if self._settings.metrics_port is not None:
            environment["FARM_METRICS_PORT"] = str(self._settings.metrics_port + self._children.index(child))
        if self._log_folder is not None:
            environment["FARM_LOG_FILE"] = str((self._log_folder / f"{child.slot.name}.log").resolve())
        node = f"{child.slot.name}-{os.getpid()}@%h"
        command = python_command(
            "workers.start", "-A", "workers", "worker", "--loglevel", "INFO",
            "--hostname", node, "--without-gossip", "--without-mingle",
        )  # fmt: skip
        child.oom_kills = oom_kills()
        child.process = self._spawn(command, environment, child.slot)
        child.started = time.monotonic()
        log.info("%s: worker %s started (process %d)", child.slot.name, child.worker_id, child.process.pid)

    def _spawn(self, command: list[str], environment: Mapping[str, str], slot: Slot) -> subprocess.Popen[bytes]:
        output = None
        if self._log_folder is not None:
            make_private_folder(self._log_folder)
            make_private_file(self._log_folder / f"{slot.name}.log")
            output = open(self._log_folder / f"{slot.name}.log", "ab")  # noqa: SIM115 - the child's, closed below
        try:
            # A process group of its own: Ctrl-C reaches the launcher alone, which stops its workers in order.
            return subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
        finally:
            if output is not None:
                output.close()

    def _judge(self, child: _Child, code: int) -> None:
        """Count a crash against the pairs that ran, free them in any case, and plan the restart."""
        if child.process is not None:
            end_group(child.process.pid)
        out_of_memory = code == -signal.SIGKILL and oom_kills() > child.oom_kills
        crashed = code in _CRASHES or out_of_memory
        what = "was killed for memory" if out_of_memory else describe_exit(code)
        self._to_judge.append((child.worker_id, f"its worker {what}" if crashed else ""))
        freed = self._free()
        lived = time.monotonic() - child.started
        steady = lived >= _STEADY_S or freed > 0
        child.young_deaths = 0 if steady else child.young_deaths + 1
        child.backoff = (
            _FIRST_BACKOFF_S if steady else min(max(_FIRST_BACKOFF_S, child.backoff * 2), _LONGEST_BACKOFF_S)
        )
        child.start_at = time.monotonic() + child.backoff * random.uniform(0.8, 1.2)
        child.process = None
        child.given_up = code == EXIT_NO_NUMBERS
        plan = "not started again" if child.given_up else f"restart in {child.backoff:.0f} s"
        log.warning(
            "%s: worker %s after %.0f s; released %d orphaned pairs; %s",
            child.slot.name, what, lived, freed, plan,
        )  # fmt: skip
        lost = code in (EXIT_CANNOT_START, EXIT_NO_NUMBERS) or child.young_deaths >= _YOUNG_DEATHS
        if (self._give_up and lost) or all(each.given_up for each in self._children):
            raise WorkersError(f"{child.slot.name}: the worker {what}; its log tells why")

    def _free(self) -> int:
        """Free the pairs of the workers that ended, or try again later if the database is away; gives how many."""
        freed = 0
        while self._to_judge:
            worker_id, crash = self._to_judge[0]
            try:
                freed += (
                    record_crash(self._database, worker_id, crash)
                    if crash
                    else release_claims(self._database, worker_id)
                )
                with self._database.begin() as connection:
                    fold(connection, worker_id)
                    worker_gone(connection, worker_id)
            except DBAPIError:
                break
            del self._to_judge[0]
        return freed

    def _keep_broker(self) -> None:
        """An embedded broker has no other supervisor; and pairs are freed once the database is back."""
        if time.monotonic() < self._look_at_broker:
            return
        self._look_at_broker = time.monotonic() + _LOOK_AT_BROKER_S
        self._free()
        try:
            if ensure_broker(self._settings):
                log.warning("embedded broker restarted: it had died; the queue is what its disk holds")
        except (BrokerError, OSError) as error:
            log.error("%s", error)

    def _stop_children(self) -> None:
        running = [child.process for child in self._children if child.process is not None]
        end_all(running, self._settings.shutdown_grace_s, self._hurry)
        self._to_judge += [(child.worker_id, "") for child in self._children if child.process is not None]
        self._free()
        if self._to_judge:
            log.warning("the database is away: the leases of %d workers will expire", len(self._to_judge))
