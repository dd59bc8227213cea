"""Guidance towards a class, for mask and uniform noise (Schiff et al. 2024, arXiv:2412.10193).

`ClassifierFree` combines the laws that one network states with and without the label,

    w(x)  proportional to  w(x | label)^strength  w(x)^(1 - strength),

on the leave-one-out law of the clean token, before filters and before the bridge. There it is exact where
positions are independent: the sampler then draws from the product of the combined laws, which the same
combination of the bridges (the paper's, for uniform noise) does not. With mask noise the rate of unmasking
stays that of the schedule. Strength 0 is unguided, 1 the class's own law.

`ClassifierBased` asks a classifier of noisy sequences, p(label | x_t), how much likelier the label becomes if
a token of x_t changes, and weighs each change by that ratio to the power of the strength: with strength 1,
the true classifier and small steps the law is that of the class. With mask noise the change is the token that
a mask gives way to, and the rate of unmasking stays that of the schedule. `discdiff.methods.Classifier` is
such a classifier, trained as every family is.
"""

from dataclasses import replace
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from discdiff.samplers.microbatch import fixed
from discdiff.types import Canvas, Condition, DiscdiffError, Network, Value

_CHUNK = 2**22
"""Tokens that a classifier reads at once."""


class ClassifierFree(Value, frozen=True):
    """Two evaluations a step, with the label and without it; one where strength is 0 or 1.

    The network must have been trained with labels, some of them dropped.
    """

    kind: Literal["classifier_free"] = "classifier_free"
    strength: float = Field(default=1.0, ge=0)

    def conditions(self, condition: Condition) -> list[Condition]:
        """What the network is shown, once for each evaluation."""
        without = replace(condition, labels=None)
        return {0.0: [without], 1.0: [condition]}.get(self.strength, [condition, without])

    def combine(self, laws: list[Float[Tensor, "*n V"]]) -> Float[Tensor, "*n V"]:
        """One law of those that the conditions gave, unnormalized. `[..., V] -> [..., V]`"""
        if len(laws) == 1:
            return laws[0]
        given, free = laws
        ratio = torch.where((given > -torch.inf) & (free > -torch.inf), given - free, 0)
        return given + (self.strength - 1) * ratio


class ClassifierBased(Value, frozen=True):
    """One evaluation of the network a step, and the classifier's, which is not counted among evaluations.

    The network is asked without the label. The classifier is asked of every change of every token
    (`changes="all"`, K times as many sequences as tokens that may change), or once, for a first-order
    expansion in the one-hot tokens. A network that has learned to pass over masks is nearly flat there, so
    with mask noise the expansion leads less than with uniform noise.
    """

    kind: Literal["classifier_based"] = "classifier_based"
    strength: float = Field(default=1.0, ge=0)
    changes: Literal["all", "first_order"] = "all"


AnyGuidance = Annotated[ClassifierFree | ClassifierBased, Field(discriminator="kind")]


@runtime_checkable
class Classifier(Protocol):
    """log p(label | x_t) up to a constant: `(x [B, L] or its one-hot [B, L, K], t [B, 1]) -> [B, C]`."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor: ...


@runtime_checkable
class Embedded(Classifier, Protocol):
    """A classifier that states its gradient for the embeddings of tokens: fewer numbers than for one-hots.

    `table` `[K, D]` has the embeddings; `slope` is the gradient of log p(label | x_t). `[B, L] -> [B, L, D]`
    """

    @property
    def table(self) -> Tensor: ...
    def slope(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor: ...


class Guided(nn.Module):
    """A network with the classifier that `ClassifierBased` guidance asks."""

    def __init__(self, network: Network, classifier: nn.Module):
        super().__init__()
        self.vocab = network.vocab
        self.trunk = network.trunk
        self.head = network.head
        self.classifier = classifier

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.head(self.trunk(x, t, condition))


def labels_of(canvas: Canvas) -> Int64[Tensor, "B"]:
    """The labels to guide to. Raises DiscdiffError where there are none."""
    if canvas.condition.labels is None:
        raise DiscdiffError("guidance needs a class for each row: set labels in the canvas's condition")
    return canvas.condition.labels


def log_ratios(
    guidance: ClassifierBased,
    classifier: Classifier,
    canvas: Canvas,
    x: Int64[Tensor, "B L"],
    t: Float[Tensor, "B _"],
    where: tuple[Tensor, Tensor],
    states: int,
    microbatch: int | None = None,
) -> Float[Tensor, "N K"]:
    """strength times log p(label | x changed at a position to y), up to a constant. `-> [N, K]`

    Rows without a label (-1) are not guided. `microbatch`: the classifier reads exactly so many sequences at
    a time.
    """
    labels = labels_of(canvas)
    several = _expanded if guidance.changes == "first_order" else _asked
    ratios = several(classifier, x, t, labels.clamp_min(0), where, states, microbatch)
    return guidance.strength * ratios * (labels[where[0]] >= 0)[:, None]


def _asked(
    classifier: Classifier,
    x: Tensor,
    t: Tensor,
    labels: Tensor,
    where: tuple[Tensor, Tensor],
    states: int,
    microbatch: int | None,
) -> Tensor:
    rows, columns = where
    answers: list[Tensor] = []
    size = max(1, _CHUNK // (states * x.shape[1]))
    for row, column in zip(rows.split(size), columns.split(size), strict=True):
        changed = x[row][:, None].repeat(1, states, 1)
        every = torch.arange(states, device=x.device).expand(len(row), states)
        changed.scatter_(-1, column[:, None, None].expand(-1, states, 1), every[..., None])
        times = t[row].repeat_interleave(states, 0)
        log_p = fixed(classifier, microbatch, changed.flatten(0, 1), times).log_softmax(-1)
        asked = labels[row].repeat_interleave(states)[:, None]
        answers.append(log_p.gather(-1, asked).reshape(-1, states))
    return torch.cat(answers) if answers else t.new_zeros(0, states)


def _expanded(
    classifier: Classifier,
    x: Tensor,
    t: Tensor,
    labels: Tensor,
    where: tuple[Tensor, Tensor],
    states: int,
    microbatch: int | None,
) -> Tensor:
    if isinstance(classifier, Embedded):
        return fixed(classifier.slope, microbatch, x, t, labels)[where] @ classifier.table.detach().T

    def slope(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            tokens = F.one_hot(x, states).to(torch.get_default_dtype()).requires_grad_()
            log_p = classifier(tokens, t).log_softmax(-1).gather(-1, labels[:, None]).sum()
            return torch.autograd.grad(log_p, tokens)[0]

    return fixed(slope, microbatch, x, t, labels)[where]
