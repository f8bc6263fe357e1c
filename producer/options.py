"""The options that say what a run is, shared by ``producer enqueue`` and ``producer run``."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from app.database.run_rows import RunSettings
from app.images import parse_prefix
from app.model_identity import identify_model
from app.prompts import STYLES, load_template
from app.settings import Settings
from producer.enqueue import Inputs, RunRequest

Command = TypeVar("Command", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)

_RUN_OPTIONS = (
    click.option(
        "--stage1-result",
        "stage1_results",
        required=True,
        multiple=True,
        help="Stage 1's candidates (recall_results_*.json): a file or a pattern; may be given several times.",
    ),
    click.option("--input-data", required=True, type=_FILE, help="The images and their objects (test_*_images.json)."),
    click.option(
        "--image-root",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="What image paths are relative to, and must stay in.  [default: the folder of --input-data]",
    ),
    click.option(
        "--image-prefix",
        "image_prefixes",
        multiple=True,
        metavar="OLD=NEW",
        help="Folder NEW of this host for the folder OLD that image paths begin with; may be given several times, the "
        "longest OLD wins.",
    ),
    click.option("--run", "run_name", default="default", show_default=True, help="The run's name."),
    click.option("--model-path", help="A folder or hub name.  [default: small, which comes along]"),
    click.option("--model-revision", help="The hub's branch, tag or commit."),
    click.option("--style", type=click.Choice(STYLES), help="The built-in prompt.  [default: per-predicate]"),
    click.option("--prompt-template", type=_FILE, help="A prompt of your own, in place of --style."),
    click.option("--top-k", default=10, show_default=True, type=click.IntRange(min=1), help="Predicates per pair."),
    click.option("--max-new-tokens", default=512, show_default=True, type=click.IntRange(min=1), help="Longest text."),
    click.option("--temperature", default=0.1, show_default=True, type=click.FloatRange(min=0), help="0 is greedy."),
    click.option("--seed", default=0, show_default=True, type=int, help="Of the sampling."),
    click.option("--min-pixels", type=click.IntRange(min=1), help="Images are scaled up to it."),
    click.option("--max-pixels", type=click.IntRange(min=1), help="And down to it."),
    click.option(
        "--priority",
        default=0,
        show_default=True,
        type=int,
        help="Integer; runs of a higher one are served first.",
    ),
    click.option(
        "--update", is_flag=True, help="Take changed inputs, or another --top-k, and describe again what they change."
    ),
    click.option(
        "--reuse/--no-reuse", default=True, show_default=True, help="Copy descriptions that the database has already."
    ),
    click.option("--force", is_flag=True, help="Enqueue even if the disk seems too small for the results."),
    click.option("--max-queued", type=click.IntRange(min=1), help="Hold back while so many messages wait."),
)  # fmt: skip


@dataclass(frozen=True)
class RunOptions:
    """The values of the options above."""

    stage1_results: tuple[str, ...]
    input_data: Path
    image_root: Path | None
    image_prefixes: tuple[str, ...]
    run_name: str
    model_path: str | None
    model_revision: str | None
    style: str | None
    prompt_template: Path | None
    top_k: int
    max_new_tokens: int
    temperature: float
    seed: int
    min_pixels: int | None
    max_pixels: int | None
    priority: int
    update: bool
    reuse: bool
    force: bool
    max_queued: int | None

    def inputs(self) -> Inputs:
        """The files and the root of their images. Raises click.BadParameter."""
        try:
            prefixes = tuple(map(parse_prefix, self.image_prefixes))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--image-prefix") from None
        root = self.image_root or self.input_data.parent
        return Inputs(_files(self.stage1_results), self.input_data, root, prefixes)

    def request(self, settings: Settings, reported: dict[str, Any]) -> RunRequest:
        """The run that these options ask for. Raises TemplateError and click.UsageError."""
        if self.style and self.prompt_template:
            raise click.UsageError("--style and --prompt-template are two ways to say one thing: give one of them")
        if not math.isfinite(self.temperature):
            raise click.UsageError(f"--temperature {self.temperature} is not a finite number")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise click.UsageError(f"--min-pixels {self.min_pixels} is above --max-pixels {self.max_pixels}")
        if not self.run_name.strip() or len(self.run_name) > 200:
            raise click.UsageError("--run needs a name of 1 to 200 characters")
        template = load_template(self.prompt_template or self.style or STYLES[0])
        model = identify_model(settings.model, settings.model_revision)
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
        )
        options = {**reported, "reuse": self.reuse, "window": self.max_queued}
        return RunRequest(
            self.run_name, model, run_settings, template, options,
            priority=self.priority, update=self.update, force=self.force,
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
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command


def collect(given: dict[str, Any]) -> RunOptions:
    """Take the values of the options above out of a command's keyword arguments."""
    return RunOptions(**{name: given.pop(name) for name in RunOptions.__dataclass_fields__})
