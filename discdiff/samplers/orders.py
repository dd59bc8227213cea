"""Orders in which mask noise is undone: which masked tokens a step fills.

An order replaces "each with the same probability" by a choice. As many are chosen as the schedule expects of
the step (`EntropyBudget` decides itself), and all are drawn from one evaluation. A choice reads the network's
laws, never the tokens that would be drawn, so one token a step is exact in any order.
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from pydantic import Field
from torch import Tensor

from discdiff.noise import Noise, Stream
from discdiff.types import Value

if TYPE_CHECKING:
    from discdiff.samplers.predictor import Predictor

_NOTHING = -1000.0
"""A log-probability whose exponential is zero in any precision, and times it zero."""


class Random(Value, frozen=True):
    """Any masked tokens alike."""

    kind: Literal["random"] = "random"

    def choose(
        self, predictor: "Predictor", masked: Bool[Tensor, "B L"], count: Int64[Tensor, "B"], noise: Noise
    ) -> Bool[Tensor, "B L"]:
        """The tokens to fill: `count` of the masked ones in each row. `-> [B, L]`"""
        score = noise.uniform(Stream.ORDER, masked.shape[1]).masked_fill(~masked, -torch.inf)
        return rank(score) < count[:, None]


class _ByLaw(Value, frozen=True):
    """The tokens whose laws score highest; the first of equals."""

    @abstractmethod
    def score(self, logits: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
        """How early a position is filled, of its law up to a constant. `[..., V] -> [...]`"""

    def choose(
        self, predictor: "Predictor", masked: Bool[Tensor, "B L"], count: Int64[Tensor, "B"], noise: Noise
    ) -> Bool[Tensor, "B L"]:
        """The tokens to fill: `count` of the masked ones in each row. `-> [B, L]`"""
        return rank(scores(self, predictor, masked)) < count[:, None]


class Confidence(_ByLaw, frozen=True):
    """The most certain first: the highest probability of a token (MaskGIT, arXiv:2202.04200, without its
    noise).
    """

    kind: Literal["confidence"] = "confidence"

    def score(self, logits: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
        """The highest log-probability. `[..., V] -> [...]`"""
        return logits.amax(-1) - logits.logsumexp(-1)


class Margin(_ByLaw, frozen=True):
    """The widest margin between the two most probable tokens first (arXiv:2502.06768)."""

    kind: Literal["margin"] = "margin"

    def score(self, logits: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
        """The difference of the two highest probabilities. `[..., V] -> [...]`"""
        highest = logits.topk(min(2, logits.shape[-1]), dim=-1).values
        p = (highest - logits.logsumexp(-1, keepdim=True)).exp()
        return p[..., 0] - p[..., 1:].sum(-1)


class Entropy(_ByLaw, frozen=True):
    """The lowest entropy first."""

    kind: Literal["entropy"] = "entropy"

    def score(self, logits: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
        """The negative entropy, in nats. `[..., V] -> [...]`

        With z the logits below the highest and Z = sum of exp z it is sum of z exp z / Z, less log Z.
        """
        z = (logits - logits.amax(-1, keepdim=True)).clamp_min_(_NOTHING)
        weight = z.exp()
        total = weight.sum(-1)
        return z.mul_(weight).sum(-1) / total - total.log()


class EntropyBudget(Value, frozen=True):
    """As many tokens at once as the budget of nats allows, the lowest entropy first: entropies of the chosen
    add up, without the highest of them, to `nats` at most (arXiv:2505.24857).

    One token is always chosen, so a budget of nothing is exact wherever laws are not certain. The number of
    evaluations is up to the laws; `steps` and the grid play no part.
    """

    kind: Literal["entropy_budget"] = "entropy_budget"
    nats: float = Field(default=0.1, ge=0)

    def choose(
        self, predictor: "Predictor", masked: Bool[Tensor, "B L"], count: Int64[Tensor, "B"], noise: Noise
    ) -> Bool[Tensor, "B L"]:
        """The tokens to fill, whatever the count. `-> [B, L]`"""
        score = scores(Entropy(), predictor, masked)
        ordered = (-score).clamp_min(0).sort(dim=-1, stable=True).values
        spent = torch.where(ordered < torch.inf, ordered, 0).cumsum(-1) - ordered
        allowed = ((spent <= self.nats) & (ordered < torch.inf)).sum(-1)
        return rank(score) < allowed[:, None]


AnyOrder = Annotated[Random | Confidence | Margin | Entropy | EntropyBudget, Field(discriminator="kind")]


def rank(score: Float[Tensor, "B L"]) -> Int64[Tensor, "B L"]:
    """0 for the highest score of a row, 1 for the next; the first of equals is higher. `[B, L] -> [B, L]`"""
    order = score.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(score.shape[1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter(-1, order, places)


def scores(order: _ByLaw, predictor: "Predictor", masked: Bool[Tensor, "B L"]) -> Float64[Tensor, "B L"]:
    """The scores of the masked positions, minus infinity elsewhere. `-> [B, L]`"""
    rows, columns = masked.nonzero(as_tuple=True)
    where = (rows, columns)
    values = predictor.each(
        where,
        lambda dynamics, raw, x, t, _: order.score(predictor.log_token(dynamics, raw, x, t)),
    )
    empty = torch.full(masked.shape, -torch.inf, dtype=torch.float64, device=masked.device)
    return empty.index_put(where, values.double())
