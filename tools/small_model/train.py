"""Train the small model on fresh scenes and write the folder that the project ships.

    python -m tools.small_model.train --work DIR --out app/small_model

A killed training goes on from its last checkpoint by the same command. Every step draws its own scenes from
(seed, step), so that no image is seen twice and a resumed run sees what an unbroken one would have seen.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from transformers import Qwen3VLForConditionalGeneration

from tools.small_model.architecture import SmoothTables, first_model
from tools.small_model.batches import COLOUR_NAMES, Batch, draw_batch
from tools.small_model.export import export_model
from tools.small_model.forward import Outputs, forward
from tools.small_model.muon import Muon
from tools.small_model.tokenizer import build_tokenizer

LOG_EVERY = 50


@dataclass(frozen=True)
class Hyperparameters:
    """All that decides the weights, besides this package's code."""

    seed: int = 3
    steps: int = 3_000
    processes: int = 2  # each draws its own images; their gradients are averaged
    images: int = 4  # of each process, per step
    questions: int = 6
    muon_rate: float = 3e-3
    adam_rate: float = 2e-3
    warmup: int = 100
    decay_share: float = 0.3  # of the steps, at the end, linearly to zero
    weight_decay: float = 0.01
    ema: float = 0.998
    probe_weight: float = 0.5
    cell_weight: float = 0.3


class Probes(nn.Module):
    """Heads of the training alone: the colour in each cell of the image and at each box's centre."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.cells = nn.Linear(width, len(COLOUR_NAMES) + 1)
        self.centres = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, len(COLOUR_NAMES)))


class Training:
    """The model, its optimisers and its running mean, at one step."""

    def __init__(self, hyper: Hyperparameters, rank: int = 0) -> None:
        self.hyper, self.rank = hyper, rank
        self.tokenizer = build_tokenizer()
        self.model = first_model(self.tokenizer, hyper.seed)
        self.tables = SmoothTables(self.tokenizer)
        self.probes = Probes()
        self.trained = nn.ModuleDict({"model": self.model, "tables": self.tables, "probes": self.probes})
        self.optimisers = _optimisers(self.model, self.trained, hyper)
        self.mean = {name: value.detach().clone() for name, value in self.trained.named_parameters()}
        self.step = 0

    def advance(self) -> dict[str, float]:
        """One step on a fresh batch; gives what the log shows of it."""
        rng = np.random.default_rng([self.hyper.seed, self.step, 77, self.rank])
        batch = draw_batch(self.tokenizer, rng, self.hyper.images, self.hyper.questions)
        outputs = forward(self.model, self.tables, batch.asked)
        parts = losses(outputs, batch, self.probes)
        loss = parts["answer"] + self.hyper.probe_weight * parts["centre"] + self.hyper.cell_weight * parts["cell"]
        loss.backward()
        self._average_gradients()
        nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        share = learning_share(self.hyper, self.step)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * share
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self._follow()
        self.step += 1
        return {name: float(part.detach()) for name, part in parts.items()} | scores(outputs, batch)

    def _average_gradients(self) -> None:
        if self.hyper.processes == 1:
            return
        gradients = [value.grad for value in self.trained.parameters() if value.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.hyper.processes
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def _follow(self) -> None:
        keep = min(self.hyper.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.trained.named_parameters():
                self.mean[name].lerp_(value, 1 - keep)

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs, all or nothing."""
        state = {
            "step": self.step,
            "hyper": asdict(self.hyper),
            "trained": self.trained.state_dict(),
            "mean": self.mean,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; the schedule is this run's own."""
        state = torch.load(path, weights_only=True)  # noqa: TID251 - unpickles nothing but tensors
        self.step = state["step"]
        self.trained.load_state_dict(state["trained"])
        self.mean = state["mean"]
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            peaks = [group["peak"] for group in optimiser.param_groups]
            optimiser.load_state_dict(kept)
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["peak"] = peak

    def mean_model(self) -> Qwen3VLForConditionalGeneration:
        """The running mean of the weights as an ordinary model; the training goes on from its own."""
        kept = {name: value.detach().clone() for name, value in self.trained.named_parameters()}
        self.trained.load_state_dict(self.mean, strict=False)
        self.tables.write_into(self.model)
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.trained.load_state_dict(kept, strict=False)
        shipped = first_model(self.tokenizer, self.hyper.seed)
        shipped.load_state_dict(weights)
        return shipped.eval()


def losses(outputs: Outputs, batch: Batch, probes: Probes) -> dict[str, Tensor]:
    """Cross entropies of the answer's tokens, the colours at the centres and those in the image's cells."""
    each = F.cross_entropy(outputs.logits.flatten(0, 1), batch.labels.flatten(), reduction="none", ignore_index=-100)
    return {
        "answer": (each * batch.weights.flatten()).sum() / batch.weights.sum(),
        "centre": F.cross_entropy(probes.centres(outputs.at_centres).flatten(0, 1), batch.colours.flatten()),
        "cell": F.cross_entropy(probes.cells(outputs.visual).flatten(0, 1), batch.cells.flatten()),
    }


def scores(outputs: Outputs, batch: Batch) -> dict[str, float]:
    """Shares of answers right to the letter, and in every colour, each word after the right words before."""
    right = outputs.logits.argmax(-1) == batch.labels
    colour = batch.weights > 1
    return {
        "exact": float((right | (batch.labels < 0)).all(1).float().mean()),
        "colours": float((right | ~colour).all(1).float().mean()),
        "rest": float((right | colour | (batch.labels < 0)).all(1).float().mean()),
    }


def learning_share(hyper: Hyperparameters, step: int) -> float:
    """Of the peak rate: a linear warm-up, a plateau, and a linear way down to zero."""
    down = hyper.steps * hyper.decay_share
    return min(1.0, (step + 1) / hyper.warmup, max(0.0, (hyper.steps - step) / down))


def _optimisers(
    model: Qwen3VLForConditionalGeneration, trained: nn.Module, hyper: Hyperparameters
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for all else."""
    blocks = ("layers.", "blocks.")
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and any(block in name for block in blocks)]
    chosen = set(map(id, matrices))
    others = [p for p in trained.parameters() if id(p) not in chosen]
    muon = Muon(matrices, lr=hyper.muon_rate, weight_decay=hyper.weight_decay)
    adam = torch.optim.AdamW(others, lr=hyper.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
    for optimiser, rate in ((muon, hyper.muon_rate), (adam, hyper.adam_rate)):
        for group in optimiser.param_groups:
            group["peak"] = rate
    return [muon, adam]


@dataclass(frozen=True)
class Run:
    """Where a training keeps its state, and when it writes it."""

    work: Path
    out: Path | None
    save_minutes: float
    stop_after: int | None


@click.command()
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True, help="Checkpoint and log.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the finished model.")
@click.option("--steps", default=Hyperparameters.steps, show_default=True)
@click.option("--seed", default=Hyperparameters.seed, show_default=True)
@click.option("--processes", default=Hyperparameters.processes, show_default=True, help="One core each.")
@click.option("--save-minutes", default=3.0, show_default=True, help="Minutes between checkpoints.")
@click.option("--stop-after", type=int, help="Stop at this step without changing the schedule (for trials).")
def main(steps: int, seed: int, processes: int, **run: Any) -> None:
    """Train to the end, from the last checkpoint in --work if there is one, and write the model to --out.

    Example: python -m tools.small_model.train --work /tmp/training --out app/small_model
    """
    run["work"].mkdir(parents=True, exist_ok=True)
    hyper = replace(Hyperparameters(), steps=steps, seed=seed, processes=processes)
    with tempfile.TemporaryDirectory() as meeting:
        spawn(_train, (hyper, Run(**run), f"{meeting}/ranks"), nprocs=processes)


def _train(rank: int, hyper: Hyperparameters, run: Run, meeting: str) -> None:
    # one thread each: threads that meet at every product stall whenever another program takes a core
    torch.set_num_threads(1)
    if hyper.processes > 1:
        distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=hyper.processes)
    training = Training(hyper, rank)
    checkpoint = run.work / "checkpoint.pt"
    if checkpoint.exists():
        training.load(checkpoint)
    _steps(training, run, checkpoint if rank == 0 else None)
    if hyper.processes > 1:
        distributed.destroy_process_group()
    if rank == 0 and run.out is not None:
        export_model(training.mean_model(), training.tokenizer, run.out, record=_record(training))


def _steps(training: Training, run: Run, checkpoint: Path | None) -> None:
    saved = logged = time.monotonic()
    rows: list[dict[str, float]] = []
    while training.step < min(training.hyper.steps, run.stop_after or training.hyper.steps):
        row = training.advance()
        if checkpoint is None:
            continue
        rows.append(row)
        if training.step % LOG_EVERY == 0:
            seconds, logged = time.monotonic() - logged, time.monotonic()
            _log(run.work / "log.jsonl", training.step, rows, seconds)
            rows = []
        if time.monotonic() - saved > 60 * run.save_minutes:
            training.save(checkpoint)
            saved = time.monotonic()
    if checkpoint is not None:
        training.save(checkpoint)


def _log(path: Path, step: int, rows: list[dict[str, float]], seconds: float) -> None:
    means = {name: round(sum(row[name] for row in rows) / len(rows), 4) for name in rows[0]}
    row: dict[str, Any] = {"step": step, "seconds": round(seconds, 1), **means}
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _record(training: Training) -> dict[str, Any]:
    hyper = asdict(training.hyper)
    images = training.step * training.hyper.processes * training.hyper.images
    return {
        "steps_done": training.step,
        "images_seen": images,
        "questions_seen": images * training.hyper.questions,
        "torch": torch.__version__,
        "hyperparameters": hyper,
    }


if __name__ == "__main__":
    main()
