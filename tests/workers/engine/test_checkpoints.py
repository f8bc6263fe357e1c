"""Checkpoints with something missing, added or mixed up: refused in one line that names it, or served as is right.

What transformers does of itself with most of them is to warn, and to write noise.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.model_identity import SMALL_MODEL
from tests.support.checkpoints import Weights, changed_file, changed_weights
from tests.support.engine_cases import build_llava, image, request
from workers.engine.api import CannotServe, Completion, Engine
from workers.engine.config import EngineConfig
from workers.engine.hf.model_inputs import ProcessorInputs
from workers.engine.load import load_engine, load_qwen_processor
from workers.engine.model import model_config

LAYER = "model.language_model.layers.2."
DAMAGES: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "no head": (lambda all_: {key: each for key, each in all_.items() if key != "lm_head.weight"}, "lm_head.weight"),
    "one tensor of a layer missing": (
        lambda all_: {key: each for key, each in all_.items() if key != f"{LAYER}mlp.up_proj.weight"},
        f"{LAYER}mlp.up_proj.weight",
    ),
    "a vision layer missing": (
        lambda all_: {key: each for key, each in all_.items() if "visual.blocks.1." not in key},
        "model.visual.blocks.1.",
    ),
    "foreign prefix": (lambda all_: {f"module.{key}": each for key, each in all_.items()}, "module.lm_head.weight"),
    "a tensor too many": (
        lambda all_: all_ | {f"{LAYER}mlp.up_proj.weight_scale": torch.ones(1)},
        f"{LAYER}mlp.up_proj.weight_scale",
    ),
    "another vocabulary": (
        lambda all_: all_ | {"lm_head.weight": all_["lm_head.weight"][:-5].clone()},
        "1 of another shape (lm_head.weight)",
    ),
    "eight bits without scales": (
        lambda all_: all_ | {f"{LAYER}mlp.up_proj.weight": all_[f"{LAYER}mlp.up_proj.weight"].to(torch.float8_e4m3fn)},
        "quantization_config",
    ),
    "whole numbers without scales": (
        lambda all_: all_ | {"lm_head.weight": (all_["lm_head.weight"] * 20).to(torch.int8)},
        "1 quantised weights (lm_head.weight)",
    ),
}  # fmt: skip


@contextmanager
def loaded(folder: Path, engine: str = "auto") -> Iterator[Engine]:
    running = load_engine(EngineConfig(model=str(folder), engine=engine, device="cpu", cpu_memory_bytes=2**28))
    try:
        yield running
    finally:
        running.close()


def text_of(folder: Path, engine: str = "builtin", tokens: int = 60) -> Completion:
    with loaded(folder, engine) as running:
        return running.submit([request(image(), ("red star", "above", "ring"), tokens=tokens)])[0].result(60)


@pytest.fixture(scope="module")
def right() -> Completion:
    """What the whole model writes."""
    return text_of(SMALL_MODEL)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("engine", ["builtin", "transformers"])
def test_weights_that_are_not_the_models_are_refused_by_their_names(tmp_path: Path, engine: str, damage: str) -> None:
    change, named = DAMAGES[damage]
    folder = changed_weights(tmp_path / "model", change)
    with pytest.raises(CannotServe) as refused, loaded(folder, engine):
        pass
    assert named in str(refused.value)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SMALL_MODEL, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(CannotServe, match="damaged"), loaded(folder):
        pass


def test_a_shard_that_is_away_is_named(tmp_path: Path, model_folder: Callable[..., Path]) -> None:
    from transformers import AutoModelForImageTextToText

    folder = tmp_path / "model"
    shutil.copytree(model_folder(), folder)
    (folder / "model.safetensors").unlink()
    model = AutoModelForImageTextToText.from_pretrained(model_folder())
    model.save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    with pytest.raises((CannotServe, OSError), match=shards[1].name), loaded(folder):
        pass


def test_quantised_weights_are_found_in_every_shard(tmp_path: Path) -> None:
    folder = changed_weights(tmp_path / "model", DAMAGES["whole numbers without scales"][0])
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {
        "model-1.safetensors": [key for key in weights if key != "lm_head.weight"],
        "model-2.safetensors": ["lm_head.weight"],
    }
    for name, keys in parts.items():
        save_file({key: weights[key] for key in keys}, folder / name, metadata={"format": "pt"})
    places = {key: name for name, keys in parts.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    with pytest.raises(CannotServe, match=r"1 quantised weights \(lm_head\.weight\)"), loaded(folder):
        pass


def test_files_that_are_not_the_models_are_not_looked_at(tmp_path: Path, right: Completion) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SMALL_MODEL, folder)
    save_file({"other.weight": torch.ones(3, dtype=torch.int8)}, folder / "adapter.safetensors")
    assert text_of(folder) == right


def test_what_a_model_does_without_is_no_fault(tmp_path: Path, right: Completion) -> None:
    """Old checkpoints keep a buffer that the model makes itself."""
    buffer = {"model.language_model.rotary_emb.inv_freq": torch.ones(16)}
    assert text_of(changed_weights(tmp_path / "old", lambda all_: all_ | buffer)) == right


def test_head_and_embeddings_that_are_one_are_loaded_without_a_head(tmp_path: Path) -> None:
    def tie(values: dict[str, object]) -> dict[str, object]:
        text = values["text_config"]
        assert isinstance(text, dict)
        return values | {"tie_word_embeddings": True, "text_config": text | {"tie_word_embeddings": True}}

    folder = changed_weights(tmp_path / "model", DAMAGES["no head"][0])
    changed_file(folder, "config.json", tie)
    texts = {text_of(folder, engine, tokens=8).text for engine in ("builtin", "transformers")}

    def with_head(weights: Weights) -> Weights:
        return weights | {"lm_head.weight": weights["model.language_model.embed_tokens.weight"].clone()}

    texts.add(text_of(changed_weights(tmp_path / "both", with_head, of=folder), tokens=8).text)
    assert len(texts) == 1


# -- sampling that a checkpoint brings along


@pytest.mark.parametrize("engine", ["builtin", "transformers"])
def test_a_checkpoints_own_sampling_changes_nothing(tmp_path: Path, engine: str, right: Completion) -> None:
    own = {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "min_new_tokens": 40, "do_sample": True, "top_k": 3,
           "suppress_tokens": list(range(200, 300)), "forced_eos_token_id": 7, "temperature": 2.5, "top_p": 0.3,
           "bad_words_ids": [[260]], "max_new_tokens": 4, "num_beams": 3, "cache_implementation": "static"}  # fmt: skip
    folder = changed_file(tmp_path / "model", "generation_config.json", lambda values: values | own)
    assert text_of(folder, engine) == right


# -- ends of text


@pytest.mark.parametrize("engine", ["builtin", "transformers"])
@pytest.mark.parametrize("ends", [None, 1503, [1503]])
def test_an_end_that_the_generation_configuration_lacks_still_ends_the_text(
    tmp_path: Path, engine: str, ends: object, right: Completion
) -> None:
    folder = changed_file(tmp_path / "model", "generation_config.json", lambda values: values | {"eos_token_id": ends})
    assert text_of(folder, engine, tokens=200) == right


def test_without_a_generation_configuration_the_others_tell_the_end(tmp_path: Path, right: Completion) -> None:
    folder = changed_file(
        tmp_path / "model", "tokenizer_config.json", lambda values: values | {"eos_token": "<|endoftext|>"}
    )
    (folder / "generation_config.json").unlink()
    assert text_of(folder, tokens=200) == right  # by the template's turn


def test_an_end_that_a_configuration_names_counts_if_it_is_a_control_token(tmp_path: Path, right: Completion) -> None:
    """A configuration's class supposes an id where the checkpoint names none: that of some word, perhaps."""
    word = json.loads((SMALL_MODEL / "tokenizer.json").read_text())["model"]["vocab"]["does"]
    folder = changed_file(tmp_path / "model", "config.json", lambda values: values | {"eos_token_id": [word, 1505]})
    changed_file(folder, "tokenizer_config.json", lambda values: values | {"eos_token": "<|endoftext|>"})
    (folder / "generation_config.json").unlink()
    template = folder / "chat_template.jinja"
    prompt = "{{ messages[0].content[1].text }}<|im_end|>\n<|im_start|>assistant{{ '\\n' }}"  # of single turns
    template.write_text("<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>" + prompt)
    assert text_of(folder, tokens=200) == right


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "</s>"}'])
def test_ends_that_cannot_be_read_are_one_line(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SMALL_MODEL, folder)
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(CannotServe, match=r"generation_config\.json: eos_token_id cannot be read"), loaded(folder):
        pass


def test_no_end_at_all_is_refused(tmp_path: Path) -> None:
    folder = changed_file(tmp_path / "model", "tokenizer_config.json",
                          lambda values: {key: each for key, each in values.items() if key != "eos_token"})  # fmt: skip
    (folder / "generation_config.json").unlink()
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", "."))
    with pytest.raises(CannotServe, match="no end of text is known"), loaded(folder):
        pass


# -- templates and processors


@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
def test_a_template_in_a_file_of_its_own_is_found(tmp_path: Path, family: str) -> None:
    folder = tmp_path / "model"
    if family == "llava":
        build_llava(folder)
    else:
        shutil.copytree(SMALL_MODEL, folder)
    before = text_of(folder, "auto", tokens=6)
    template = folder / "chat_template.jinja"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()
    assert text_of(folder, "auto", tokens=6) == before


@pytest.mark.parametrize("content", [None, "{", "{}", '"text"', '{"chat_template": "{% if %}"}'])
def test_a_template_that_is_none_is_refused_in_a_line(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SMALL_MODEL, folder)
    (folder / "chat_template.jinja").unlink()
    if content is not None:
        (folder / "chat_template.json").write_text(content)
    with pytest.raises(CannotServe, match=r"chat.template") as refused:
        load_qwen_processor(
            EngineConfig(model=str(folder)), model_config(EngineConfig(model=str(folder))).image_token_id
        )
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("processor", "images"), [("SmolVLMProcessor", "SmolVLMImageProcessor"),
                                                   ("InternVLProcessor", "GotOcr2ImageProcessor")])  # fmt: skip
def test_a_processor_that_needs_what_is_not_installed_says_so_in_a_sentence(
    tmp_path: Path, processor: str, images: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SMALL_MODEL, folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"processor_class": processor, "image_processor_type": images})
    )
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": processor}))
    with pytest.raises(CannotServe, match="needs torchvision, not installed here") as refused:
        ProcessorInputs(str(folder), None)
    assert "\n" not in str(refused.value)


# -- models that reason


@pytest.fixture(params=[True, False], ids=["special", "not special"])
def thinking(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The shipped model, which closes its reasoning where it else writes "and"; its template has opened it."""
    begin, close = 1511, 1510

    def close_at_the_word(weights: Weights) -> Weights:
        head, embeddings = weights["lm_head.weight"], weights["model.language_model.embed_tokens.weight"]
        head[close], head[word] = head[word].clone(), head[close].clone()
        embeddings[close] = embeddings[word]
        return weights

    def rename(values: dict[str, Any]) -> dict[str, Any]:
        for token in values["added_tokens"]:
            if token["id"] in (begin, close):
                token |= {"content": "<think>" if token["id"] == begin else "</think>", "special": request.param}
        return values

    vocabulary = json.loads((SMALL_MODEL / "tokenizer.json").read_text())["model"]["vocab"]
    word = vocabulary["and"]
    folder = changed_weights(tmp_path / "thinking", close_at_the_word)
    changed_file(folder, "tokenizer.json", rename)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n"))
    return folder


@pytest.mark.parametrize("engine", ["builtin", "transformers"])
def test_the_answer_is_the_text_and_the_reasoning_is_kept_apart(thinking: Path, engine: str) -> None:
    found = text_of(thinking, engine, tokens=200)
    assert found.finish_reason == "stop"
    assert found.closed
    assert found.reasoning is not None
    assert found.reasoning.startswith("The ")
    assert found.text.startswith("they ")
    assert "think>" not in found.text + found.reasoning


@pytest.mark.parametrize("engine", ["builtin", "transformers"])
def test_reasoning_that_is_cut_is_no_answer(thinking: Path, engine: str) -> None:
    found = text_of(thinking, engine, tokens=2)
    assert (found.text, found.finish_reason, found.closed, found.tokens) == ("", "length", False, 2)
    assert found.reasoning
