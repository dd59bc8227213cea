"""Labels that are dropped in training, so that one network learns the law with them and without."""

from dataclasses import replace

import torch

from discdiff.noise import Noise, Stream
from discdiff.types import Canvas


def drop_labels(canvas: Canvas, noise: Noise, share: float) -> Canvas:
    """The canvas with a share of its rows' labels set to none (-1): what classifier-free guidance needs."""
    labels = canvas.condition.labels
    if labels is None or not share:
        return canvas
    dropped = noise.on(canvas.rows).uniform(Stream.DROP_LABEL, 1)[:, 0] < share
    condition = replace(canvas.condition, labels=torch.where(dropped, -1, labels))
    return replace(canvas, condition=condition)
