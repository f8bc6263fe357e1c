"""From a stored pair to its requests: prompts, frames of turned images, and each one's own random stream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from PIL import Image

from app.database.claim_rows import Claim
from app.database.records import Run
from app.errors import PromptError
from app.pair import Candidate
from producer.run_request import Inputs
from tests.conftest import MakeSettings
from tests.support.fake_engine import text_of
from tests.support.runs import pair, request_for
from workers.engine.api import Request
from workers.image_readers import ImageReaders
from workers.requests import requests_of

Ask = Any


@pytest.fixture
def ask(tmp_path: Path, make_settings: MakeSettings) -> Ask:
    """Gives a pair's requests over an image of 64 x 48."""
    Image.new("RGB", (64, 48)).save(tmp_path / "1.jpg")

    def requests(changes: dict[str, Any] | None = None, style: str = "per-predicate", **more: Any) -> Any:
        run = request_for(style=style, **more).as_run(Inputs(tmp_path, tmp_path, tmp_path))
        return requests_of(
            claim_of(run, **(changes or {})), make_settings(), "the model's hash", ImageReaders(30.0, Event())
        ).requests

    return requests


def claim_of(run: Run, **changes: Any) -> Claim:
    """A claim of one pair of the run."""
    return Claim(run, 1, pair(0, **changes).to_json(), attempts=1, quarantined=False, image_root=run.image_root)


def seeds(requests: list[Request]) -> list[int]:
    return [request.sampling.seed for request in requests]


def test_each_predicate_has_its_prompt_over_the_one_image(ask: Ask) -> None:
    first, second = ask()
    assert "subject 0 is roughly on object 0" in text_of(first)
    assert "subject 0 is roughly above object 0" in text_of(second)
    assert first.image.key == second.image.key
    assert [part for part, is_data in first.prompt if is_data][:2] == ["subject 0", "object 0"]


def test_the_pair_style_asks_once_with_all_predicates(ask: Ask) -> None:
    (one,) = ask(style="per-pair")
    assert "1. on\n2. above" in text_of(one)


def test_equal_predicates_are_one_generation(ask: Ask) -> None:
    first, second, third = ask({"candidates": (Candidate("on", 0.9), Candidate("has", 0.5), Candidate("on", 0.1))})
    assert first is third
    assert first is not second


def test_a_random_stream_follows_from_seed_identity_and_predicate_alone(ask: Ask) -> None:
    ours = seeds(ask())
    assert len(set(ours)) == 2
    assert seeds(ask({"candidates": (Candidate("above", 0.9), Candidate("on", 0.1))})) == ours[::-1]
    assert seeds(ask({"position": 17, "has_gt": False})) == ours
    assert not set(seeds(ask(seed=1))) & set(ours)
    assert not set(seeds(ask({"subject": "another"}))) & set(ours)


def test_the_sampling_is_the_runs(ask: Ask) -> None:
    one, _ = ask(temperature=0.7, max_new_tokens=33, max_pixels=999)
    assert (one.sampling.temperature, one.sampling.max_new_tokens, one.image.max_pixels) == (0.7, 33, 999)


@pytest.mark.parametrize(("extent", "size"), [((60.0, 40.0), (64, 48)), ((40.0, 60.0), (48, 64))])
def test_a_turned_image_is_shown_in_the_frame_that_its_boxes_are_in(
    ask: Ask, tmp_path: Path, extent: tuple[float, float], size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "1.jpg", exif=exif)
    one, _ = ask({"extent": extent})
    assert one.image.load().size == size


def test_a_box_outside_the_image_cannot_be_asked_about(ask: Ask) -> None:
    outside = {"class_name": "subject 0", "bbox": [500, 500, 600, 600], "id": 1}
    with pytest.raises(PromptError) as refusal:
        ask({"subject_obj": outside})
    assert refusal.value.reason == "bounding box outside the image"


def test_a_host_may_keep_its_images_elsewhere(tmp_path: Path, make_settings: MakeSettings) -> None:
    (tmp_path / "here").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "here" / "1.jpg")
    nowhere = Inputs(tmp_path, tmp_path, tmp_path / "the producer's")
    run: Run = replace(request_for().as_run(nowhere), name="elsewhere")
    found = requests_of(
        claim_of(run), make_settings(image_root=tmp_path / "here"), "the model's hash", ImageReaders(30.0, Event())
    )
    assert found.requests[0].image.load().size == (64, 48)


def test_every_way_of_sampling_reaches_the_engine(ask: Ask) -> None:
    chosen = {"top_p": 0.7, "repetition_penalty": 1.1, "presence_penalty": 0.3}
    sampling = ask(temperature=0.6, top_k_sampling=9, **chosen)[0].sampling
    assert sampling == replace(sampling, temperature=0.6, top_k=9, **chosen)
