"""How a network is trained: everything that changes the weights that come out, and how often to look."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from discdiff.types import DiscdiffError, Value


class Constant(Value, frozen=True):
    """The learning rate stays."""

    kind: Literal["constant"] = "constant"

    def factor(self, progress: float) -> float:
        return 1.0


class Cosine(Value, frozen=True):
    """The learning rate falls along half a cosine to `final` of itself."""

    kind: Literal["cosine"] = "cosine"
    final: float = Field(default=0.1, ge=0, le=1)

    def factor(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


AnyDecay = Annotated[Constant | Cosine, Field(discriminator="kind")]


class Recipe(Value, frozen=True):
    """Steps, batch and optimizer.

    `batch` is global: rows a step over all workers. `microbatch` is rows a forward pass, None for a
    worker's whole share. `warmup` and the `*_every` are in steps; `validate_rows` in sequences; `clip`
    bounds the gradient's norm; `ema` is the decay of the averaged weights. `label_dropout` is the share of
    rows whose class, if rows have any, is hidden in training. Weights and optimizer stay in float32;
    `precision` is what the network computes in up to the logits.
    """

    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=32, ge=1)
    microbatch: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    warmup: int = Field(default=0, ge=0)
    decay: AnyDecay = Constant()
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.999, ge=0, lt=1)
    label_dropout: float = Field(default=0.1, ge=0, le=1)
    log_every: int = Field(default=10, ge=1)
    validate_every: int = Field(default=500, ge=1)
    validate_rows: int = Field(default=256, ge=2)
    checkpoint_every: int = Field(default=500, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.warmup >= self.steps and self.warmup > 0:
            raise DiscdiffError(
                f"a warmup of {self.warmup} steps in a run of {self.steps}: "
                "take fewer steps of warmup than of training"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise DiscdiffError(f"betas {self.betas} were given: each lies in [0, 1)")
        return self

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ...: a linear warmup, then the decay."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * self.decay.factor(min(1.0, progress))

    def share(self, workers: int) -> tuple[int, int]:
        """Rows a step and rows a forward pass of each worker.

        Raises `DiscdiffError` where they do not divide.
        """
        if self.batch % workers:
            raise DiscdiffError(
                f"a batch of {self.batch} rows can't be shared by {workers} workers: "
                f"take a batch that is a multiple of {workers}, or other workers"
            )
        rows = self.batch // workers
        micro = rows if self.microbatch is None else self.microbatch
        if rows % micro:
            raise DiscdiffError(
                f"a microbatch of {micro} rows doesn't divide the {rows} rows that each of {workers} workers "
                f"has of the batch of {self.batch}: take a divisor of {rows}"
            )
        return rows, micro

    def due(self, every: int, step: int) -> bool:
        """Whether something done every so often is due once `step` steps are done; always at the end."""
        return step % every == 0 or step == self.steps
