"""Claims, outcomes and questions of many task threads, together: one transaction for all that came within moments.

A task acknowledges its message after its group's commit. What one outcome's data spoils is its own: the group is
divided, and the others are committed. A pair that runs alone never shares a transaction.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from sqlalchemy import Engine as Database
from sqlalchemy.exc import DataError, IntegrityError

from app.database.claim_rows import Claim, Claimant, ClaimStatus, Message, claim_pairs
from app.database.result_rows import Outcome, scenes, write_outcomes
from workers.helper_threads import start_helper
from workers.retry import RetryUntilUp, ShuttingDown
from workers.vitals import Vitals

log = logging.getLogger(__name__)

_GATHER_S = 0.01  # how long the first of a group waits for others: a pair takes seconds, a commit milliseconds
_MOST = 64


@dataclass
class _Item:
    """A claim or an outcome on its way into the database, or a scene that is asked for."""

    work: Message | Outcome | str
    alone: bool
    future: Future[Any] = field(default_factory=Future)


class Committer:
    """The one thread of a process that writes claims and outcomes."""

    def __init__(
        self,
        database: Database,
        claimant: Callable[[], Claimant],
        retry: RetryUntilUp,
        died: Callable[[str], None] | None = None,
    ) -> None:
        """``claimant`` tells who claims, and on which terms, each time anew."""
        self._database, self._claimant, self._retry = database, claimant, retry
        self.vitals = Vitals()
        self._items: SimpleQueue[_Item | None] = SimpleQueue()
        self._thread = start_helper(self._loop, "committer", died)

    def claim(self, message: Message) -> tuple[ClaimStatus, Claim | None]:
        """Ask for a pair. Raises ShuttingDown."""
        answer: tuple[ClaimStatus, Claim | None] = self._submit(message, alone=False)
        return answer

    def write(self, outcome: Outcome, *, alone: bool = False) -> bool:
        """Keep an outcome; False if its pair had one. Raises ShuttingDown, DataError."""
        kept = bool(self._submit(outcome, alone=alone))
        self.vitals.ended(outcome.descriptions, outcome.reason, outcome.detail, kept=kept)
        return kept

    def scene(self, key: str) -> list[dict[str, Any]]:
        """The descriptions that the database has of a scene. Raises ShuttingDown."""
        found: list[dict[str, Any]] = self._submit(key, alone=False)
        return found

    def close(self) -> None:
        """End the thread once what was submitted is committed, or the database is given up."""
        self._items.put(None)
        self._thread.join(timeout=5.0)

    def _submit(self, work: Message | Outcome | str, *, alone: bool) -> Any:
        item = _Item(work, alone)
        self._items.put(item)
        return item.future.result()

    def _loop(self) -> None:
        while (first := self._items.get()) is not None:
            group = [first] if first.alone else self._gather(first)
            for part in ([item for item in group if not item.alone], *([item] for item in group if item.alone)):
                if part:
                    self._commit(part)

    def _gather(self, first: _Item) -> list[_Item]:
        group = [first]
        deadline = time.monotonic() + _GATHER_S
        while len(group) < _MOST:
            try:
                item = self._items.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                break
            if item is None:
                self._items.put(None)  # for the loop, after this group
                break
            group.append(item)
        return group

    def _commit(self, group: list[_Item]) -> None:
        try:
            answers = self._retry(lambda: self._transaction(group))
        except ShuttingDown as error:
            for item in group:
                item.future.set_exception(ShuttingDown(str(error)))
        except (DataError, IntegrityError) as error:
            if len(group) == 1:
                group[0].future.set_exception(error)
                return
            half = len(group) // 2
            self._commit(group[:half])
            self._commit(group[half:])
        else:
            for item, answer in zip(group, answers, strict=True):
                item.future.set_result(answer)

    def _transaction(self, group: list[_Item]) -> list[Any]:
        claimant = self._claimant()
        messages = [item.work for item in group if isinstance(item.work, tuple)]
        outcomes = [item.work for item in group if isinstance(item.work, Outcome)]
        keys = [item.work for item in group if isinstance(item.work, str)]
        with self._database.begin() as connection:
            kept = write_outcomes(connection, outcomes, claimant.worker) if outcomes else {}
            claims = claim_pairs(connection, messages, claimant) if messages else {}
            known = scenes(connection, keys) if keys else {}

        def answer(work: Message | Outcome | str) -> Any:
            if isinstance(work, Outcome):
                return kept[work.pair_id]
            return known.get(work, []) if isinstance(work, str) else claims[work]

        return [answer(item.work) for item in group]
