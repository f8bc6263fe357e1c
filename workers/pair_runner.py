"""One pair from its message to its row: claim, describe, write.

A message may come twice, late, or from another time; the claim in the database tells what to do with it. Whatever
happens here ends in one of three ways: the pair has its row or its failure (the message is acknowledged), the pair is
another's business (likewise), or the worker stops and requeues it.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from dataclasses import replace
from itertools import chain
from threading import Event

from sqlalchemy import Engine as Database
from sqlalchemy.exc import DataError

from app.database.claim_rows import Claim, Claimant, ClaimStatus, Message, begin_quarantined, release_claims
from app.database.result_rows import Outcome
from app.errors import FailureReason, PairError
from app.logs import about
from app.settings import Settings
from workers.committer import Committer
from workers.engine.api import Completion, DeviceLost, Engine, EngineStopped, LogitsNotFinite, Request
from workers.host_images import HostImages, HostTrouble
from workers.identity import WorkerIdentity
from workers.in_flight import Ended, InFlight, RunEnded
from workers.isolation import SharedExclusiveLock
from workers.known_texts import KnownTexts
from workers.model_watch import REASONS, ModelWatch
from workers.pair_lines import explain, named, names_of
from workers.requests import Known, PairRequests, requests_of
from workers.retry import RetryUntilUp, ShuttingDown
from workers.text_rows import as_row

log = logging.getLogger(__name__)

_TAKEOVER_AFTER_LEASES = 0.5  # after a database outage, holders renew their leases before anybody takes them over


_AT_ONCE: tuple[type[Exception], ...] = (PairError, *REASONS, EngineStopped, DeviceLost, RunEnded, ShuttingDown)
"""What is not asked for again by ``max_attempts``."""


class Requeue(Exception):
    """The worker stops before the pair is done: its message belongs back into the queue."""


class PairRunner:
    """All pairs of one worker process; ``run`` is called by as many threads as pairs are in flight."""

    def __init__(self, settings: Settings, database: Database, engine: Engine, worker: WorkerIdentity) -> None:
        self._settings = settings
        self._database = database
        self._engine = engine
        self._worker = worker
        self._stopping = Event()
        self._ended = Event()
        self._retry = RetryUntilUp(self._ended)
        self._committer = Committer(database, self._claimant, self._retry)
        self._in_flight = InFlight()
        self.vitals = self._committer.vitals
        self.vitals.watch(engine.stats, self.in_flight, self._in_flight.oldest_s)
        self._images = HostImages(database, settings, self._stopping, self._retry)
        self._known_texts = KnownTexts(database, self._retry, worker.model_hash, self._committer.scene)
        self._isolation = SharedExclusiveLock()
        self._model = ModelWatch()

    def run(self, run_uuid: str, pair_id: int) -> Ended:
        """See to it that the pair has its outcome; gives it. Raises Requeue if the worker stops before that."""
        if self._stopping.is_set():
            raise Requeue
        message = (run_uuid, pair_id)
        return self._in_flight.once(message, lambda: self._run_claimed(message))

    @property
    def hung_reads(self) -> int:
        """Reads of images that never returned: threads that the process must leave behind."""
        return self._images.readers.hung

    def stop_taking(self) -> None:
        """Messages that come from now on are requeued."""
        self._stopping.set()

    def in_flight(self) -> int:
        """Pairs that threads are busy with."""
        return len(self._in_flight)

    def held(self) -> list[int]:
        """The pairs whose claims this process has, and whose leases it must renew."""
        return self._in_flight.held()

    def runs(self) -> set[int]:
        """The runs of the pairs in flight."""
        return self._in_flight.runs()

    def abandon(self, run_id: int) -> int:
        """Let go of a run's pairs in flight: it was cancelled or deleted. Gives how many."""
        return self._in_flight.abandon(run_id)

    def may_take_over(self) -> bool:
        """Whether an expired lease means that its holder is gone, and not that the database was."""
        return self._retry.healthy_for() > _TAKEOVER_AFTER_LEASES * self._settings.lease_s

    def note_database_away(self) -> None:
        """Another thread of the process could not reach the database."""
        self._retry.note_away()

    def end(self) -> None:
        """Stop the engine; what it had in flight is requeued."""
        self._stopping.set()
        self._ended.set()
        self._engine.close()

    def close(self) -> None:
        """End the committing thread, once nothing is in flight."""
        self._committer.close()

    def _claimant(self) -> Claimant:
        return Claimant(
            worker=self._worker.name,
            lease_s=self._settings.lease_s,
            max_crashes=self._settings.max_attempts,
            model_keys=self._worker.model_keys,
            only_run=self._settings.only_run,
            takeover=self.may_take_over(),
        )

    def _run_claimed(self, message: Message) -> Ended:
        until: float | None = None
        try:
            # A lease says that its pair moves: a pair that waits for this host's images is free for another host.
            while isinstance(ended := self._attempt(message, until), HostTrouble):
                until = until or time.monotonic() + self._settings.wait_images_s
                self._images.wait(ended, until)
            return ended
        except ShuttingDown:
            raise Requeue from None

    def _attempt(self, message: Message, until: float | None) -> Ended | HostTrouble:
        """Claim the pair and see to its outcome; or give it back and say which trouble of this host's is in the way.

        Trouble that lasts ``until`` (by the monotonic clock; None: it is new) is the pair's failure.
        """
        status, claim = self._committer.claim(message)
        if claim is None:
            self._drop(status, message)
            return Ended()
        with about(**names_of(claim)):
            return self._run_as(status, claim, message, until)

    def _run_as(self, status: ClaimStatus, claim: Claim, message: Message, until: float | None) -> Ended | HostTrouble:
        if status is ClaimStatus.POISONOUS:
            detail = claim.crash or "its worker vanished each time it ran this pair alone"
            return self._fail(replace(claim, attempts=claim.attempts - 1), FailureReason.KILLS_WORKER, detail)
        with self._in_flight.holding(claim), self._isolation.enter(alone=claim.quarantined):
            if claim.quarantined and not self._begin_quarantined(claim):
                self._drop(ClaimStatus.HELD, message)
                return Ended()
            try:
                return self._describe(claim)
            except HostTrouble as trouble:
                if not self._settings.wait_images_s or (until is not None and time.monotonic() >= until):
                    return self._fail(claim, FailureReason.IMAGES_AWAY, str(trouble))
                self._release(claim)
                return trouble

    def _begin_quarantined(self, claim: Claim) -> bool:
        return self._retry(lambda: begin_quarantined(self._database, self._worker.name, claim.pair_id))

    def _describe(self, claim: Claim) -> Ended:
        started = time.monotonic()
        asked = self._requests(claim)
        if isinstance(asked, Ended):
            return asked
        try:
            known = self._known_texts.of(claim, asked.wanted, asked.scene_key)
            completions = self._generate(asked, known, claim)
        except PairError as error:
            self._images.judge(claim, error)
            return self._fail(claim, error.reason, str(error))
        except tuple(REASONS) as error:
            ended = self._fail(claim, REASONS[type(error)], str(error))
            self._model.pair_failed(error)
            return ended
        except EngineStopped as error:
            if not self._stopping.is_set():  # its thread died by itself: this process can describe nothing any more
                raise DeviceLost(f"the engine is gone: {error}") from error
            self._release(claim)
            raise Requeue from None
        except RunEnded:
            log.info("cancelled or deleted: %s is let go", named(claim))
            self._release(claim)
            return Ended()
        except (DeviceLost, ShuttingDown):
            raise  # the process ends (workers.process); its claims are its supervisor's to judge
        except Exception as error:
            log.exception("model error: %s: %d attempts failed", named(claim), self._settings.max_attempts)
            return self._fail(claim, FailureReason.MODEL_ERROR, f"{type(error).__name__}: {error}")
        else:
            return self._write(claim, asked, completions, known, time.monotonic() - started)

    def _requests(self, claim: Claim) -> PairRequests | Ended:
        """What to ask of the engine; how the pair ended where that cannot be made."""
        try:
            return self._images.read(
                claim, lambda: requests_of(claim, self._settings, self._worker.model_hash, self._images.readers)
            )
        except PairError as error:
            return self._fail(claim, error.reason, str(error))
        except (HostTrouble, ShuttingDown):
            raise
        except Exception as error:
            log.exception("prompt error: %s", named(claim))
            return self._fail(claim, FailureReason.PROMPT_FAILED, f"{type(error).__name__}: {error}")

    def _generate(self, asked: PairRequests, known: Known, claim: Claim) -> dict[Request, Completion]:
        """Completions of the distinct requests whose answer is not known.

        What fails is asked for again, up to ``max_attempts`` times. A question that fails then is left out: a
        description does not depend on it.
        """
        done: dict[Request, Completion] = {}
        groups = asked.groups(known)
        failed: list[Exception] = []
        for attempt in range(1, self._settings.max_attempts + 1):
            wanted = [[request for request in group if request not in done] for group in groups]
            failed, noise = [], None
            for request, future in zip(chain(*wanted), self._submit(wanted, claim), strict=True):
                try:
                    done[request] = future.result()
                    self._model.text()
                except LogitsNotFinite as error:
                    noise = error  # the others' texts tell whether it is the model's fault
                except _AT_ONCE:
                    raise
                except Exception as error:  # noqa: BLE001 - told above: asked for again, then the pair's failure
                    failed.append(error)
            if noise is not None:
                raise noise
            if not failed:
                return done
            self.vitals.retried(failed[0])
            log.warning("retry: %s: attempt %d failed: %s", named(claim), attempt, failed[0])
        if any(request in asked.requests and request not in done for request in chain(*groups)):
            raise failed[0]
        log.warning("not verified: %s: %d questions failed: %s", named(claim), len(failed), failed[0])
        return done

    def _submit(self, wanted: list[list[Request]], claim: Claim) -> list[Future[Completion]]:
        """Ask the engine; requests of one group share what their prompts begin with."""
        futures = [future for group in wanted if group for future in self._engine.submit(group)]
        self._in_flight.owes(claim, futures)
        return futures

    def _write(
        self,
        claim: Claim,
        asked: PairRequests,
        done: dict[Request, Completion],
        known: Known,
        seconds: float,
    ) -> Ended:
        descriptions = asked.rows(done, known, as_row)
        outcome = Outcome(
            claim.pair_id,
            claim.run.uuid,
            claim.request,
            claim.attempts,
            seconds,
            descriptions=descriptions,
            scene_key=asked.scene_key,
            provenance=self._worker.provenance,
            image=asked.image,
        )
        try:
            if self._committer.write(outcome, alone=claim.quarantined):
                return Ended(done=True)
            log.warning("duplicate: %s had its result already, or its run is gone", named(claim))
            return Ended()
        except DataError as error:
            return self._fail(claim, FailureReason.NOT_STORABLE, str(error.orig))

    def _fail(self, claim: Claim, reason: FailureReason, detail: str) -> Ended:
        log.warning("pair failed: %s: %s: %s", named(claim), reason, detail)
        outcome = Outcome(claim.pair_id, claim.run.uuid, claim.request, claim.attempts, reason=reason, detail=detail)
        self._committer.write(outcome, alone=claim.quarantined)
        return Ended(failure=f"{reason}: {detail}")

    def _drop(self, status: ClaimStatus, message: Message) -> None:
        self.vitals.dropped(status.name.lower())
        explain(status, message)

    def _release(self, claim: Claim) -> None:
        self._retry(lambda: release_claims(self._database, self._worker.name, [claim.pair_id]))
