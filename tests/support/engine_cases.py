"""Prompts over synthetic images, and a model of a family that the packed engine does not know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tools.random_model import build_tokenizer
from workers.engine.api import ImageSource, Request, SamplingParams, Segment

FAMILIES = ("qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl", "qwen2_vl")


def image(number: int = 0, size: tuple[int, int] = (160, 120)) -> ImageSource:
    """A seeded image of soft colours; equal numbers and sizes are equal images."""

    def load() -> Image.Image:
        noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)

    return ImageSource(f"image-{number}-{size}", load)


def prompt(subject: str, predicate: str, obj: str) -> tuple[Segment, ...]:
    """A prompt whose shape is that of the specification's: the pair first, its predicate near the end."""
    pair = (("这是一张图，物体<|object_ref_start|>", False), (subject, True), ("<|object_ref_end|>和", False))
    return (
        *pair,
        (obj, True),
        ("，is roughly ", False),
        (predicate, True),
        ("，请给出细节的相对关系", False),
    )


def request(
    over: ImageSource,
    words: tuple[str, str, str] = ("man", "on", "horse"),
    *,
    temperature: float = 0.0,
    tokens: int = 24,
    seed: int = 0,
) -> Request:
    """A request over an image, greedy unless told."""
    return Request(over, prompt(*words), SamplingParams(temperature, tokens, seed))


def workload(images: int = 2, pairs: int = 3, predicates: int = 3, **sampling: float) -> list[list[Request]]:
    """Requests by pair, over several images of different sizes, of several lengths."""
    names = ("man", "horse", "tree house", "wearing hat", "红色的车", "elephant", "street light")
    verbs = ("on", "standing next to", "in front of", "has", "above")
    made = []
    for number in range(images):
        over = image(number, (160 + 40 * number, 120))
        for pair in range(pairs):
            subject, obj = names[(pair + number) % 7], names[(pair * 2 + 3) % 7]
            made.append(
                [
                    request(
                        over,
                        (subject, verbs[index % 5], obj),
                        temperature=sampling.get("temperature", 0.0),
                        tokens=int(sampling.get("tokens", 12)) + 5 * ((pair + index) % 3),
                        seed=1000 * number + 10 * pair + index,
                    )
                    for index in range(1 + (pair + predicates - 1) % predicates)
                ]
            )
    return made


def build_llava(folder: Path) -> None:
    """A tiny random model of a family that the packed engine does not know, with its processor."""
    tokenizer = build_tokenizer()
    token = "<|image_pad|>"
    template = tokenizer.chat_template.replace(f"<|vision_start|>{token}<|vision_end|>", token)
    small = {"num_hidden_layers": 2, "intermediate_size": 48, "hidden_size": 32}
    vision = CLIPVisionConfig(**small, num_attention_heads=2, image_size=56, patch_size=14)
    text = Qwen2Config(**small, vocab_size=1280, num_attention_heads=4, num_key_value_heads=2, eos_token_id=None)
    torch.manual_seed(0)
    ids = {"image_token_index": tokenizer.convert_tokens_to_ids(token)}
    LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, **ids)).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token=token,
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
