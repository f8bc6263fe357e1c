"""The training's shortcuts are exact, and a killed training goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from app.prompts import load_question
from tools.small_model.batches import CENTRES, Batch, draw_batch, patches
from tools.small_model.dataset import questions, seeded_scene
from tools.small_model.evaluate import SHIPPED, judge
from tools.small_model.export import image_processor
from tools.small_model.forward import forward
from tools.small_model.losses import losses, scores
from tools.small_model.muon import orthogonal
from tools.small_model.rules import Margins
from tools.small_model.train import Hyperparameters, Training, learning_share

SMALL = Hyperparameters(processes=1, images=2, questions=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def training() -> Training:
    return Training(SMALL)


@pytest.fixture(scope="module")
def batch(training: Training) -> Batch:
    return draw_batch(training.tokenizer, np.random.default_rng(1), 2, 3, 2)


def test_a_shared_image_changes_no_logit(training: Training, batch: Batch) -> None:
    asked = batch.asked
    with torch.no_grad():
        shared = forward(training.model, training.tables, asked).logits
        training.tables.write_into(training.model)
        for row in range(len(asked.ids)):
            alone = _alone(training, batch, row)
            assert torch.allclose(shared[row, : len(alone)], alone, atol=1e-5)


def test_images_are_cut_as_the_processor_cuts_them() -> None:
    drawn = seeded_scene(1, 0)[0].image.resize((150, 133))
    made = image_processor()(images=[drawn], return_tensors="pt")
    down, across = (made["image_grid_thw"][0, 1:] // 2).tolist()
    frames = made["pixel_values"].view(-1, 3, 2, 64)
    assert torch.equal(frames[:, :, 0], frames[:, :, 1])
    assert torch.allclose(frames[:, :, 0].flatten(1), patches(drawn, down, across), atol=1e-6)


def test_probes_stand_at_the_centres_second_numbers(training: Training, batch: Batch) -> None:
    words = training.tokenizer.convert_ids_to_tokens(batch.asked.ids[0].tolist())
    subject, object_ = words[CENTRES[0] - 2 : CENTRES[0] + 1], words[CENTRES[1] - 2 : CENTRES[1] + 1]
    for first, comma, second in (subject, object_):
        assert first.isdigit()
        assert comma == ",Ġ"
        assert second.isdigit()


def test_a_resumed_training_sees_what_an_unbroken_one_sees(tmp_path: Path) -> None:
    unbroken = Training(SMALL)
    unbroken.advance()
    unbroken.save(tmp_path / "checkpoint.pt")
    resumed = Training(SMALL)
    resumed.load(tmp_path / "checkpoint.pt")
    assert resumed.advance() == unbroken.advance()
    assert all(torch.equal(resumed.mean[name], value) for name, value in unbroken.mean.items())


def test_a_training_that_starts_from_a_model_starts_where_it_ended(batch: Batch) -> None:
    started = Training(SMALL, start=SHIPPED)
    shipped = Qwen3VLForConditionalGeneration.from_pretrained(SHIPPED)
    started.tables.write_into(started.model)
    for name, value in shipped.state_dict().items():
        assert torch.allclose(started.model.state_dict()[name], value, atol=1e-5), name
    with torch.no_grad():
        right = scores(forward(started.model, started.tables, batch.asked), batch)
    assert right["exact"] == 1.0


def test_yes_or_no_is_learned_beside_the_descriptions(training: Training, batch: Batch) -> None:
    assert batch.verifies.tolist() == [False, False, False, True, True] * 2
    first = batch.labels[batch.verifies, 0].tolist()
    question = load_question("zh")
    allowed = {training.tokenizer(text)["input_ids"][0] for text in question.answers}
    assert set(first) <= allowed
    with torch.no_grad():
        parts = losses(forward(training.model, training.tables, batch.asked), batch, training.probes)
    assert {name for name, part in parts.items() if part > 0} == {"verification", "answer", "centre", "cell"}


def test_the_rate_rises_stays_and_falls() -> None:
    hyper = Hyperparameters(steps=1000, warmup=100, decay_share=0.5)
    assert [learning_share(hyper, step) for step in (49, 300, 750, 1000)] == [0.5, 1.0, 0.5, 0.0]


def test_orthogonal_updates_have_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 40, 20, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_the_judge_reads_each_part_by_itself() -> None:
    scene, rng = seeded_scene(4, 0)
    question = questions(rng, scene, 1, Margins())[0]
    true = question.answer
    assert all(judge(true, question).values())
    wrong_colour = true.replace(question.object.colour, "plaid")
    assert judge(wrong_colour, question)["direction"]
    assert not judge(wrong_colour, question)["colours"]
    assert not any(judge("something else", question).values())


def _alone(training: Training, batch: Batch, row: int) -> torch.Tensor:
    """The logits of one question by the model's own forward, at its answer."""
    asked, config = batch.asked, training.model.config
    drawn = asked.pixels[row // (len(asked.ids) // len(asked.pixels))]
    length = int((batch.labels[row] >= 0).sum())
    visual = torch.full((len(drawn) // 4,), config.image_token_id)
    ids = torch.cat([asked.prefix, visual, asked.ids[row, : asked.answer_start[row] + length]])[None]
    logits: torch.Tensor = training.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=drawn.view(-1, 3, 1, 64).expand(-1, -1, 2, -1).reshape(len(drawn), -1),
        image_grid_thw=torch.tensor([[1, *asked.grid]]),
        mm_token_type_ids=(ids == config.image_token_id).int(),
    ).logits[0]
    return logits[-length:]
