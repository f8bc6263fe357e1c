"""Whatever is done to a run, in whatever order: its counters are right after each step, and its export in the end is
that of a new run over the inputs as they are then.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import update

from app.database.claim_rows import claim_pair, record_crash, release_claims
from app.database.connection import reading
from app.database.pair_rows import done_pairs, redo
from app.database.records import ACTIVE, CANCELLED, PAUSED
from app.database.result_rows import forget_failures
from app.database.run_rows import delete_run, set_state
from app.database.schema import claims
from app.errors import RunError
from producer.run_request import Inputs
from tests.runs.conftest import Fresh
from tests.support.desk import Desk, change, mismatched
from tests.support.runs import claimant, write_inputs

PREDICATES = ("on", "below", "near", "has")
STEPS = 10


class Story:
    """A run to which things happen."""

    def __init__(self, desk: Desk, inputs: Inputs, numbers: random.Random) -> None:
        self.desk, self.inputs, self.numbers = desk, inputs, numbers
        self.told: list[str] = []
        self.others = 0
        desk.enqueue(inputs)

    def enqueue_again(self) -> None:
        """As it is, which is refused where it has changed."""
        with suppress(RunError):
            self.desk.enqueue(self.inputs)

    def change_inputs(self) -> None:
        """Some of the candidates, a box, a picture."""
        how = self.numbers.choice([self._predicate, self._pair_less, self._box, self._picture, self._touch])
        self.told.append(how.__name__)
        how()
        self.desk.enqueue(self.inputs, update=True)

    def change_inputs_in_flight(self) -> None:
        """Likewise while all that is pending is in a worker's hands."""
        with self.desk.all_in_flight():
            self.change_inputs()

    def take_a_change_back(self) -> None:
        """Two changes between which a pair is described or not."""
        before = self._stage1.read_bytes()
        self._predicate()
        self.desk.enqueue(self.inputs, update=True)
        if self.numbers.random() < 0.5:
            self.desk.describe(most=self.numbers.randrange(6))
        self._stage1.write_bytes(before)
        self.desk.enqueue(self.inputs, update=True)

    def describe_some(self) -> None:
        """A worker is there for a while."""
        self.desk.describe(most=self.numbers.randrange(8))

    def lose_a_worker(self) -> None:
        """One that vanishes with pairs in its hands."""
        run, worker = self.desk.run(), f"gone {len(self.told)}"
        for pair_id in self.desk.pending()[: self.numbers.randrange(1, 4)]:
            claim_pair(self.desk.database, (run.uuid, pair_id), claimant(worker))
        if self.numbers.random() < 0.3:
            record_crash(self.desk.database, worker, "SIGSEGV")
        elif self.numbers.random() < 0.5:
            release_claims(self.desk.database, worker)
        else:
            with self.desk.database.begin() as connection:
                freed = {"worker": "", "lease_until": 0.0, "lost": claims.c.lost + 1}
                connection.execute(update(claims).where(claims.c.worker == worker).values(freed))

    def break_a_picture(self) -> None:
        """Its pairs fail, whatever becomes of it later."""
        path = self.inputs.image_root / "2.png"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])
        with suppress(RunError):
            self.desk.enqueue(self.inputs)
        self.desk.describe()
        path.write_bytes(whole)
        self.desk.enqueue(self.inputs, update=True)

    def retry(self) -> None:
        """Failures are forgotten."""
        with self.desk.database.begin() as connection:
            forget_failures(connection, self.desk.run())

    def cancel_and_resume(self) -> None:
        """With a worker in between, which does nothing."""
        self._pass_through(CANCELLED)

    def pause_and_resume(self) -> None:
        """Likewise."""
        self._pass_through(PAUSED)

    def redo_some(self) -> None:
        """Another draw of greedy decoding says the same."""
        with self.desk.database.begin() as connection:
            rows = list(done_pairs(connection, self.desk.run(), []))[: self.numbers.randrange(1, 4)]
            redo(connection, self.desk.run(), rows, lambda pair, _: pair.predicates[:1], None)

    def another_run(self) -> None:
        """One that shares texts with ours; the one before it is deleted."""
        if self.others:
            with self.desk.database.begin() as connection:
                delete_run(connection, self.desk.run(f"other {self.others}"))
        self.others += 1
        self.desk.enqueue(self.inputs, f"other {self.others}", top_k=1)
        self.desk.describe(f"other {self.others}", most=self.numbers.randrange(6))

    def other_top_k(self) -> None:
        """Fewer predicates, or all of them again."""
        self.desk.enqueue(self.inputs, update=True, top_k=self.numbers.choice([1, 2, 10]))
        self.desk.enqueue(self.inputs, update=True)

    def _pass_through(self, state: str) -> None:
        with self.desk.database.begin() as connection:
            set_state(connection, self.desk.run(), state)
        assert self.desk.describe(most=3) == 0
        with self.desk.database.begin() as connection:
            set_state(connection, self.desk.run(), ACTIVE)

    @property
    def _stage1(self) -> Path:
        return self.inputs.stage1_files[0]

    def _candidates(self, how: Callable[[list[dict[str, Any]]], None]) -> None:
        key = self.numbers.choice(["1", "image-2", "3"])
        change(self._stage1, lambda document: how(document["per_image_top100_candidates"][key]))

    def _predicate(self) -> None:
        def other(found: list[dict[str, Any]]) -> None:
            if found:
                self.numbers.choice(found).update(predicted_predicate=self.numbers.choice(PREDICATES))

        self._candidates(other)

    def _pair_less(self) -> None:
        self._candidates(lambda found: found.__delitem__(slice(2)) if len(found) > 2 else None)

    def _box(self) -> None:
        box = [self.numbers.randrange(20), self.numbers.randrange(20), 40, 40]
        image, thing = self.numbers.randrange(3), self.numbers.randrange(4)
        change(self.inputs.images, lambda images: images[image]["objects"][thing].update(bbox=box))

    def _picture(self) -> None:
        colour = (self.numbers.randrange(256), 7, 7)
        path = self.inputs.image_root / f"{self.numbers.randrange(2)}.png"
        Image.new("RGB", (64, 48), colour).save(path, compress_level=0)
        os.utime(path, ns=(1, self.numbers.randrange(10**9)))

    def _touch(self) -> None:
        os.utime(self.inputs.image_root / "0.png", ns=(1, self.numbers.randrange(10**9)))


KINDS: tuple[Callable[[Story], None], ...] = (
    Story.enqueue_again, Story.change_inputs, Story.change_inputs, Story.change_inputs_in_flight,
    Story.take_a_change_back, Story.describe_some, Story.describe_some, Story.lose_a_worker, Story.break_a_picture,
    Story.retry, Story.cancel_and_resume, Story.pause_and_resume, Story.redo_some, Story.another_run, Story.other_top_k,
)  # fmt: skip


@pytest.mark.parametrize("seed", range(int(os.environ.get("TEST_STORIES", "4"))))
def test_after_ten_steps_at_random_a_run_is_what_a_new_one_would_be(
    desk: Desk, tmp_path: Path, fresh: Fresh, seed: int
) -> None:
    numbers = random.Random(seed)
    story = Story(desk, write_inputs(tmp_path / "in", images=3, pairs=3, predicates=2), numbers)
    for _ in range(STEPS):
        step = numbers.choice(KINDS)
        story.told.append(step.__name__)
        step(story)
        try:
            desk.standing()
            assert mismatched(desk.published()["results"]) == []
        except AssertionError as error:
            raise AssertionError(f"after {story.told}") from error
    desk.describe()
    assert desk.published()["results"] == fresh(story.inputs), story.told
    with reading(desk.database) as connection:
        assert connection.execute(claims.select()).all() == [], story.told
    assert desk.standing().failed == 0
