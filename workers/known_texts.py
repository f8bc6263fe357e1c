"""The descriptions that need not be generated, because the database has them: of this pair before, or of its scene."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Engine as Database

from app.database.claim_rows import Claim
from app.database.connection import reading
from app.database.run_rows import has_described
from app.text_keys import Wanted, known_texts
from workers.retry import RetryUntilUp

_VIEW_S = 30.0  # how old it may be what is known of other runs


class KnownTexts:
    """Looks scenes up for one worker process, and only where they may be found."""

    def __init__(
        self, database: Database, retry: RetryUntilUp, model_hash: str, scene: Callable[[str], list[dict[str, Any]]]
    ) -> None:
        """``scene`` gives the descriptions that the database has of one (``Committer.scene``)."""
        self._database, self._retry, self._model_hash, self._scene = database, retry, model_hash, scene
        self._others: dict[int, tuple[bool, float]] = {}

    def of(self, claim: Claim, wanted: Sequence[Wanted], scene_key: str) -> dict[str, dict[str, Any]]:
        """Those of the pair's wanted descriptions that are known, by their keys. Raises ShuttingDown."""
        if claim.run.options.get("reuse") is False:
            # what is verified later keeps its own descriptions all the same: nobody asked for other ones
            return known_texts(wanted, claim.known) if claim.pair.verify else {}
        found = list(claim.known)
        if self._may_know(claim):
            found += self._scene(scene_key)
        return known_texts(wanted, found)

    def _may_know(self, claim: Claim) -> bool:
        """Whether other pairs of the database may have the same descriptions: another run's, or without chance any."""
        if claim.run.settings.temperature == 0:
            return True
        answer, since = self._others.get(claim.run.id, (False, float("-inf")))
        if time.monotonic() - since > _VIEW_S:
            answer = self._retry(lambda: self._others_described(claim))
            self._others[claim.run.id] = answer, time.monotonic()
        return answer

    def _others_described(self, claim: Claim) -> bool:
        with reading(self._database) as connection:
            template = claim.run.settings.template_hash
            return has_described(connection, self._model_hash, template, besides=claim.run.id)
