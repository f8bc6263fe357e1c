"""The ``workers`` command."""

from __future__ import annotations

import json
import logging
import signal
from functools import partial
from pathlib import Path

import click

from app.commands import (
    FarmGroup,
    FiniteFloat,
    WholeNumber,
    handle_errors,
    json_option,
    log_options,
    model_options,
    say,
    settings_from,
    state_dir_option,
    table,
    worker_options,
)
from app.database.connection import open_database
from app.errors import WorkersError
from app.logs import set_up_logging
from app.model_identity import identify_model
from app.processes import visible_gpus
from app.queue.celery_app import ensure_broker
from app.settings import DTYPES
from workers.calibration import calibrate as measure_calibration
from workers.calibration import candidates, measure_apart
from workers.engine_choice import keep_calibration, look_around
from workers.launcher import Launcher, refuse_contradictions, slots_for


@click.group(cls=FarmGroup)
def main() -> None:
    """Start and watch this machine's workers.

    Example: workers up --gpus 0,1 --workers-per-gpu 2
    """
    set_up_logging(logging.INFO)


@main.command()
@click.option(
    "--gpus", show_default="all visible", help="GPUs to use, by number or UUID, with commas between them: 0,1."
)
@click.option(
    "--num-gpus",
    type=WholeNumber(min=0),
    show_default="all visible",
    help="Number of GPUs to use, the first ones; 0 runs on the CPU.",
)
@worker_options
@model_options
@click.option(
    "--image-root",
    type=click.Path(path_type=Path, file_okay=False),
    show_default="the run's own",
    help="Folder on this host that relative image paths start from.",
)
@click.option(
    "--image-prefix",
    "image_prefixes",
    multiple=True,
    metavar="OLD=NEW",
    show_default="none",
    help="Folder NEW of this host for the folder OLD of the producer's host. May be given several times: the longest "
    "OLD that fits wins.",
)
@click.option(
    "--log-dir",
    type=click.Path(path_type=Path, file_okay=False),
    show_default="standard error",
    help="Folder for the workers' logs, one file for each slot.",
)
@click.option(
    "--pairs-in-flight",
    type=WholeNumber(min=1, max=4096),
    show_default="on a GPU half its generations decoded together, 128; else 32",
    help="Pairs that one worker runs at once.",
)
@click.option(
    "--events",
    is_flag=True,
    default=None,
    help="Send an event of every pair through Redis, for Flower (`celery -A workers flower`).",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(min=1, max=65535),
    show_default="no metrics",
    help="TCP port at which the first worker answers Prometheus, on FARM_METRICS_HOST; each further one has the next.",
)
@log_options
@click.option("--give-up", is_flag=True, help="Exit with status 1 when a worker cannot start, instead of retrying.")
@state_dir_option
@handle_errors
def up(
    gpus: str | None,
    num_gpus: int | None,
    workers_per_gpu: int,
    image_prefixes: tuple[str, ...],
    log_dir: Path | None,
    give_up: bool,
    **given: object,
) -> None:
    """Start a worker in each slot, restart those that die, stop all of them on SIGTERM or Ctrl-C.

    Example: workers up --gpus 0,1 --workers-per-gpu 2 --model-path Qwen/Qwen3-VL-8B-Instruct
    """
    given["model"] = given.pop("model_path")
    settings = settings_from(image_prefixes=image_prefixes or None, **given)
    set_up_logging(settings.log_level or logging.INFO, settings.log_format, force=True)
    on_cpu = settings.base_url is not None or (settings.device == "cpu" and gpus is None)
    chosen = [] if on_cpu else _chosen_gpus(gpus, num_gpus)
    refuse_contradictions(settings, chosen, workers_per_gpu)
    ensure_broker(settings)
    slots = slots_for(chosen, workers_per_gpu, settings.gpus_per_worker)
    logging.getLogger(__name__).info("slots: %s", ", ".join(slot.name for slot in slots))
    launcher = Launcher(settings, slots, open_database(settings), log_folder=log_dir, give_up=give_up)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: launcher.stop())
    try:
        launcher.run()
    except WorkersError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.option(
    "--seconds",
    default=30.0,
    show_default=True,
    type=FiniteFloat(min=0.1),
    help="Seconds that each engine is measured for, once it has loaded the model.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    show_default="bfloat16 on a GPU, float32 on a CPU",
    help="Type of the model's weights.",
)
@model_options
@json_option
@state_dir_option
@handle_errors
def calibrate(seconds: float, as_json: bool, **given: object) -> None:
    """Measure which engine is fastest with a model on this machine's first GPU, for --engine auto to take it.

    The figures are kept in the state folder by GPU, model and versions of the packages; on a CPU they are shown alone.

    Example: workers calibrate --model-path Qwen/Qwen3-VL-8B-Instruct
    """
    given["model"] = given.pop("model_path")
    settings = settings_from(**given)
    if settings.base_url:
        raise click.UsageError("--base-url: a server's engine is its own")
    model = identify_model(settings.model, settings.model_revision)
    around = look_around(settings.gpus_per_worker)
    measured = measure_calibration(model, around, candidates(around), seconds, partial(measure_apart, settings))
    path = keep_calibration(settings, measured)
    if as_json:
        say(json.dumps({"engine": measured.fastest, "tokens_per_second": measured.tokens_per_second}))
        return
    say(table([(name, f"{speed:.1f} tokens/s") for name, speed in measured.tokens_per_second.items()]))
    taken = "" if around.card else "; without a GPU, --engine auto does not go by it"
    say(f"fastest on {around.card or 'this CPU'}: {measured.fastest}, kept in {path}{taken}")


def _chosen_gpus(gpus: str | None, num_gpus: int | None) -> list[str]:
    found = visible_gpus()
    if gpus is None:
        if num_gpus is not None and num_gpus > len(found):
            raise click.UsageError(f"--num-gpus {num_gpus}: this machine shows {len(found)} GPUs")
        return found[:num_gpus]
    if num_gpus is not None:
        raise click.UsageError("--gpus and --num-gpus both choose GPUs: give one of them")
    return [name.strip() for name in gpus.split(",") if name.strip()]
