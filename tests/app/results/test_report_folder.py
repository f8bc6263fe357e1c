"""The folder that shows a run: what is in it, and that a browser shows it, whatever the data hold."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import Engine

from app.database.connection import open_database
from app.errors import ExportError
from app.results.report_folder import ReportOptions, write_report
from app.settings import load_settings
from producer.run_request import Inputs
from tests.support.browser import accessibility_faults, address, open_page
from tests.support.desk import Desk, change
from tests.support.runs import describe, pair, store_run, write_inputs

HOSTILE = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>\u2028${x}`\''


def told(folder: Path, name: str) -> Any:
    """What one of the folder's scripts gives to the page."""
    text = (folder / "data" / name).read_text()
    return json.loads(text[text.index("(") + 1 : text.rindex(")")])


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """Three images of three pairs, of which the last cannot be decoded."""
    made = write_inputs(tmp_path / "in", images=3, pairs=3, predicates=2)
    change(made.images, lambda images: images[0]["objects"][1].update(class_name=HOSTILE))
    change(made.stage1_files[0], _rename)
    return made


def _rename(document: Any) -> None:
    for each in document["per_image_top100_candidates"]["1"]:
        if each["object"] == "thing 1":
            each.update(object=HOSTILE, predicted_predicate=each["predicted_predicate"] + HOSTILE)
    document["per_image_top100_candidates"]["nowhere"] = document["per_image_top100_candidates"]["3"]


@pytest.fixture
def desk(database: Engine, tmp_path: Path, inputs: Inputs) -> Desk:
    """A run of which one image is described, one has failed and one is pending."""
    made = Desk(database, tmp_path / "desk")
    made.enqueue(inputs)
    picture = inputs.image_root / "1.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    made.describe(most=6)
    picture.write_bytes(whole)
    return made


def report(desk: Desk, out: Path, **options: Any) -> Path:
    return write_report(desk.database, out, ReportOptions(**options)).path


def test_every_pair_stands_there_with_what_became_of_it(desk: Desk, tmp_path: Path) -> None:
    done = write_report(desk.database, tmp_path / "out", ReportOptions())
    assert (done.pairs, done.left_out, done.pictures, done.without_picture) == (9, 0, 3, 0)
    about, pairs = told(done.path, "index.js"), told(done.path, "0.js")
    assert [len(each.get("texts", ())) for each in pairs].count(2) == 3
    assert {each["failed"] for each in pairs if "failed" in each} == {"image unreadable"}
    assert about["counts"] == {"pairs": 9, "shown": 9, "done": 3, "failed": 3, "pending": 3, "texts": 6}
    assert [each["id"] for each in about["images"]] == [1, "image-2", 3]
    assert {each["reason"]: each["count"] for each in about["dropped"]}["image not in the second input"] == 3
    published = desk.published()["results"]
    texts = [text["text"] for each in pairs for text in each.get("texts", ())]
    assert texts == [one["generated_description"] for each in published for one in each["stage2_generated"]]


def test_a_limit_says_what_it_leaves_out(desk: Desk, tmp_path: Path) -> None:
    done = write_report(desk.database, tmp_path / "out", ReportOptions(most_pairs=4))
    assert (done.pairs, done.left_out) == (4, 5)


def test_images_of_another_place_are_found_or_missed_and_said(desk: Desk, inputs: Inputs, tmp_path: Path) -> None:
    moved = inputs.image_root.with_name("moved")
    inputs.image_root.rename(moved)
    assert write_report(desk.database, tmp_path / "a", ReportOptions()).without_picture == 3
    assert write_report(desk.database, tmp_path / "b", ReportOptions(image_root=moved)).pictures == 3
    prefixes = ((str(inputs.image_root), str(moved)),)
    assert write_report(desk.database, tmp_path / "c", ReportOptions(image_prefixes=prefixes)).pictures == 3


def test_a_picture_is_in_the_frame_of_its_boxes(desk: Desk, inputs: Inputs, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it to the right
    Image.new("RGB", (90, 30), "red").save(inputs.image_root / "0.png", exif=exif)
    change(inputs.images, lambda images: images[0]["objects"][0].update(bbox=[2, 2, 25, 88]))
    desk.enqueue(inputs, update=True)
    out = report(desk, tmp_path / "out")
    with Image.open(out / "pictures" / "0.jpg") as picture:
        assert picture.size == (30, 90)
    assert told(out, "index.js")["images"][0]["size"] == [30, 90]


def test_a_folder_of_other_files_is_left_alone_and_a_report_replaced(desk: Desk, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    report(desk, out)
    (out / "data" / "old.js").touch()
    report(desk, out)
    assert not (out / "data" / "old.js").exists()
    other = tmp_path / "in"
    for place in (other, other / "images.json"):
        before = sorted(os.listdir(other))
        with pytest.raises(ExportError, match=str(place)):
            report(desk, place)
        assert sorted(os.listdir(other)) == before
    assert not list(tmp_path.glob(".*.part"))


def test_a_browser_shows_it_from_the_file_whatever_the_data_hold(desk: Desk, tmp_path: Path) -> None:
    out = report(desk, tmp_path / "out")
    with open_page() as (page, errors):
        page.goto(address(out))
        page.wait_for_selector("body[data-ready]")
        assert page.locator("article").count() == 9
        assert page.locator("#count").inner_text() == "9 pairs"
        assert HOSTILE.split("\u2028")[0] in page.locator("article").nth(0).inner_text()
        assert page.evaluate("window.hacked") is None
        assert accessibility_faults(page) == []
        assert page.locator("article img").first.evaluate("each => each.naturalWidth") == 64
        box = page.locator("rect.subject").first
        assert [box.get_attribute(each) for each in ("x", "y", "width", "height")] == ["0", "0", "20", "15"]

        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("k")
        assert page.evaluate("[...document.querySelectorAll('article')].indexOf(document.activeElement)") == 0
        page.keyboard.press("/")
        page.keyboard.type("IMAGE-2")
        page.wait_for_function("document.getElementById('count').textContent=== '3 of 9 pairs'")
        assert all("image image-2" in text for text in page.locator("figcaption").all_inner_texts())
        page.keyboard.press("Escape")
        page.keyboard.press("f")
        page.locator("#filters button[type=reset]").click()
        page.wait_for_function("document.getElementById('count').textContent === '9 pairs'")
        assert accessibility_faults(page) == []
        pairs = told(out, "0.js")
        first = [each["candidates"][0][0] in each["gt"] for each in pairs].count(True)
        near = [any(name == "next to" for name, _ in each["candidates"]) for each in pairs].count(True)
        for choices, count in (
            ({"#state": "failed"}, 3),
            ({"#state": "", "#failure": "image unreadable"}, 3),
            ({"#failure": "", "#finish": "stop"}, 3),
            ({"#finish": "", "#predicate": "next to"}, near),
            ({"#predicate": "", "#gt": "first"}, first),
        ):
            for selector, value in choices.items():
                page.select_option(selector, value)
            page.wait_for_function("wanted => document.querySelectorAll('article').length === wanted", arg=count)
        assert 0 < first < 9
        assert 0 < near < 9
        page.locator("#filters button[type=reset]").click()
        page.select_option("#sort", "length-")
        page.wait_for_function("document.querySelectorAll('article').length === 9")
        page.set_viewport_size({"width": 375, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "a phone scrolls sideways"
        assert accessibility_faults(page) == []
        page.select_option("#drop-reason", "image not in the second input")
        assert page.locator("#drop-list > li").count() == 1
        assert errors == []


def test_many_pairs_are_shown_a_page_at_a_time(tmp_path: Path) -> None:
    database = open_database(load_settings(state_dir=tmp_path / "many"))
    stored = store_run(database, [pair(number) for number in range(1_100)])
    with database.begin() as connection:
        for pair_id in stored.ids[:30]:
            describe(connection, pair_id)
    out = write_report(database, tmp_path / "out", ReportOptions()).path
    database.dispose()
    with open_page() as (page, errors):
        page.goto(address(out))
        page.wait_for_selector("body[data-ready]")
        assert page.locator("article").count() == 40
        assert page.locator("#page").inner_text() == "Page 1 of 28"
        page.click("#next")
        assert "subject 40 and" in page.locator("article h2").first.inner_text()
        for _ in range(41):
            page.keyboard.press("j")
        assert page.locator("#page").inner_text() == "Page 3 of 28"
        assert errors == []
