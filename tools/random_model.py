"""Random weights in the shape of a Qwen-VL model, with a tokenizer and processors built offline.

    python -m tools.random_model --out DIR --size tiny|60m --seed 0

For tests, benchmarks and demonstrations where no trained model is at hand: what it writes means nothing, but
it is loaded, prompted and decoded exactly like the real ones. Needs torch, transformers and tokenizers alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AddedToken, AutoConfig, AutoModelForImageTextToText, Qwen2Tokenizer

FAMILIES = ("qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl", "qwen2_vl")

# The added tokens of Qwen's tokenizers, in their order; those from <tool_call> on are added but not special.
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ADDED = ("<tool_call>", "</tool_call>", "<think>", "</think>")

TURN = (
    "<|im_start|>{{ message.role }}\n{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
)
SYSTEM = (
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
)
START = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

# What the byte-pair merges are learnt from: the prompt's own words, so that prompts have realistic lengths.
CORPUS = (
    "这是一张图 ，物体 和 在位置 和 在位置 位于 ，位于 ， is roughly ，请给出 和 细节的相对关系 "
    "user assistant "
    "man woman person boy girl shirt jacket tree train car bus windshield window building street "
    "sidewalk sky cloud horse dog cat elephant giraffe table chair plate bowl cup glass bottle food "
    "pizza plant flower grass hill mountain water wave surfboard beach boat kite skateboard motorcycle "
    "bicycle wheel tire sign pole light door roof wall fence on in has wearing wears of near with "
    "behind above under sitting on standing on holding riding in front of next to attached to hanging "
    "from parked on looking at walking on carrying over between covering belonging to along the is a "
    "and to it that which its left right top bottom side upper lower corner middle image picture shows "
)

TEXT_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "initializer_range": 0.15,
    },
    "60m": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 14,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "initializer_range": 0.05,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "initializer_range": 0.02,
    },
}
VOCABULARIES = {"tiny": 1280, "60m": 4096, "8b": 151936}
VISION_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "initializer_range": 0.1,
    },
    "60m": {
        "depth": 8,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_heads": 4,
        "initializer_range": 0.05,
    },
    "8b": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "initializer_range": 0.02,
    },
}


def build(out: Path, *, size: str = "tiny", seed: int = 0, family: str = "qwen3_vl") -> Path:
    """Write a model folder (configuration, weights, tokenizer, processors) and give its path."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(family)
    config = build_config(tokenizer, size, family)
    model = random_model(config, seed)
    with torch.no_grad():  # never written: ids without a token, control tokens, pieces of characters
        model.lm_head.weight[~_writable(tokenizer, config.text_config.vocab_size)] = 0
    model.generation_config.eos_token_id = [config.text_config.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_processors(out, size, family)
    return out


def random_model(config: Any, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """Seeded random weights; the output layer is drawn wider, so that the best token stands out as a trained
    model's.
    """
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=4.0 / config.text_config.hidden_size**0.5)
    return model.eval()


def build_tokenizer(family: str = "qwen3_vl") -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer with Qwen's own added tokens and chat template, learnt from the corpus
    above.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False)
    words = CORPUS.replace(" ", "\n")  # the same words without a space before them
    learner.train_from_iterator([CORPUS, CORPUS, words, words], trainer)
    learnt = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(vocab=learnt["vocab"], merges=[tuple(pair) for pair in learnt["merges"]])
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED])
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    system = "" if family.startswith("qwen3") else SYSTEM
    tokenizer.chat_template = "{% for message in messages %}" + system + TURN + "{% endfor %}" + START
    return tokenizer


def build_config(tokenizer: Any, size: str, family: str) -> Any:
    """The family's configuration in the given size, its token ids those of the tokenizer."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    text = dict(TEXT_SIZES[size], max_position_embeddings=32768, vocab_size=VOCABULARIES[size])
    text |= {"bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    half = text["head_dim"] // 2
    side = half * 5 // 16  # rotary frequencies of rows and of columns, the rest is the frames'
    section = [half - 2 * side, side, side]
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}
    if family.startswith("qwen3"):
        text["rope_parameters"]["mrope_interleaved"] = True
    else:  # these families derive the head's size
        text["num_attention_heads"] = text["hidden_size"] // text["head_dim"]
    if family == "qwen3_vl_moe":
        experts = {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": text["intermediate_size"] // 2,
        }
        text |= experts | {"decoder_sparse_step": 1, "mlp_only_layers": []}
    kwargs = {"text_config": text, "vision_config": _vision(size, family, text["hidden_size"])}
    return AutoConfig.for_model(
        family,
        **kwargs,
        tie_word_embeddings=False,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def _writable(tokenizer: Any, vocabulary: int) -> torch.Tensor:
    """(vocabulary,) bool: the tokens that read as text, and those that end it."""
    ends = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    texts = [tokenizer.decode([token], skip_special_tokens=True) for token in range(vocabulary)]
    added = tokenizer.added_tokens_decoder
    readable = [text.isprintable() and text != "" and "\ufffd" not in text for text in texts]
    return torch.tensor([token in ends or (ok and token not in added) for token, ok in enumerate(readable)])


def _vision(size: str, family: str, hidden: int) -> dict[str, Any]:
    vision = dict(VISION_SIZES[size], patch_size=_patch(family))
    if family == "qwen2_vl":
        vision |= {"embed_dim": vision.pop("hidden_size"), "hidden_size": hidden, "mlp_ratio": 2}
        del vision["intermediate_size"]
        return vision
    vision["out_hidden_size"] = hidden
    if family == "qwen2_5_vl":
        return vision | {"window_size": 56, "fullatt_block_indexes": [vision["depth"] - 1]}
    third = max(1, vision["depth"] // 3)
    return vision | {"num_position_embeddings": 2304, "deepstack_visual_indexes": [third - 1, 2 * third - 1]}


def _patch(family: str) -> int:
    return 16 if family.startswith("qwen3") else 14


def write_processors(out: Path, size: str, family: str) -> None:
    """The processors' files as the real folders have them; tiny models get tiny images."""
    unit = (2 * _patch(family)) ** 2
    limits = {"shortest_edge": 4 * unit, "longest_edge": (24 if size == "tiny" else 320) * unit}
    mean = [0.5, 0.5, 0.5]
    image = {
        "size": limits,
        "patch_size": _patch(family),
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": mean,
        "image_std": mean,
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen3VLProcessor" if family.startswith("qwen3") else "Qwen2VLProcessor",
    }
    video = {**image, "video_processor_type": "Qwen3VLVideoProcessor"}
    if not family.startswith("qwen3"):
        video["video_processor_type"] = "Qwen2VLVideoProcessor"
    del video["image_processor_type"]
    for name, content in (("preprocessor_config.json", image), ("video_preprocessor_config.json", video)):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Build the folder that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--size", choices=sorted(TEXT_SIZES), default="tiny")
    parser.add_argument("--family", choices=FAMILIES, default="qwen3_vl")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.stdout.write(f"{build(args.out, size=args.size, seed=args.seed, family=args.family)}\n")


if __name__ == "__main__":
    main()
