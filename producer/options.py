"""The options that say what a run is, shared by ``producer enqueue`` and ``producer run``."""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from app.boxes import BOX_FORMATS, BoxFormat
from app.commands import FiniteFloat, WholeNumber, model_options
from app.database.records import RunSettings
from app.errors import printable
from app.model_identity import identify_model
from app.prompts import LANGUAGES, STYLES, Language, load_template
from app.settings import Settings, parse_prefix
from producer.run_request import Inputs, RunRequest

Command = TypeVar("Command", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)

_INPUT_OPTIONS = (
    click.option(
        "--stage1-result",
        "stage1_results",
        required=True,
        multiple=True,
        metavar="FILE",
        help="Stage-1 candidates: a JSON file, recall_results_*.json, or a pattern; may be given several times.",
    ),
    click.option(
        "--input-data", required=True, type=_FILE, help="Images and their objects: a JSON file, test_*_images.json."
    ),
    click.option(
        "--image-root",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        show_default="the folder of --input-data",
        help="Folder that relative image paths start from, and in which every image must lie.",
    ),
    click.option(
        "--image-prefix",
        "image_prefixes",
        multiple=True,
        metavar="OLD=NEW",
        show_default="none",
        help="Folder NEW of this host for the folder OLD that image paths start with. May be given several times: "
        "the longest OLD that fits wins.",
    ),
    click.option(
        "--box-format",
        type=click.Choice(BOX_FORMATS),
        default="xyxy",
        show_default=True,
        help="Form of the boxes: xyxy (left, top, right, bottom), xywh (left, top, width, height), yxyx, in pixels; "
        "relative is xyxy in shares of the image's size, 0 to 1. Results hold xyxy in pixels.",
    ),
    click.option(
        "--run", "run_name", default="default", show_default=True, help="Name of the run, 1 to 200 characters."
    ),
    click.option(
        "--priority",
        type=WholeNumber(),
        show_default="0, or the run's own",
        help="Priority of the run, an integer; runs of a higher one are served first.",
    ),
    click.option(
        "--update", is_flag=True, help="Take changed inputs, or another --top-k, and describe again what they change."
    ),
    click.option(
        "--reuse/--no-reuse",
        default=True,
        show_default=True,
        help="Copy descriptions that the database has of the same request, instead of generating them.",
    ),
    click.option("--force", is_flag=True, help="Enqueue even if the disk seems too small for the results."),
)
_TEXT_OPTIONS = (
    click.option(
        "--style",
        type=click.Choice(STYLES),
        show_default=STYLES[0],
        help="Built-in prompt: one description for each predicate, or one for each pair.",
    ),
    click.option(
        "--prompt-template",
        type=_FILE,
        show_default="the prompt of --style",
        help="Text file with a prompt of your own, in place of --style.",
    ),
    click.option(
        "--language",
        type=click.Choice(LANGUAGES),
        show_default=LANGUAGES[0],
        help="Language of the built-in prompt: zh as specified, or en; descriptions follow it.",
    ),
    click.option(
        "--top-k",
        default=10,
        show_default=True,
        type=WholeNumber(min=1),
        help="Predicates kept of each pair, those of the highest similarity.",
    ),
    click.option(
        "--max-new-tokens",
        default=512,
        show_default=True,
        type=WholeNumber(min=1),
        help="Longest description, in tokens.",
    ),
    click.option(
        "--temperature",
        default=0.1,
        show_default=True,
        type=FiniteFloat(min=0),
        help="Sampling temperature; 0 decodes greedily.",
    ),
    click.option(
        "--top-p",
        default=1.0,
        show_default=True,
        type=FiniteFloat(min=0, max=1, min_open=True),
        help="Draw from the likeliest tokens alone whose chances together reach this; 1 draws from all.",
    ),
    click.option(
        "--top-k-sampling",
        default=0,
        show_default=True,
        type=WholeNumber(min=0),
        help="Draw from so many of the likeliest tokens alone; 0 draws from all. Not --top-k, which is of predicates.",
    ),
    click.option(
        "--repetition-penalty",
        default=1.0,
        show_default=True,
        type=FiniteFloat(min=0, max=100, min_open=True),
        help="Above 1, tokens that the prompt or the description has already become less likely.",
    ),
    click.option(
        "--presence-penalty",
        default=0.0,
        show_default=True,
        type=FiniteFloat(min=-2, max=2),
        help="Taken from the logits of tokens that the description has already.",
    ),
    click.option(
        "--seed", default=0, show_default=True, type=int, help="Seed of the sampling; without effect at temperature 0."
    ),
    click.option(
        "--min-pixels",
        type=WholeNumber(min=1),
        show_default="the model's own",
        help="Pixels that a smaller image is scaled up to.",
    ),
    click.option(
        "--max-pixels",
        type=WholeNumber(min=1),
        show_default="the model's own",
        help="Pixels that a larger image is scaled down to.",
    ),
    click.option(
        "--verify",
        is_flag=False,
        flag_value=LANGUAGES[0],
        type=click.Choice(LANGUAGES),
        metavar="[zh|en]",
        show_default="not asked; zh where no language is named",
        help="Ask of each relation, too, whether it holds: one token a predicate. `producer verify` asks later.",
    ),
    click.option(
        "--max-queued",
        type=WholeNumber(min=1),
        show_default="50000, or ten minutes of work",
        help="Messages of the run that wait in the queue; workers top it up from the database.",
    ),
)


@dataclass(frozen=True)
class RunOptions:
    """The values of the options above."""

    stage1_results: tuple[str, ...]
    input_data: Path
    image_root: Path | None
    image_prefixes: tuple[str, ...]
    box_format: BoxFormat
    run_name: str
    model_path: str | None
    model_revision: str | None
    base_url: str | None
    style: str | None
    prompt_template: Path | None
    language: Language | None
    top_k: int
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k_sampling: int
    repetition_penalty: float
    presence_penalty: float
    seed: int
    min_pixels: int | None
    max_pixels: int | None
    priority: int | None
    update: bool
    reuse: bool
    force: bool
    verify: Language | None
    max_queued: int | None

    def inputs(self) -> Inputs:
        """The files and the root of their images. Raises click.BadParameter."""
        try:
            prefixes = tuple(map(parse_prefix, self.image_prefixes))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--image-prefix") from None
        root = self.image_root or self.input_data.parent
        return Inputs(_files(self.stage1_results), self.input_data, root, prefixes, self.box_format)

    def request(self, settings: Settings, reported: dict[str, Any]) -> RunRequest:
        """The run that these options ask for. Raises TemplateError and click.UsageError."""
        if self.style and self.prompt_template:
            raise click.UsageError("--style and --prompt-template both choose the prompt: give one of them")
        if self.language and self.prompt_template:
            raise click.UsageError("--language chooses a built-in prompt: leave it out with --prompt-template")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise click.UsageError(f"--min-pixels {self.min_pixels} is above --max-pixels {self.max_pixels}")
        if not self.run_name.strip() or len(self.run_name) > 200:
            raise click.UsageError("--run needs a name of 1 to 200 characters")
        if self.run_name != printable(self.run_name):
            raise click.UsageError(f"--run {printable(self.run_name)}: control characters are not for names")
        template = load_template(self.prompt_template or self.style or STYLES[0], self.language or LANGUAGES[0])
        model = identify_model(settings.model, settings.model_revision, settings.base_url)
        run_settings = RunSettings(
            model=model.name,
            model_revision=model.revision,
            model_config_hash=model.config_hash,
            style=template.style,
            template_hash=template.hash,
            top_k=self.top_k,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
            top_p=self.top_p,
            top_k_sampling=self.top_k_sampling,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
        )
        options = {**reported, "reuse": self.reuse, "window": self.max_queued, "verify": self.verify}
        return RunRequest(
            self.run_name, model, run_settings, template, options,
            priority=self.priority, update=self.update, force=self.force, verify=self.verify,
        )  # fmt: skip


def _files(patterns: tuple[str, ...]) -> tuple[Path, ...]:
    """The files that these names and patterns mean, each once, in order. Raises click.BadParameter."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        named = Path(pattern)
        files = [named] if named.exists() else [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
        if not files or not all(path.is_file() for path in files):
            what = "is a directory" if named.is_dir() else "does not exist"
            raise click.BadParameter(f"file {pattern!r} {what}", param_hint="--stage1-result")
        found |= dict.fromkeys(files)
    return tuple(found)


def run_options(command: Command) -> Command:
    """Add the options; the command gets them as one ``options: RunOptions`` (see ``collect``)."""
    for option in reversed(_TEXT_OPTIONS):
        command = option(command)
    command = model_options(command)
    for option in reversed(_INPUT_OPTIONS):
        command = option(command)
    return command


def collect(given: dict[str, Any]) -> RunOptions:
    """Take the values of the options above out of a command's keyword arguments."""
    return RunOptions(**{name: given.pop(name) for name in RunOptions.__dataclass_fields__})
