"""Pictures whose read never returns, on file systems that really do not answer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from producer.run_request import Inputs
from tests.support.dead_mounts import CannotMount, dead_mount
from tests.support.desk import Desk
from tests.support.runs import write_inputs
from tests.support.waits import wait_for


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return write_inputs(tmp_path / "in", images=4, pairs=2)


@pytest.fixture
def dead() -> Iterator[ExitStack]:
    """Mounts that end with the test at the latest."""
    with ExitStack() as stack:
        yield stack


def die(stack: ExitStack, path: Path) -> None:
    try:
        stack.enter_context(dead_mount(path))
    except CannotMount as error:
        pytest.skip(f"nothing can be mounted here: {error}")


def test_pictures_that_do_not_answer_fail_alone_and_a_plain_repeat_tries_them_again(
    desk: Desk, inputs: Inputs, dead: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    desk.enqueue(inputs)
    run, ids = desk.run(), desk.pending()
    for name in ("1.png", "2.png"):
        die(dead, inputs.image_root / name)
    with desk.worker(wait_images_s=60.0, image_read_s=0.5) as runner, ThreadPoolExecutor(len(ids)) as threads:
        for each in [threads.submit(runner.run, run.uuid, pair_id) for pair_id in ids]:
            each.result(60)
        assert runner.hung_reads == 2
        dead.close()
        wait_for(lambda: not runner.hung_reads, "the reads return")
    assert desk.standing() == (8, 4, 4, 0)
    assert "image does not answer" in caplog.text
    assert desk.enqueue(inputs).resent == 4
    desk.describe()
    assert desk.standing() == (8, 8, 0, 0)


def test_a_share_that_does_not_answer_fails_no_pair_and_keeps_none(
    desk: Desk, inputs: Inputs, dead: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    desk.enqueue(inputs)
    run, ids = desk.run(), desk.pending()
    die(dead, inputs.image_root)
    with desk.worker(wait_images_s=600.0, image_read_s=0.5) as runner, ThreadPoolExecutor(len(ids)) as threads:
        running = [threads.submit(runner.run, run.uuid, pair_id) for pair_id in ids]
        wait_for(lambda: "does not answer; waiting" in caplog.text and not runner.held(), "all is given back")
        assert not any(each.done() for each in running)
        dead.close()
        for each in running:
            each.result(60)
    assert desk.standing() == (8, 8, 0, 0)
