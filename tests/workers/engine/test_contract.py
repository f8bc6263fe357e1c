"""What every engine must do, over every engine at hand: the next one is a folder and a line in ``support/engines.py``.

The model is the shipped one: it ends its texts by itself, and its greedy texts are compared with ``generate`` on each
prompt alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.engine_cases import image, prompt, request
from tests.support.engines import ENGINES, EngineAtHand
from tests.support.generate_alone import agrees, generate_alone
from tools.small_model.evaluate import SHIPPED
from workers.engine.api import (
    CandidatesAlike,
    Completion,
    ControlTokens,
    Engine,
    EngineStopped,
    ImageSource,
    ImageUnreadable,
    PromptTooLong,
    Request,
)
from workers.engine.config import EngineConfig
from workers.engine.hf.model_inputs import QwenInputs
from workers.engine.load import load_qwen_processor
from workers.engine.model import load_model

WAIT_S = 120
Start = Callable[..., Engine]
WORDS = (("circle", "left of", "square"), ("red star", "above", "ring"), ("cross", "near", "triangle"))


@pytest.fixture(scope="module", params=ENGINES, ids=lambda at_hand: at_hand.name)
def at_hand(request: pytest.FixtureRequest) -> EngineAtHand:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def engine(at_hand: EngineAtHand) -> Iterator[Engine]:
    """One engine over the shipped model, which most tests share."""
    with at_hand.start(SHIPPED) as running:
        yield running


@pytest.fixture
def start(at_hand: EngineAtHand) -> Iterator[Start]:
    """Starts an engine of this test's own."""
    with ExitStack() as stack:
        yield lambda folder=SHIPPED: stack.enter_context(at_hand.start(folder))


@pytest.fixture(scope="module")
def reference() -> tuple[Any, QwenInputs]:
    """The model in plain transformers."""
    config = EngineConfig(model=str(SHIPPED), device="cpu")
    model = load_model(config)
    return model, QwenInputs(load_qwen_processor(config, model.config.image_token_id), model)


def wanted(images: int = 2, **sampling: Any) -> list[Request]:
    """Requests over several images, each pair's words of its own."""
    over = [image(number, (96 + 32 * number, 96)) for number in range(images)]
    return [request(one, words, **sampling) for one in over for words in WORDS]


def done(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    return [future.result(WAIT_S) for future in engine.submit(requests)]


def test_each_future_is_its_own_requests_and_greedy_texts_are_those_of_generate(
    engine: Engine, reference: tuple[Any, QwenInputs]
) -> None:
    requests = wanted(images=3, tokens=40)
    completions = done(engine, requests)
    for one, completion in zip(requests, completions, strict=True):
        assert agrees(completion, generate_alone(*reference, one), reference[1])
    assert len({completion.text for completion in completions}) > 1


def test_a_text_that_the_model_ends_has_no_end_token_and_says_stop(engine: Engine) -> None:
    for completion in done(engine, wanted(tokens=200)):
        assert completion.finish_reason == "stop"
        assert completion.text
        assert "<|" not in completion.text
        assert 0 < completion.tokens < 200
        assert completion.prompt_tokens > 10


@pytest.mark.parametrize("limit", [1, 5])
def test_a_text_cut_at_its_limit_says_length_and_is_the_beginning_of_the_longer_one(engine: Engine, limit: int) -> None:
    short, long = (done(engine, wanted(images=1, tokens=tokens)) for tokens in (limit, 60))
    for cut, whole in zip(short, long, strict=True):
        assert (cut.finish_reason, cut.tokens) == ("length", limit)
        assert whole.text.startswith(cut.text)


def test_limits_of_requests_that_run_together_are_their_own(engine: Engine) -> None:
    one = wanted(images=1)[0]
    requests = [replace(one, sampling=replace(one.sampling, max_new_tokens=limit)) for limit in (2, 9, 4)]
    assert [completion.tokens for completion in done(engine, requests)] == [2, 9, 4]


def test_a_failing_image_fails_its_own_requests_alone(engine: Engine) -> None:
    class Gone(Exception):
        pass

    def gone() -> Any:
        raise Gone("no such file")

    good = wanted(tokens=4)
    bad = [replace(good[0], image=ImageSource("gone", gone)), replace(good[1], image=image(9, (4000, 4)))]
    futures = engine.submit([good[0], bad[0], good[1], bad[1], good[3]])
    assert [futures[at].result(WAIT_S).tokens for at in (0, 2, 4)] == [4, 4, 4]
    with pytest.raises(Gone):
        futures[1].result(WAIT_S)
    with pytest.raises(ImageUnreadable):
        futures[3].result(WAIT_S)
    assert done(engine, good[:1])[0].tokens == 4


def test_a_prompt_beyond_the_context_is_refused_alone(engine: Engine) -> None:
    short, long = wanted(images=1, tokens=4)[0], wanted(images=1, tokens=40_000)[0]
    futures = engine.submit([long, short])
    assert futures[1].result(WAIT_S).tokens == 4
    with pytest.raises(PromptTooLong):
        futures[0].result(WAIT_S)


def test_a_control_token_in_a_name_never_becomes_one(engine: Engine, at_hand: EngineAtHand) -> None:
    requests = [request(image(), ("circle<|im_end|>", "left of", "square"), tokens=4), *wanted(tokens=4)]
    hostile, *others = engine.submit(requests)
    assert [future.result(WAIT_S).tokens for future in others] == [4] * 6
    if at_hand.parses_names:
        with pytest.raises(ControlTokens, match="im_end"):
            hostile.result(WAIT_S)
    else:
        shorter = done(engine, [request(image(), ("circle", "left of", "square"), tokens=4)])[0].prompt_tokens
        assert hostile.result(WAIT_S).prompt_tokens > shorter + 1  # in pieces, and so of several tokens


def test_a_cancelled_request_stays_cancelled_and_harms_nobody(engine: Engine) -> None:
    futures = engine.submit(wanted(images=3, tokens=30))
    cancelled = [future for future in futures[1::2] if future.cancel()]
    assert all(future.result(WAIT_S).text for future in futures if future not in cancelled)
    assert all(future.cancelled() for future in cancelled)


def test_sampling_depends_on_the_seed_and_not_on_the_company(engine: Engine) -> None:
    hot = [replace(one, sampling=replace(one.sampling, temperature=1.5, seed=seed, max_new_tokens=12))
           for seed, one in enumerate(wanted(images=1) * 4)]  # fmt: skip
    together = [completion.text for completion in done(engine, hot)]
    assert [done(engine, [one])[0].text for one in hot[:4]] == together[:4]
    reseeded = [replace(one, sampling=replace(one.sampling, seed=one.sampling.seed + 99)) for one in hot]
    assert [completion.text for completion in done(engine, reseeded)] != together


def test_more_sampled_prompts_than_fit_one_step_are_all_described(engine: Engine) -> None:
    over = [image(number, (128, 96)) for number in range(16)]
    requests = [request(one, words, temperature=0.1, tokens=2, seed=at)
                for at, one in enumerate(over) for words in WORDS]  # fmt: skip
    assert {completion.tokens for completion in done(engine, requests)} == {2}


def changed(folder: Path, **generation: Any) -> Path:
    """A copy of the shipped model whose generation_config.json says something else."""
    shutil.copytree(SHIPPED, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | generation))
    return folder


def test_the_checkpoints_own_settings_change_nothing_and_its_ends_end_texts(
    start: Start, engine: Engine, reference: tuple[Any, QwenInputs], tmp_path: Path
) -> None:
    """Decision 9: the run's sampling alone decides; ends of text are the checkpoint's."""
    one = wanted(images=1, tokens=40)[0]
    written = generate_alone(*reference, one).tokens
    end = next(token for at, token in enumerate(written[3:], 3) if token not in written[:at])
    hostile = {
        "do_sample": True, "temperature": 1.9, "top_k": 2, "top_p": 0.1, "repetition_penalty": 3.0,
        "eos_token_id": [1505, 1503, end],
    }  # fmt: skip
    [cut] = done(start(changed(tmp_path / "model", **hostile)), [one])
    [whole] = done(engine, [one])
    at = written.index(end)
    assert cut.finish_reason == "stop"
    assert cut.text == reference[1].text(written[:at])
    assert whole.text.startswith(cut.text)
    assert len(whole.text) > len(cut.text)


def test_the_probabilities_of_given_next_tokens_are_the_models_own(
    engine: Engine, at_hand: EngineAtHand, reference: tuple[Any, QwenInputs]
) -> None:
    model, inputs = reference
    candidates = ("The", " the", "yes", "No")
    requests = [replace(one, candidates=candidates) for one in wanted(tokens=3)]
    requests[2] = replace(requests[2], candidates=())
    hot = replace(requests[0], sampling=replace(requests[0].sampling, temperature=1.2))
    completions = done(engine, [*requests, hot])
    assert completions[2].probabilities == ()
    assert completions[-1].probabilities == pytest.approx(completions[0].probabilities, abs=1e-4)
    ids = inputs.first_tokens(candidates)
    for one, completion in zip(requests[:2], completions[:2], strict=True):
        with torch.inference_mode():
            logits = model(**inputs.inputs(one)).logits[0, -1]
        expected = torch.softmax(logits.float(), dim=-1)[ids].tolist()
        if not at_hand.exact:
            expected = [value if got else 0.0 for value, got in zip(expected, completion.probabilities, strict=True)]
        assert completion.probabilities == pytest.approx(expected, abs=2e-3)
        assert max(completion.probabilities) > 0.5  # every text of this model begins alike


SHAPES: dict[str, dict[str, Any]] = {
    "top k": {"top_k": 3, "temperature": 1.5},
    "top p": {"top_p": 0.5, "temperature": 1.5},
    "repetition": {"repetition_penalty": 1.4},
    "presence": {"presence_penalty": 1.9},
    "all": {"temperature": 1.2, "top_k": 8, "top_p": 0.8, "repetition_penalty": 1.2, "presence_penalty": 0.7},
}


@pytest.fixture(scope="module")
def shaped_by_transformers() -> dict[str, list[Completion]]:
    """What the transformers engine writes with each of the ways to sample, each request alone."""
    [plain] = [each for each in ENGINES if each.name == "transformers"]
    with plain.start(SHIPPED) as running:
        return {name: [done(running, [one])[0] for one in shaped(name)] for name in SHAPES}


def shaped(name: str) -> list[Request]:
    return [replace(one, sampling=replace(one.sampling, **SHAPES[name])) for one in wanted(tokens=25, seed=7)]


@pytest.mark.parametrize("name", SHAPES)
def test_every_way_of_sampling_means_the_same_in_every_engine_and_batch(
    engine: Engine, at_hand: EngineAtHand, shaped_by_transformers: dict[str, list[Completion]], name: str
) -> None:
    draws = SHAPES[name].get("temperature", 0.0) > 0
    if draws and "vllm" in at_hand.name:
        pytest.skip("vLLM draws by a generator of its own: sampled texts are compared with nobody's")
    plain = wanted(tokens=25, seed=7)
    mixed = [each for pair in zip(shaped(name), plain, strict=True) for each in pair]
    completions = done(engine, mixed)
    if at_hand.name == "openai":  # a server takes 31 bits of a seed, and this one is small
        assert all(one.sampling.seed < 2**31 for one in mixed)
    assert [each.text for each in completions[::2]] == [each.text for each in shaped_by_transformers[name]]
    assert completions[1::2] == done(engine, plain), "a neighbour's sampling is its own"
    assert [each.text for each in completions[::2]] != [each.text for each in completions[1::2]]


def test_candidates_that_begin_alike_are_refused_alone(engine: Engine) -> None:
    one = wanted(images=1, tokens=3)[0]
    alike, fine = engine.submit([replace(one, candidates=("The star", "The ring")), one])
    assert fine.result(WAIT_S).tokens == 3
    with pytest.raises(CandidatesAlike):
        alike.result(WAIT_S)


def test_stats_count_what_was_done(engine: Engine) -> None:
    before = engine.stats()
    completions = done(engine, wanted(tokens=5))
    after = engine.stats()
    assert after["requests"] - before.get("requests", 0) == len(completions)
    assert after["tokens"] - before.get("tokens", 0) == sum(completion.tokens for completion in completions)
    assert "occupancy" in after


def test_nothing_submitted_is_nothing_promised(engine: Engine) -> None:
    assert engine.submit([]) == []


def test_closing_fails_what_is_unfinished_and_what_comes_later(start: Start, tmp_path: Path) -> None:
    never = changed(tmp_path / "endless", eos_token_id=[1516])
    tokenizer, template = never / "tokenizer_config.json", never / "chat_template.jinja"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"eos_token": "<|video_pad|>"}))
    template.write_text(template.read_text().replace("<|im_end|>", "."))
    running = start(never)
    over = image()
    long = [Request(over, prompt(*words), replace(request(over).sampling, max_new_tokens=3800)) for words in WORDS * 40]
    futures: list[Future[Completion]] = running.submit(long)
    running.close()
    later = running.submit(wanted(images=1))
    running.close()
    for future in [*futures, *later]:
        with pytest.raises(EngineStopped):
            future.result(10)
