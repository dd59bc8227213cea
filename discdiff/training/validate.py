"""What is measured of held-out rows while training, the bound above all: the same rows and noise every time,
the averaged weights.

Its randomness has its own seed, so looking often or never leaves the training noise as it was. The standard
error is that of a ratio of sums over sequences; see `discdiff.evaluation.estimate`.
"""

import math

import torch
from torch import Tensor

from discdiff.noise import Noise
from discdiff.training.loss import Loss, Rows
from discdiff.training.parallel import World
from discdiff.training.recipe import Recipe

SEED_OFFSET = 0x76616C  # validation's noise is that of another seed than training's


@torch.no_grad()
def validate(loss: Loss, rows: Rows, recipe: Recipe, world: World) -> dict[str, float]:
    """The bound in nats per token, or what else the method measures, and its standard error over the first
    rows; what nothing counts for is left out. All ranks call it.
    """
    count = min(recipe.validate_rows, rows.rows_per_epoch)
    share = math.ceil(count / world.size)
    micro = recipe.share(world.size)[1]
    first = world.rank * share
    canvas = rows.read(first, share).to(world.device)
    # Ranks must run equally many forwards; rows past the end are read again and count for nothing.
    counts = (torch.arange(first, first + share, device=world.device) < count).double()
    was_training = loss.training
    loss.eval()
    pieces = [canvas.narrow(start, min(start + micro, share)) for start in range(0, share, micro)]
    noise = Noise(recipe.seed + SEED_OFFSET)
    parts = [loss.measures(piece, noise.on(piece.rows)) for piece in pieces]
    loss.train(was_training)
    found: dict[str, float] = {}
    for name in parts[0]:
        a, b = (
            torch.cat(sums).double() * counts for sums in zip(*(part[name] for part in parts), strict=True)
        )
        found |= _estimate(world.sum(_moments(a, b)), name)
    return found


def _moments(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([a.sum(), b.sum(), (a * a).sum(), (a * b).sum(), (b * b).sum(), (b > 0).sum()])


def _estimate(moments: Tensor, name: str) -> dict[str, float]:
    a, b, aa, ab, bb, count = moments.tolist()
    if not b:
        return {}
    ratio = a / b
    spread = max(0.0, aa - 2 * ratio * ab + ratio**2 * bb)
    error = math.sqrt(count / max(1, count - 1) * spread) / b
    return {name: ratio, f"{name}_se": error}
