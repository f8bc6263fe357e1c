"""One engine's speed, in a process of its own: what ``workers calibrate`` starts.

python -m workers.measure_engine ENGINE SECONDS   (settings by the environment; prints one JSON line)
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

import numpy as np
from PIL import Image

from app.model_identity import identify_model
from app.settings import load_settings
from workers.calibration import MARK
from workers.engine.api import Completion, Engine, ImageSource, Request, SamplingParams
from workers.lifecycle import load

TEXTS_AN_IMAGE, IMAGES_AHEAD = 60, 8  # as the farm's: about ten pairs of six predicates
TOKENS = 128  # of a description, at most


def main(arguments: Sequence[str]) -> None:
    """The process of one measurement."""
    engine_name, seconds = arguments[0], float(arguments[1])
    settings = load_settings(engine=engine_name)
    engine = load(settings, identify_model(settings.model, settings.model_revision))
    speed = tokens_per_second(engine, seconds)
    sys.stdout.write(f"{MARK}{json.dumps(speed)}\n")
    sys.stdout.flush()
    engine.close()


def tokens_per_second(engine: Engine, seconds: float) -> float:
    """Of a stream of requests like the farm's that never runs dry, after the first image's."""
    images = [_submit(engine, number) for number in range(IMAGES_AHEAD)]
    for future in images.pop(0):
        future.result()
    started, before = time.monotonic(), engine.stats()["tokens"]
    number = IMAGES_AHEAD
    while (passed := time.monotonic() - started) < seconds:
        images.append(_submit(engine, number))
        number += 1
        for future in images.pop(0):
            future.result()
    return (engine.stats()["tokens"] - before) / max(passed, 1e-9)


def _submit(engine: Engine, number: int) -> list[Future[Completion]]:
    image = ImageSource(f"calibration-{number}", partial(_draw, number))
    request = Request(image, (), SamplingParams(0.1, TOKENS, number))
    prompts = [(("Describe the relation of the ", False), (f"thing {at // 6}", True), (" and the other: ", False),
                (f"predicate {at % 6}", True)) for at in range(TEXTS_AN_IMAGE)]  # fmt: skip
    return engine.submit([replace(request, prompt=prompt) for prompt in prompts])


def _draw(number: int) -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)


if __name__ == "__main__":
    main(sys.argv[1:])
