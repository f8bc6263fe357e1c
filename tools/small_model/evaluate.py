"""Ask a model about fresh scenes and compare its answers with the drawing.

    python -m tools.small_model.evaluate --scenes 300 --seed 12345 --json

goes the real model's way: `from_pretrained`, the chat template, the image processor, `generate` (greedy).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

from app.judge.reliability import area_under_roc, expected_calibration_error, reliability
from app.prompts import Question, load_question
from tools.small_model.dataset import Question as Described
from tools.small_model.dataset import Verification, questions, seeded_scene
from tools.small_model.rules import Margins

SHIPPED = Path(__file__).parents[2] / "app" / "small_model"
MEASURES = ("colours", "direction", "touching", "predicate_fits", "exact")
ANSWER = re.compile(
    r"^The (?P<subject>\w+) (?P<first>.+?) is (?P<direction>above|below|to the [a-z ]+? of) "
    r"the (?P<object>\w+) (?P<second>.+?), "
    r'and they (?P<touch>overlap|are apart)\. "(?P<predicate>.+)" (?P<verdict>fits|does not fit)\.$'
)


@dataclass(frozen=True)
class Asked:
    """A question and the image it is about."""

    image: Image.Image
    question: Described


class Describer:
    """A model folder in plain transformers: greedy answers to prompts over images."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.placeholder = self.model.config.image_token_id

    def describe(self, images: Sequence[Image.Image], prompts: Sequence[str], max_new_tokens: int = 40) -> list[str]:
        """One answer for each image and prompt, generated as one batch."""
        encoded, seen, kind = self._encoded(images, prompts)
        with torch.inference_mode():
            written = self.model.generate(**encoded, **seen, mm_token_type_ids=kind, max_new_tokens=max_new_tokens)
        answers: list[str] = self.tokenizer.batch_decode(written[:, kind.shape[1] :], skip_special_tokens=True)
        return answers

    def chances(self, images: Sequence[Image.Image], prompts: Sequence[str], question: Question) -> list[float | None]:
        """For each image and prompt the probability of yes that the next token gives, as the farm reads it."""
        encoded, seen, kind = self._encoded(images, prompts)
        first = [self.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in question.answers]
        with torch.inference_mode():
            logits = self.model(**encoded, **seen, mm_token_type_ids=kind, logits_to_keep=1).logits[:, -1]
        chances = torch.softmax(logits.float(), -1)[:, first].tolist()
        return [question.probability(each) for each in chances]

    def _encoded(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> tuple[Any, Any, torch.Tensor]:
        """What the model takes, padded on the left, and which tokens are an image's."""
        seen = self.processor(images=list(images), return_tensors="pt")
        tokens = (seen["image_grid_thw"].prod(1) // self.processor.merge_size**2).tolist()
        texts = [
            self._chat(prompt).replace("<|image_pad|>", "<|image_pad|>" * count)
            for prompt, count in zip(prompts, tokens, strict=True)
        ]
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True)
        return encoded, seen, (encoded["input_ids"] == self.placeholder).int()

    def _chat(self, prompt: str) -> str:
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        text: str = self.tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        return text


def judge(answer: str, question: Described) -> dict[str, bool]:
    """Which parts of an answer are true; an answer that cannot be read has none."""
    found = ANSWER.match(answer)
    if found is None:
        return dict.fromkeys(MEASURES, False)
    relation = question.relation
    true = ANSWER.match(question.answer)
    assert true is not None, question.answer
    return {
        "colours": (found["subject"], found["object"]) == (question.subject.colour, question.object.colour),
        "direction": found["direction"] == relation.direction,
        "touching": (found["touch"] == "overlap") == relation.overlap,
        "predicate_fits": found["verdict"] == true["verdict"],
        "exact": answer == question.answer,
    }


def evaluate(describer: Describer, *, scenes: int, seed: int, each: int = 4, batch: int = 48) -> dict[str, float]:
    """Shares of true answers over fresh scenes, and of right colours when the image is a grey sheet; and of the same
    questions asked for yes or no, how many were answered, the area under the ROC curve and the calibration error.
    """
    asked = list(_asked(scenes, seed, each))
    asked.sort(key=lambda one: one.image.size)  # like sizes together: less padding
    verdicts, blank, chances = [], [], []
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        prompts = [one.question.prompt for one in part]
        seen = describer.describe([one.image for one in part], prompts)
        unseen = describer.describe([Image.new("RGB", one.image.size, (128, 128, 128)) for one in part], prompts)
        verified = [Verification.of(one.question, one.image.size).prompt for one in part]
        chances += describer.chances([one.image for one in part], verified, load_question("zh"))
        verdicts += [judge(answer, one.question) for answer, one in zip(seen, part, strict=True)]
        blank += [judge(answer, one.question)["colours"] for answer, one in zip(unseen, part, strict=True)]
    shares = {name: sum(verdict[name] for verdict in verdicts) / len(verdicts) for name in MEASURES}
    shares["blank_image_colours"] = sum(blank) / len(blank)
    return shares | _verified(chances, [one.question.holds for one in asked])


def _verified(chances: Sequence[float | None], truths: Sequence[bool]) -> dict[str, float]:
    """How well the probability of yes tells what holds from what does not, and how far it can be taken at its word."""
    answered = [(chance, truth) for chance, truth in zip(chances, truths, strict=True) if chance is not None]
    scores, held = [chance for chance, _ in answered], [truth for _, truth in answered]
    found = {"verification_answered": len(answered) / len(chances)}
    if len(set(held)) < 2:  # a model that was not taught to answer
        return found
    return found | {
        "verification_auc": area_under_roc(scores, held),
        "verification_ece": expected_calibration_error(reliability(scores, held)),
    }


def _asked(scenes: int, seed: int, each: int) -> Iterator[Asked]:
    for number in range(scenes):
        scene, rng = seeded_scene(seed, number)
        for question in questions(rng, scene, each, Margins()):
            yield Asked(scene.image, question)


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), default=SHIPPED, help="Model folder.")
@click.option("--scenes", default=300, show_default=True)
@click.option("--seed", default=12345, show_default=True, help="Any seed; the training drew from other streams.")
@click.option("--each", default=4, show_default=True, help="Questions per scene, at most.")
@click.option("--json", "as_json", is_flag=True, help="Print, last, one line of JSON.")
def main(model: Path, scenes: int, seed: int, each: int, as_json: bool) -> None:
    """Draw fresh scenes, ask the model about them and print the shares of true answers.

    Example: python -m tools.small_model.evaluate --scenes 300 --seed 12345 --json
    """
    shares = evaluate(Describer(model), scenes=scenes, seed=seed, each=each)
    for name, share in shares.items():
        click.echo(f"{name:22} {share:6.1%}")
    if as_json:
        click.echo(json.dumps({name: round(share, 4) for name, share in shares.items()}))


if __name__ == "__main__":
    main()
