"""Build the small model's tokenizer: Qwen's control tokens over a byte-level BPE with a token for each piece.

Fixed pieces of the prompt, words of the answers and every integer of up to three digits are one token each;
any other text falls back to bytes. Nothing is learned from data that could differ from run to run.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tools.small_model.prompts import prompt
from tools.small_model.rules import DIRECTIONS, FITS, Relation, answer
from tools.small_model.shapes import COLOURS, SHAPES

CONTROL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip

PIECES = r" is roughly| is to the| of the|\p{N}{1,3}| ?[A-Za-z]+|[^A-Za-z\p{N}]+"

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' or 'image' in part or 'image_url' in part %}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part %}{{- part.text }}{%- endif %}"
    "{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, with the control tokens behind the ordinary ones."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    # so large a vocabulary and no least frequency: merging goes on until every piece is one token
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    bpe.add_special_tokens(CONTROL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        additional_special_tokens=CONTROL_TOKENS[3:],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def save_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Write the tokenizer's files and its chat template into ``folder``."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    return tokenizer


def _corpus() -> list[str]:
    texts = [str(number) for number in range(1000)]
    texts += ["<|im_start|>user\n", "system\n", "assistant\n"]
    for predicate in FITS:
        texts.append(prompt(("circle", "square"), ((1, 2, 3, 4), (5, 6, 7, 8)), (10, 10), predicate))
        texts += [f"roughly {predicate} circle", f'"{predicate}" fits.']
    texts += [f"circle，{name}和{name}细节" for name in SHAPES]
    texts += [f" {name} is" for name in SHAPES]
    for horizontal, vertical in DIRECTIONS:
        for overlap in (True, False):
            found = Relation(horizontal, vertical, overlap, near=True)
            for colour in COLOURS:
                texts += [answer(("circle", "square"), (colour, colour), found, p) for p in ("on", "touching")]
    return [piece for text in texts for piece in _between_control_tokens(text)]


def _between_control_tokens(text: str) -> list[str]:
    for token in CONTROL_TOKENS:
        text = text.replace(token, "\0")
    return [piece for piece in text.split("\0") if piece]
