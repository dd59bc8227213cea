"""Embeddings of tokens, times and class labels."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

FREQUENCIES = 64
MAX_PERIOD = 10_000.0
TIME_SCALE = 1_000.0  # times in [0, 1] are spread over the sinusoids' range as steps of a thousand would be


class TokenEmbedding(nn.Embedding):
    """Ids, or a distribution over them, to vectors: `[B, L]` or `[B, L, K] -> [B, L, D]`."""

    def __init__(self, symbols: int, width: int):
        super().__init__(symbols, width)
        nn.init.normal_(self.weight, std=1 / math.sqrt(width))

    def forward(self, input: Tensor) -> Float[Tensor, "B L D"]:
        return input @ self.weight if input.is_floating_point() else super().forward(input)


class TimeEmbedding(nn.Module):
    """Sinusoidal features of a time, then a small perceptron: `[B, 1]` or `[B, L] -> [B, 1 or L, C]`."""

    def __init__(self, width: int):
        super().__init__()
        self.expand = nn.Linear(2 * FREQUENCIES, width)
        self.mix = nn.Linear(width, width)

    def forward(self, t: Float[Tensor, "B _"]) -> Float[Tensor, "B _ C"]:
        exponent = torch.arange(FREQUENCIES, device=t.device, dtype=torch.float64) / FREQUENCIES
        angles = TIME_SCALE * t.double()[..., None] * MAX_PERIOD**-exponent
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mix(F.silu(self.expand(features.to(self.expand.weight.dtype))))


class ClassEmbedding(nn.Module):
    """A vector per class and one for "none" (label -1): `[B] -> [B, C]`."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.table.weight, std=1 / math.sqrt(width))

    def forward(self, labels: Int[Tensor, "B"] | None, rows: int) -> Float[Tensor, "B C"]:
        if labels is None:
            labels = torch.full((rows,), -1, device=self.table.weight.device)
        return self.table(torch.where(labels < 0, self.classes, labels))


class VectorEmbedding(nn.Linear):
    """Vectors to vectors of the trunk's width: `[B, L, E] -> [B, L, D]`. Numbers that are missing are
    zeros.
    """

    def __init__(self, size: int, width: int):
        super().__init__(size, width, bias=False)
        nn.init.normal_(self.weight, std=1 / math.sqrt(size))

    def forward(self, input: Tensor) -> Float[Tensor, "B L D"]:
        missing = self.in_features - input.shape[-1]
        return super().forward(F.pad(input, (0, missing)) if missing > 0 else input)
