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
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn
from transformers import Qwen3VLForConditionalGeneration

from tools.small_model.architecture import SmoothTables, first_model
from tools.small_model.batches import draw_batch
from tools.small_model.export import export_model
from tools.small_model.forward import forward
from tools.small_model.losses import Probes, losses, scores
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
    verifications: int = 0  # of each image, too: whether a relation holds, yes or no
    muon_rate: float = 3e-3
    adam_rate: float = 2e-3
    warmup: int = 100
    decay_share: float = 0.3  # of the steps, at the end, linearly to zero
    weight_decay: float = 0.01
    ema: float = 0.998
    probe_weight: float = 0.5
    cell_weight: float = 0.3
    verification_weight: float = 3.0

    def at_rate(self, factor: float) -> Hyperparameters:
        """The same with both learning rates multiplied."""
        return replace(self, muon_rate=factor * self.muon_rate, adam_rate=factor * self.adam_rate)


class Training:
    """The model, its optimisers and its running mean, at one step."""

    def __init__(self, hyper: Hyperparameters, rank: int = 0, start: Path | None = None) -> None:
        self.hyper, self.rank = hyper, rank
        self.tokenizer = build_tokenizer()
        self.model = first_model(self.tokenizer, hyper.seed)
        self.tables = SmoothTables(self.tokenizer)
        if start is not None:
            self.model.load_state_dict(Qwen3VLForConditionalGeneration.from_pretrained(start).state_dict())
            self.tables.read_from(self.model)
        self.probes = Probes()
        self.trained = nn.ModuleDict({"model": self.model, "tables": self.tables, "probes": self.probes})
        self.optimisers = _optimisers(self.model, self.trained, hyper)
        self.mean = {name: value.detach().clone() for name, value in self.trained.named_parameters()}
        self.step = 0

    def advance(self) -> dict[str, float]:
        """One step on a fresh batch; gives what the log shows of it."""
        rng = np.random.default_rng([self.hyper.seed, self.step, 77, self.rank])
        batch = draw_batch(self.tokenizer, rng, self.hyper.images, self.hyper.questions, self.hyper.verifications)
        outputs = forward(self.model, self.tables, batch.asked)
        parts = losses(outputs, batch, self.probes)
        hyper = self.hyper
        loss = parts["answer"] + hyper.probe_weight * parts["centre"] + hyper.cell_weight * parts["cell"]
        if "verification" in parts:
            loss = loss + hyper.verification_weight * parts["verification"]
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
    start: Path | None
    save_minutes: float
    stop_after: int | None


@click.command()
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True, help="Checkpoint and log.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the finished model.")
@click.option("--steps", default=Hyperparameters.steps, show_default=True)
@click.option("--seed", default=Hyperparameters.seed, show_default=True)
@click.option("--processes", default=Hyperparameters.processes, show_default=True, help="One core each.")
@click.option("--start", type=click.Path(exists=True, path_type=Path), help="Model folder to begin with, not noise.")
@click.option("--questions", default=Hyperparameters.questions, show_default=True, help="Descriptions of each image.")
@click.option("--verifications", default=0, show_default=True, help="Questions for yes or no over each image, too.")
@click.option("--rate", default=1.0, show_default=True, help="Factor of both learning rates.")
@click.option("--save-minutes", default=3.0, show_default=True, help="Minutes between checkpoints.")
@click.option("--stop-after", type=int, help="Stop at this step without changing the schedule (for trials).")
def main(
    rate: float,
    work: Path,
    out: Path | None,
    start: Path | None,
    save_minutes: float,
    stop_after: int | None,
    **changed: int,
) -> None:
    """Train to the end, from the last checkpoint in --work if there is one, and write the model to --out.

    Example: python -m tools.small_model.train --work /tmp/training --out app/small_model
    """
    work.mkdir(parents=True, exist_ok=True)
    hyper = replace(Hyperparameters(), **changed).at_rate(rate)
    if start is not None:  # what the probes teach is known, and new ones would disturb it
        hyper = replace(hyper, probe_weight=0.0, cell_weight=0.0)
    run = Run(work, out, start, save_minutes, stop_after)
    with tempfile.TemporaryDirectory() as meeting:
        spawn(_train, (hyper, run, f"{meeting}/ranks"), nprocs=hyper.processes)


def _train(rank: int, hyper: Hyperparameters, run: Run, meeting: str) -> None:
    # one thread each: threads that meet at every product stall whenever another program takes a core
    torch.set_num_threads(1)
    if hyper.processes > 1:
        distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=hyper.processes)
    training = Training(hyper, rank, run.start)
    checkpoint = run.work / "checkpoint.pt"
    if checkpoint.exists():
        training.load(checkpoint)
    _steps(training, run, checkpoint if rank == 0 else None)
    if hyper.processes > 1:
        distributed.destroy_process_group()
    if rank == 0 and run.out is not None:
        export_model(training.mean_model(), training.tokenizer, run.out, record=_record(training, run.start))


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


def _record(training: Training, start: Path | None) -> dict[str, Any]:
    before = {} if start is None else {"before": json.loads((start / "training.json").read_text())}
    hyper = asdict(training.hyper)
    images = training.step * training.hyper.processes * training.hyper.images
    return {
        "steps_done": training.step,
        "images_seen": images,
        "questions_seen": images * training.hyper.questions,
        "verifications_seen": images * training.hyper.verifications,
        "torch": torch.__version__,
        "hyperparameters": hyper,
        **before,
    }


if __name__ == "__main__":
    main()
