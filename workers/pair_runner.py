"""One pair from its message to its row: claim, describe, write. The farm's path through the worker.

A message may come twice, late, or from another time; the claim in the database tells what to do with it. Whatever
happens here ends in one of three ways: the pair has its row or its failure (the message is acknowledged), the pair is
another's business (likewise), or the worker stops and requeues it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Event, Lock
from typing import Any

from sqlalchemy import Engine as Database
from sqlalchemy.exc import DataError

from app.database.claim_rows import Claim, ClaimStatus, begin_quarantined, claim_pair, release_claims
from app.database.result_rows import fail_pair, write_result
from app.errors import PairError
from app.settings import Settings
from workers.engine.api import (
    Completion,
    ControlTokens,
    DeviceLost,
    Engine,
    EngineStopped,
    ImageUnreadable,
    PromptTooLong,
    Request,
)
from workers.isolation import SharedExclusiveLock
from workers.requests import requests_of
from workers.retry import RetryUntilUp, ShuttingDown

log = logging.getLogger(__name__)

_TAKEOVER_AFTER_LEASES = 0.5  # after a database outage, holders renew their leases before anybody takes them over


class Requeue(Exception):
    """The worker stops before the pair is done: its message belongs back into the queue."""


class PairRunner:
    """All pairs of one worker process; ``run`` is called by as many threads as pairs are in flight."""

    def __init__(
        self, settings: Settings, database: Database, engine: Engine, worker: str, model_keys: Collection[str]
    ) -> None:
        self._settings = settings
        self._database = database
        self._engine = engine
        self._worker = worker
        self._model_keys = model_keys
        self._stopping = Event()
        self._ended = Event()
        self._retry = RetryUntilUp(self._ended)
        self._lock_of_pairs = SharedExclusiveLock()
        self._lock = Lock()
        self._running: dict[tuple[str, int], Future[None]] = {}
        self._held: set[int] = set()

    def run(self, run_uuid: str, pair_id: int) -> None:
        """See to it that the pair has its outcome. Raises Requeue if the worker stops before that."""
        if self._stopping.is_set():
            raise Requeue
        message = (run_uuid, pair_id)
        with self._lock:
            earlier = self._running.get(message)
            if earlier is None:
                mine = self._running[message] = Future()
        if earlier is not None:  # a second delivery joins the first, which then acknowledges both
            earlier.result()
            return
        try:
            self._run_claimed(message)
            mine.set_result(None)
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._running[message]

    def stop_taking(self) -> None:
        """Messages that come from now on are requeued."""
        self._stopping.set()

    def in_flight(self) -> int:
        """Pairs that threads are busy with."""
        return len(self._running)

    def held(self) -> list[int]:
        """The pairs whose claims this process has, and whose leases it must renew."""
        with self._lock:
            return list(self._held)

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

    def _run_claimed(self, message: tuple[str, int]) -> None:
        try:
            standing, claim = self._retry(lambda: self._claim(message))
            if claim is None:
                _explain(standing, message)
                return
            with self._holding(claim), self._lock_of_pairs.enter(alone=claim.quarantined):
                if claim.quarantined and not self._begin_quarantined(claim):
                    _explain(ClaimStatus.HELD, message)
                    return
                self._describe(claim)
        except ShuttingDown:
            raise Requeue from None

    @contextmanager
    def _holding(self, claim: Claim) -> Iterator[None]:
        with self._lock:
            self._held.add(claim.pair_id)
        try:
            yield
        finally:
            with self._lock:
                self._held.discard(claim.pair_id)

    def _begin_quarantined(self, claim: Claim) -> bool:
        return self._retry(lambda: begin_quarantined(self._database, self._worker, claim.pair_id))

    def _claim(self, message: tuple[str, int]) -> tuple[ClaimStatus, Claim | None]:
        return claim_pair(
            self._database,
            message,
            self._worker,
            lease_s=self._settings.lease_s,
            max_crashes=self._settings.max_attempts,
            model_keys=self._model_keys,
            takeover=self.may_take_over(),
        )

    def _describe(self, claim: Claim) -> None:
        started = time.monotonic()
        requests = self._requests(claim)
        if requests is None:
            return
        try:
            descriptions = self._generate(requests, claim)
        except PairError as error:
            self._fail(claim, error.reason, str(error))
        except PromptTooLong as error:
            self._fail(claim, "prompt too long", str(error))
        except ControlTokens as error:
            self._fail(claim, "control token in a name", str(error))
        except ImageUnreadable as error:
            self._fail(claim, "image unreadable", str(error))
        except EngineStopped as error:
            if not self._stopping.is_set():  # its thread died by itself: this process can describe nothing any more
                raise DeviceLost(f"the engine is gone: {error}") from error
            self._release(claim)
            raise Requeue from None
        except DeviceLost:
            raise  # the process ends (workers.process); its claims are its supervisor's to judge
        except Exception as error:
            log.exception("model error: %s: %d attempts failed", _named(claim), self._settings.max_attempts)
            self._fail(claim, "model error", f"{type(error).__name__}: {error}")
        else:
            self._write(claim, requests, descriptions, time.monotonic() - started)

    def _requests(self, claim: Claim) -> list[Request] | None:
        """What to ask of the engine; None where that cannot be made, and the pair has failed with the reason."""
        try:
            return requests_of(claim.run, claim.pair, self._settings)
        except PairError as error:
            self._fail(claim, error.reason, str(error))
        except Exception as error:
            log.exception("prompt error: %s", _named(claim))
            self._fail(claim, "prompt cannot be made", f"{type(error).__name__}: {error}")
        return None

    def _generate(self, requests: list[Request], claim: Claim) -> dict[Request, Completion]:
        """Descriptions of the distinct requests; what fails is asked for again, up to ``max_attempts`` times."""
        done: dict[Request, Completion] = {}
        for attempt in range(1, self._settings.max_attempts + 1):
            wanted = [request for request in dict.fromkeys(requests) if request not in done]
            failed: list[Exception] = []
            for request, future in zip(wanted, self._engine.submit(wanted), strict=True):
                try:
                    done[request] = future.result()
                except (PairError, ImageUnreadable, PromptTooLong, ControlTokens, EngineStopped, DeviceLost):
                    raise
                except Exception as error:  # noqa: BLE001 - told above: asked for again, then the pair's failure
                    failed.append(error)
            if not failed:
                return done
            log.warning("retry: %s: attempt %d failed: %s", _named(claim), attempt, failed[0])
        raise failed[0]

    def _write(self, claim: Claim, requests: list[Request], done: dict[Request, Completion], seconds: float) -> None:
        rows = [_as_row(done[request]) for request in requests]

        def write() -> bool:
            with self._database.begin() as connection:
                return write_result(
                    connection, claim.pair_id, rows, worker=self._worker, attempts=claim.attempts, seconds=seconds
                )

        try:
            if not self._retry(write):
                log.warning("duplicate: %s had its result already, which stays", _named(claim))
        except DataError as error:
            self._fail(claim, "result cannot be stored", str(error.orig))

    def _fail(self, claim: Claim, reason: str, detail: str) -> None:
        def write() -> None:
            with self._database.begin() as connection:
                fail_pair(connection, claim.pair_id, reason, detail, attempts=claim.attempts, worker=self._worker)

        log.warning("pair failed: %s: %s: %s", _named(claim), reason, detail)
        self._retry(write)

    def _release(self, claim: Claim) -> None:
        self._retry(lambda: release_claims(self._database, self._worker, [claim.pair_id]))


def _as_row(description: Completion) -> dict[str, Any]:
    return {
        "text": description.text,
        "finish_reason": description.finish_reason,
        "tokens": description.tokens,
        "prompt_tokens": description.prompt_tokens,
    }


def _named(claim: Claim) -> str:
    """A pair as an operator finds it again, in logs and in the inputs."""
    try:
        image = str(claim.pair.image_id)
    except (KeyError, TypeError, ValueError):  # what is stored is no pair, and that is why it fails
        image = "unknown"
    return f"run {claim.run.name}, image {image}, pair {claim.pair_id}"


def _explain(standing: ClaimStatus, message: tuple[str, int]) -> None:
    if standing is ClaimStatus.UNKNOWN:
        log.warning("dropped a stale message, of a run or model that is not here: run %s, pair %d", *message)
    elif standing is ClaimStatus.HELD:
        log.info("dropped a duplicate message: run %s, pair %d is claimed by another worker", *message)
