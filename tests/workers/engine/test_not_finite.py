"""Logits that hold NaN or infinity: no text, in whichever engine and backend, and nobody else's text touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from app.model_identity import SMALL_MODEL
from tests.support.checkpoints import changed_weights, poisoned
from tests.support.engine_cases import image, request
from workers.engine.api import Completion, Engine, LogitsNotFinite, Request
from workers.engine.config import EngineConfig
from workers.engine.load import load_engine

LAYER = "model.language_model.layers.1."
BACKENDS = {  # the engine, and ``compile``: the compiled kernels, plain torch, the paged operators
    "builtin, cpu": ("builtin", None),
    "builtin, torch": ("builtin", False),
    "builtin, paged": ("builtin", True),
    "transformers": ("transformers", None),
}
PLACES = (f"{LAYER}self_attn.q_proj.weight", f"{LAYER}self_attn.k_norm.weight", f"{LAYER}self_attn.v_proj.weight",
          f"{LAYER}mlp.up_proj.weight", "lm_head.weight", "model.visual.blocks.0.attn.qkv.weight")  # fmt: skip
WORDS = (("circle", "left of", "square"), ("red star", "above", "ring"), ("cross", "near", "triangle"))


def start(folder: Path, backend: str, **values: str) -> Engine:
    engine, compiled = BACKENDS[backend]
    config = EngineConfig(
        model=str(folder), engine=engine, compile=compiled, device="cpu", cpu_memory_bytes=2**28, **values  # type: ignore[arg-type]
    )  # fmt: skip
    return load_engine(config)


def outcomes(engine: Engine, requests: Sequence[Request]) -> list[Completion | None]:
    """Each request's completion, None where its logits were not finite."""
    found: list[Completion | None] = []
    for future in engine.submit(requests):
        error = future.exception(60)
        assert error is None or isinstance(error, LogitsNotFinite)
        found.append(None if error else future.result())
    return found


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_damaged_weight_gives_no_text(tmp_path: Path, backend: str, place: str, value: float) -> None:
    engine = start(poisoned(tmp_path / "model", place, value), backend)
    requests = [request(image(), words, tokens=20, temperature=at) for words in WORDS[:2] for at in (0.0, 0.1)]
    assert outcomes(engine, requests) == [None] * 4
    engine.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_overflow_in_float16_gives_no_text(tmp_path: Path, backend: str) -> None:
    folder = changed_weights(
        tmp_path / "model", lambda all_: all_ | {"lm_head.weight": all_["lm_head.weight"] * 2e4}
    )  # fmt: skip
    engine = start(folder, backend, dtype="float16")
    assert outcomes(engine, [request(image(), words, tokens=9) for words in WORDS]) == [None] * 3
    engine.close()


@pytest.mark.parametrize("together", [True, False], ids=["one pair", "a pair each"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_others_are_not_touched_at_the_time_or_later(tmp_path: Path, backend: str, together: bool) -> None:
    """One word's embedding is NaN: the keys and values of its prompts are, in slots that others use after them."""
    whole = start(SMALL_MODEL, backend)
    token = _token_of("ring")
    broken = start(
        poisoned(tmp_path / "model", "model.language_model.embed_tokens.weight", float("nan"), row=token), backend
    )
    requests = [request(image(at % 2), words, tokens=30 + at) for at in range(4) for words in WORDS]
    submits = [requests] if together else [[one] for one in requests]
    expected = [found for some in submits for found in outcomes(whole, some)]
    seen = [found for some in submits for found in outcomes(broken, some)]
    for one, right, found in zip(requests, expected, seen, strict=True):
        spoilt = any(text == "ring" for text, _ in one.prompt)
        assert found == (None if spoilt else right)
    assert outcomes(broken, requests[2:3]) == outcomes(whole, requests[2:3])
    whole.close()
    broken.close()


def _token_of(word: str) -> int:
    """A token of the word that no other of the words has."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SMALL_MODEL)

    def ids(words: Sequence[str]) -> set[int]:
        return {each for text in words for each in tokenizer(text, add_special_tokens=False)["input_ids"]}

    others = ids(["".join(part for part, _ in request(image(), words).prompt) for words in (WORDS[0], WORDS[2])])
    [first, *_] = sorted(ids(["".join(part for part, _ in request(image(), WORDS[1]).prompt)]) & ids([word]) - others)
    return first
