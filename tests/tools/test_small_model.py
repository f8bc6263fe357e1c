"""The shipped model in plain transformers: what it is, and that it sees."""

from __future__ import annotations

import json

import pytest
from PIL import Image, ImageColor, ImageDraw
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen3VLForConditionalGeneration

from tools.small_model.evaluate import SHIPPED, Describer, evaluate
from tools.small_model.prompts import prompt
from tools.small_model.tokenizer import CONTROL_TOKENS, build_tokenizer

# A second way to draw, and colours as a web page would have them: nothing of the training's drawing.
NAMES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
WEB = {name: ImageColor.getrgb(name) for name in NAMES}
BOXES = {"circle": (20, 20, 60, 60), "square": (90, 80, 140, 130)}


@pytest.fixture(scope="module")
def describer() -> Describer:
    return Describer(SHIPPED)


def test_it_loads_in_plain_transformers() -> None:
    model = AutoModelForImageTextToText.from_pretrained(SHIPPED)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    assert isinstance(model, Qwen3VLForConditionalGeneration)
    assert all(len(tokenizer(token)["input_ids"]) == 1 for token in CONTROL_TOKENS)
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == model.config.image_token_id
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    assert tokenizer.vocab_size <= model.config.text_config.vocab_size


def test_its_weights_are_small() -> None:
    weights = list(SHIPPED.glob("*.safetensors"))
    assert 0 < sum(path.stat().st_size for path in weights) <= 12_000_000


def test_its_tokenizer_is_the_one_that_the_code_builds() -> None:
    shipped, built = AutoTokenizer.from_pretrained(SHIPPED), build_tokenizer()
    assert shipped.get_vocab() == built.get_vocab()
    assert all(len(shipped(str(number))["input_ids"]) == 1 for number in range(1000))
    text = "Any text — 任何文字, 12345 windshields!"
    assert shipped.decode(shipped(text)["input_ids"]) == text


def test_its_card_and_record_are_with_it() -> None:
    record = json.loads((SHIPPED / "training.json").read_text())
    card = (SHIPPED / "README.md").read_text()
    assert record["questions_seen"] > 0
    assert {"seed", "steps", "muon_rate"} <= set(record["hyperparameters"])
    assert f"{record['questions_seen']:,}" in card


def test_swapped_images_give_swapped_colours(describer: Describer) -> None:
    text = prompt(("circle", "square"), (BOXES["circle"], BOXES["square"]), (160, 144), "left of")
    one_way = list(zip(NAMES[:4], NAMES[4:], strict=True))
    pairs = one_way + [(second, first) for first, second in one_way]
    images = [_second_drawing(*pair) for pair in pairs]
    answers = describer.describe(images, [text] * len(pairs))
    assert answers == [
        f"The {first} circle is to the upper left of the {second} square, and they are apart. "
        '"left of" fits.' for first, second in pairs
    ]  # fmt: skip


def test_fresh_scenes_are_described_as_the_card_says(describer: Describer) -> None:
    shares = evaluate(describer, scenes=24, seed=4321, each=3)
    assert shares["colours"] >= 0.97
    assert shares["direction"] >= 0.97
    assert shares["touching"] >= 0.95
    assert shares["predicate_fits"] >= 0.95
    assert shares["exact"] >= 0.93
    assert shares["blank_image_colours"] <= 0.10
    assert shares["verification_answered"] == 1.0
    assert shares["verification_auc"] >= 0.97
    assert shares["verification_ece"] <= 0.10


def _second_drawing(circle: str, square: str) -> Image.Image:
    drawn = Image.new("RGB", (160, 144), (225, 225, 220))
    brush = ImageDraw.Draw(drawn)
    brush.ellipse(BOXES["circle"], fill=WEB[circle])
    brush.rectangle(BOXES["square"], fill=WEB[square])
    return drawn
