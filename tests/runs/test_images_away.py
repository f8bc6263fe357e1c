"""An image folder that is away, or a wrong one, is its host's trouble: it fails no pair, and another host goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from producer.run_request import Inputs
from tests.support.desk import Desk
from tests.support.runs import write_inputs
from tests.support.waits import wait_for
from workers.pair_runner import Requeue


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return write_inputs(tmp_path / "in", images=3, pairs=2)


def hide_folder(folder: Path) -> Callable[[], object]:
    """The whole folder is gone."""
    away = folder.rename(folder.with_name("away"))
    return lambda: away.rename(folder)


def empty_folder(folder: Path) -> Callable[[], object]:
    """The mount point is there, and nothing in it."""
    back = hide_folder(folder)
    folder.mkdir()

    def restore() -> None:
        folder.rmdir()
        back()

    return restore


def hide_images(folder: Path) -> Callable[[], object]:
    """The folder holds something else."""
    back = hide_folder(folder)
    folder.mkdir()
    (folder / "another.txt").write_text("not an image")

    def restore() -> None:
        folder.rename(folder.with_name("other"))
        back()

    return restore


@pytest.mark.parametrize("hide", [hide_folder, empty_folder, hide_images], ids=lambda each: each.__name__)
def test_images_that_are_away_for_a_while_fail_no_pair(
    desk: Desk, inputs: Inputs, hide: Callable[[Path], Callable[[], object]], caplog: pytest.LogCaptureFixture
) -> None:
    desk.enqueue(inputs)
    desk.describe(most=1)
    run, ids = desk.run(), desk.pending()
    restore = hide(inputs.image_root)
    with desk.worker(wait_images_s=60.0) as runner, ThreadPoolExecutor(len(ids)) as threads:
        running = [threads.submit(runner.run, run.uuid, pair_id) for pair_id in ids]
        wait_for(lambda: "images are away" in caplog.text, "it says so")
        assert not any(each.done() for each in running)
        restore()
        for each in running:
            each.result(60)
    assert desk.standing() == (6, 6, 0, 0)


def test_images_that_stay_away_fail_for_an_outside_reason_and_a_plain_repeat_tries_them_again(
    desk: Desk, inputs: Inputs
) -> None:
    desk.enqueue(inputs)
    restore = hide_images(inputs.image_root)
    desk.describe(wait_images_s=0.0)
    assert desk.standing() == (6, 0, 6, 0)
    restore()
    assert desk.enqueue(inputs).resent == 6
    desk.describe()
    assert desk.standing() == (6, 6, 0, 0)


def test_what_a_host_with_a_wrong_image_root_took_is_free_for_another_host_at_once(
    desk: Desk, inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "another.txt").write_text("not an image")
    desk.enqueue(inputs)
    run, ids = desk.run(), desk.pending()
    with desk.worker("wrong", image_root=tmp_path / "wrong", wait_images_s=60.0) as wrong, ThreadPoolExecutor(2) as two:
        held = [two.submit(wrong.run, run.uuid, pair_id) for pair_id in ids[:2]]
        wait_for(lambda: "images are away" in caplog.text and not wrong.held(), "it has given back two")
        assert not any(each.done() for each in held)
        assert desk.describe() == 12
        assert desk.standing() == (6, 6, 0, 0)
        wrong.stop_taking()
        for each in held:
            with pytest.raises(Requeue):
                each.result(60)


def test_one_image_that_is_missing_among_others_fails_its_pairs_alone(desk: Desk, inputs: Inputs) -> None:
    desk.enqueue(inputs)
    (inputs.image_root / "1.png").unlink()
    desk.describe(wait_images_s=60.0)
    assert desk.standing() == (6, 4, 2, 0)
