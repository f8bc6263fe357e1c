"""Whether an engine writes what ``model.generate`` writes on each prompt alone, greedily, token for token.

    python -m benchmarks.exactness --model 60m --test-images FILE --recall-results FILE --image-root FOLDER

The prompts are the farm's own. Tokens may differ from the first place on where the two best logits are closer than
1e-3: there rounding decides, and how many completions have such a place is printed. The default is float32 on a CPU.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from app.model_identity import SMALL_MODEL
from benchmarks.engine_models import model_folder
from benchmarks.real_prompts import SCENES, real_requests
from tests.support.generate_alone import agrees, generate_alone
from workers.engine.api import Request
from workers.engine.config import EngineConfig
from workers.engine.hf.model_inputs import QwenInputs
from workers.engine.load import load_engine, load_qwen_processor
from workers.engine.model import load_model


@click.command()
@click.option("--model", default="small", show_default=True, help="small, 60m (random weights) or a model folder.")
@click.option("--test-images", type=Path, default=SCENES / "images.json", help="[default: the demo's]")
@click.option("--recall-results", type=Path, default=SCENES / "recall_results.json", help="[default: the demo's]")
@click.option("--image-root", type=Path, default=SCENES, help="[default: the demo's]")
@click.option("--max-new-tokens", default=48, show_default=True)
@click.option("--limit", default=10_000, show_default=True, help="Most requests.")
@click.option("--engine", default="builtin", show_default=True, type=click.Choice(["builtin", "vllm"]))
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", default=None, help="[default: the device's]")
def main(model: str, engine: str, device: str, dtype: str | None, **inputs: Any) -> None:
    """Print how many completions are equal, last one JSON line; exit 1 where one differs.

    Example: python -m benchmarks.exactness --limit 20
    """
    pairs = real_requests(
        inputs["recall_results"], inputs["test_images"], inputs["image_root"],
        temperature=0.0, max_new_tokens=inputs["max_new_tokens"], limit=inputs["limit"],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        config = EngineConfig(model=_folder(model, Path(scratch)), engine=engine, device=device, dtype=dtype)
        found = compare(config, pairs)
    click.echo(json.dumps({"model": model, "engine": engine, "device": device} | found))
    sys.exit(found["same"] != found["requests"])


def compare(config: EngineConfig, pairs: list[list[Request]]) -> dict[str, int]:
    """Counts of requests, of those that agree with the reference, and of those with a near tie."""
    engine = load_engine(config)
    futures = [future for pair in pairs for future in engine.submit(pair)]
    written = [future.result() for future in futures]
    engine.close()
    model = load_model(config)
    inputs = QwenInputs(load_qwen_processor(config, model.config.image_token_id), model)
    same = ties = tokens = 0
    for number, request in enumerate(one for pair in pairs for one in pair):
        reference = generate_alone(model, inputs, request)
        ties += reference.tie < len(reference.tokens)
        tokens += len(reference.tokens)
        same += agrees(written[number], reference, inputs)
        if number % 100 == 99:
            click.echo(f"{same} of {number + 1} equal", err=True)
    return {"requests": len(written), "tokens": tokens, "same": same, "near_ties": ties}


def _folder(model: str, scratch: Path) -> str:
    if model == "small":
        return str(SMALL_MODEL)
    return str(model_folder(scratch, model, "cpu", 0)) if model == "60m" else model


if __name__ == "__main__":
    main()
