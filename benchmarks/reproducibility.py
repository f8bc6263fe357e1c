"""How many completions stay the same whatever the batch and the engine, in float32 and in bfloat16.

    python -m benchmarks.reproducibility --temperature 0.1

Each request has its own random stream, so what is left to differ is arithmetic: products of 1 row and of 64 rows add
up in another order, and where two tokens are about equally likely, the last bit decides. The demo's scenes are
described by the small model one request at a time (the reference), then with batches of 8 and 64, by both engines.
"""

from __future__ import annotations

import json
from typing import Any

import click

from app.model_identity import SMALL_MODEL
from benchmarks.real_prompts import SCENES, real_requests
from workers.engine.api import Request
from workers.engine.config import EngineConfig
from workers.engine.load import load_engine


@click.command()
@click.option("--model", default=str(SMALL_MODEL), help="A model folder.  [default: the small one]")
@click.option("--temperature", default=0.1, show_default=True)
@click.option("--max-new-tokens", default=64, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--limit", default=120, show_default=True, help="Most requests.")
def main(model: str, temperature: float, max_new_tokens: int, device: str, limit: int) -> None:
    """Print the share of equal completions, last one JSON line.

    Example: python -m benchmarks.reproducibility
    """
    inputs = (SCENES / "recall_results.json", SCENES / "images.json", SCENES)
    pairs = real_requests(*inputs, temperature=temperature, max_new_tokens=max_new_tokens, limit=limit)
    requests = [request for pair in pairs for request in pair]
    found: dict[str, float] = {}
    for dtype in ("float32", "bfloat16"):
        config = {"model": model, "device": device, "dtype": dtype}
        reference = completions(requests, engine="transformers", batch_size=1, **config)
        for engine in ("transformers", "builtin"):
            for batch_size in (1, 8, 64):
                if (engine, batch_size) == ("transformers", 1):
                    continue
                other = completions(requests, engine=engine, batch_size=batch_size, **config)
                same = sum(a == b for a, b in zip(reference, other, strict=True)) / len(reference)
                found[f"{dtype} {engine} {batch_size}"] = round(same, 4)
                click.echo(f"{dtype:9} {engine:12} batches of {batch_size:3}: {same:7.2%} of {len(reference)} equal")
    click.echo(json.dumps({"temperature": temperature, "requests": len(requests), "equal": found}))


def completions(requests: list[Request], **config: Any) -> list[str]:
    """What an engine of that configuration writes."""
    engine = load_engine(EngineConfig(**config))
    try:
        return [future.result().text for future in engine.submit(requests)]
    finally:
        engine.close()


if __name__ == "__main__":
    main()
