"""A classifier of noisy sequences, p(label | x_t): not a generative model, but what leads one to a class.

With t ~ U(0, 1) and x_t ~ q_t(. | x_0) it is trained by

    -log p(label | x_t, t),

whose mean is no less than the conditional entropy of the label given x_t and t, and equal to it for Bayes'
rule alone. Guidance of discrete diffusion by such a classifier: Schiff et al. 2024, arXiv:2412.10193
(`discdiff.samplers.guidance`). It must have seen the noise of the diffusion that it leads.

Labels are what is learned, so they are never hidden from training, and a row without one (-1) counts for
nothing. Losses are nats per row here, not per token.
"""

from typing import Annotated, ClassVar, Literal, NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from pydantic import Field
from torch import Tensor

from discdiff.networks import AnyBackbone
from discdiff.networks.classifier import ClassifierNetwork, Classifies
from discdiff.noise import Noise
from discdiff.processes import Mask, Uniform
from discdiff.types import Canvas, DiscdiffError, Value

_BANDS = 4
"""Parts of the unit of time that validation reports apart."""


class Classifier(Value, frozen=True):
    """A classifier of sequences under a process, into as many classes as the backbone's `labels`."""

    kind: Literal["classifier"] = "classifier"
    process: Annotated[Mask | Uniform, Field(discriminator="kind")] = Mask()
    unscored: ClassVar[str] = "a classifier gives texts no probability: it leads a diffusion to a class."

    def network(self, backbone: AnyBackbone, vocab: int) -> ClassifierNetwork:
        """The backbone, blind to labels, with a head of its classes. Raises DiscdiffError for fewer than
        two.
        """
        if backbone.labels < 2:
            raise DiscdiffError(
                f"a classifier tells classes apart and the backbone knows {backbone.labels}: "
                "set the backbone's labels to the number of classes, two or more"
            )
        return ClassifierNetwork(backbone, self.process.states(vocab), vocab)

    def default_sampler(self, steps: int) -> NoReturn:
        """A classifier is not drawn from. Raises DiscdiffError."""
        raise _generates_nothing()

    def sample(self, net: Classifies, canvas: Canvas, sampler: object, noise: Noise) -> NoReturn:
        """A classifier is not drawn from. Raises DiscdiffError."""
        raise _generates_nothing()

    def loss(self, net: Classifies, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """The cross-entropy of the label given the noisy row, at one time per row. `-> [B]` nats"""
        noise = noise.on(canvas.rows)
        return self.loss_at(net, canvas, noise.time(), noise)

    def loss_at(
        self, net: Classifies, canvas: Canvas, t: Float64[Tensor, "B 1"], noise: Noise
    ) -> Float[Tensor, "B"]:
        """The cross-entropy of the label at given times, zero for a row without one. `-> [B]` nats"""
        return _nats(self._logits(net, canvas, t, noise.on(canvas.rows)), _labels(canvas))

    def units(self, canvas: Canvas) -> Bool[Tensor, "B"]:
        """What losses are divided by: the rows that have a label. `-> [B]`"""
        return _labels(canvas) >= 0

    def measures(self, net: Classifies, canvas: Canvas, noise: Noise) -> dict[str, tuple[Tensor, Tensor]]:
        """Cross-entropy in nats and accuracy, over all times and over each quarter of them.

        A sum for each row, and what it is out of. `-> {name: ([B], [B])}`
        """
        noise = noise.on(canvas.rows)
        t, labels = noise.time(), _labels(canvas)
        logits, known = self._logits(net, canvas, t, noise), labels >= 0
        found = {"cross_entropy": _nats(logits, labels), "accuracy": logits.argmax(-1) == labels}
        sums = {name: (value, known) for name, value in found.items()}
        for band in range(_BANDS):
            low, high = band / _BANDS, (band + 1) / _BANDS
            here = (t[:, 0] >= low) & (t[:, 0] < high)
            part = {f"{name}_t{low:.2f}-{high:.2f}": value * here for name, value in found.items()}
            sums |= {name: (value, known & here) for name, value in part.items()}
        return sums

    def _logits(
        self, net: Classifies, canvas: Canvas, t: Float64[Tensor, "B 1"], noise: Noise
    ) -> Float[Tensor, "B C"]:
        """The classes of the noisy row, as a sampler shows it: unless noise masks, context is at time 0."""
        x_t = self.process.corrupt(canvas.tokens, t, net.vocab, noise)
        x_t = torch.where(canvas.free, x_t, canvas.tokens)
        if not isinstance(self.process, Mask):
            t = torch.where(canvas.free, t, 0)
        return net(x_t, t, canvas.condition)


def _labels(canvas: Canvas) -> Int64[Tensor, "B"]:
    if canvas.condition.labels is None:
        raise DiscdiffError(
            "a classifier learns the classes of rows and these rows have none: train on stores that are "
            "classes, or set labels in the canvas's condition"
        )
    return canvas.condition.labels


def _nats(logits: Float[Tensor, "B C"], labels: Int64[Tensor, "B"]) -> Float[Tensor, "B"]:
    return F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")


def _generates_nothing() -> DiscdiffError:
    return DiscdiffError(
        "a classifier generates nothing by itself: draw from a diffusion of the same noise, with "
        "classifier_based guidance and this as its classifier"
    )
