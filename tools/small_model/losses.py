"""What the training makes smaller, and what its log shows of it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tools.small_model.batches import COLOUR_NAMES, Batch
from tools.small_model.forward import Outputs


class Probes(nn.Module):
    """Heads of the training alone: the colour in each cell of the image and at each box's centre."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.cells = nn.Linear(width, len(COLOUR_NAMES) + 1)
        self.centres = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, len(COLOUR_NAMES)))


def losses(outputs: Outputs, batch: Batch, probes: Probes) -> dict[str, Tensor]:
    """Cross entropies of the descriptions' tokens, of yes or no, of the colours at the centres and of those in the
    image's cells.
    """
    each = F.cross_entropy(outputs.logits.flatten(0, 1), batch.labels.flatten(), reduction="none", ignore_index=-100)
    each = each.view_as(batch.labels)
    verifies = batch.verifies[:, None]
    weights = batch.weights * ~verifies
    verified = {"verification": each[verifies & (batch.labels >= 0)].mean()} if verifies.any() else {}
    return verified | {
        "answer": (each * weights).sum() / weights.sum(),
        "centre": F.cross_entropy(probes.centres(outputs.at_centres).flatten(0, 1), batch.colours.flatten()),
        "cell": F.cross_entropy(probes.cells(outputs.visual).flatten(0, 1), batch.cells.flatten()),
    }


def scores(outputs: Outputs, batch: Batch) -> dict[str, float]:
    """Shares of descriptions right to the letter, and in every colour, each word after the right words before; and of
    yes or no where that was asked.
    """
    right = outputs.logits.argmax(-1) == batch.labels
    colour, after = batch.weights > 1, batch.labels < 0
    described = ~batch.verifies
    verified = {"verified": float(right[batch.verifies, 0].float().mean())} if batch.verifies.any() else {}
    return verified | {
        "exact": float((right | after).all(1)[described].float().mean()),
        "colours": float((right | ~colour).all(1)[described].float().mean()),
        "rest": float((right | colour | after).all(1)[described].float().mean()),
    }
