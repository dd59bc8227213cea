"""The body that diffusions of vectors share: noise the free vectors, read the network's estimate, measure,
reverse.

With a network's estimate e^ of e at z_t, the divergence of the model's bridges q(z_s | z_t, e^) from the true
ones is a squared error, weighted as the clock says (`snr_weight`): its sum over T steps or its integral over
time bounds, with the ends, -log p of whatever is decoded from z_0. Training minimizes that (`Exact`) or the
plain squared error of what the network predicts (`Simple`, Ho et al. 2020, arXiv:2006.11239).

Self-conditioning (Chen et al. 2022, arXiv:2208.04202): the network also reads an estimate of e. Training
shows it that of a first pass, without gradient, in a share of the rows and zeros in the others; sampling that
of the step before. The bound evaluates both passes at one z_t: it scores the Markov model whose sampler
evaluates twice a step.

A family is a subclass that says where vectors come from and what is decoded from them.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor

from discdiff.networks import AnyBackbone, TransformerNetwork
from discdiff.networks.embedding import VectorEmbedding
from discdiff.noise import Noise, Stream
from discdiff.objectives import AnyClock, Continuous
from discdiff.predictions import AnyPrediction, PredictX0
from discdiff.processes.gaussian import VariancePreserving, standard
from discdiff.types import Condition, Network, Value, VectorCanvas

Vectors = Float[Tensor, "B L E"]
Times = Float64[Tensor, "B _"]


class Simple(Value, frozen=True):
    """Training minimizes the squared error of what is predicted, all times alike."""

    kind: Literal["simple"] = "simple"

    def times(self, clock: AnyClock, process: VariancePreserving, u: Times) -> tuple[Times, Times]:
        """Times to train at, and dt/du: even ones."""
        return u, torch.ones_like(u)

    def weight(self, clock: AnyClock, process: VariancePreserving, t: Times) -> Times:
        """What a squared error at time t counts."""
        return torch.ones_like(t)

    def error(
        self,
        prediction: AnyPrediction,
        process: VariancePreserving,
        raw: Vectors,
        e: Vectors,
        eps: Vectors,
        z: Vectors,
        t: Times,
    ) -> Vectors:
        """What is made small: the network's output less what it should be."""
        return raw - prediction.target(process, e, eps, t)


class Exact(Value, frozen=True):
    """Training minimizes the bound itself."""

    kind: Literal["exact"] = "exact"

    def times(self, clock: AnyClock, process: VariancePreserving, u: Times) -> tuple[Times, Times]:
        """Times to train at, and dt/du: those of the bound."""
        return clock.spread(process, u)

    def weight(self, clock: AnyClock, process: VariancePreserving, t: Times) -> Times:
        """What a squared error at time t counts."""
        return clock.snr_weight(process, t)

    def error(
        self,
        prediction: AnyPrediction,
        process: VariancePreserving,
        raw: Vectors,
        e: Vectors,
        eps: Vectors,
        z: Vectors,
        t: Times,
    ) -> Vectors:
        """What is made small: the vectors less their estimate."""
        return e - prediction.clean(process, raw, z, t)


class SelfConditioning(Value, frozen=True):
    """The network reads an estimate as well; training shows it one in the share `rate` of the rows."""

    kind: Literal["self_conditioning"] = "self_conditioning"
    rate: float = Field(default=0.5, gt=0, le=1)


class GaussianDiffusion(Value, frozen=True):
    """A diffusion of vectors: its noise, what the network predicts, the bound's clock, what training
    minimizes.
    """

    process: VariancePreserving = VariancePreserving()
    prediction: AnyPrediction = PredictX0()
    clock: AnyClock = Continuous()
    weighting: Annotated[Simple | Exact, Field(discriminator="kind")] = Simple()
    self_conditioning: SelfConditioning | None = None

    def denoiser(self, backbone: AnyBackbone, size: int, vocab: int) -> TransformerNetwork:
        """A network that reads vectors of `size` numbers, and estimates of them if it is to, and answers in
        kind.
        """
        read = size if self.self_conditioning is None else 2 * size
        embedding = VectorEmbedding(read, backbone.width)
        return backbone.build(inputs=read, outputs=size, embedding=embedding, vocab=vocab)

    def raw(
        self, net: Network, z: Vectors, t: Times, before: Vectors | None, condition: Condition
    ) -> Vectors:
        """The network's output at z_t; `before` is the estimate it may read, None for none. `-> [B, L, E]`"""
        if self.self_conditioning is not None and before is not None:
            z = torch.cat([z, before.to(z)], dim=-1)
        return net.head(net.trunk(z, t, condition))

    def estimate(
        self, net: Network, z: Vectors, t: Times, before: Vectors | None, condition: Condition
    ) -> Vectors:
        """The network's estimate of e at z_t. `-> [B, L, E]`"""
        return self.prediction.clean(self.process, self.raw(net, z, t, before, condition), z, t)

    def vector_loss(
        self, net: Network, canvas: VectorCanvas, u: Float64[Tensor, "B 1"], noise: Noise
    ) -> Float[Tensor, "B"]:
        """What training minimizes, from one u ~ U(0, 1) per row, summed over free positions. `[B, L, E] ->
        [B]`
        """
        condition, weighting = canvas.condition, self.weighting
        t, pace = weighting.times(self.clock, self.process, u)
        t = self.clock.snap(t)
        z, times, eps = self.noised(canvas, t, noise)
        before = None
        if self.self_conditioning is not None:
            with torch.no_grad():
                first = self.estimate(net, z, times, None, condition)
            shown = noise.uniform(Stream.SELF_CONDITION, 1, 1) < self.self_conditioning.rate
            before = torch.where(shown, first, 0)
        raw = self.raw(net, z, times, before, condition)
        error = weighting.error(self.prediction, self.process, raw, canvas.vectors, eps, z, times)
        nats = self._weighted(canvas, error, weighting.weight(self.clock, self.process, t))
        return nats * pace[:, 0].to(nats)

    def vector_density(
        self, net: Network, canvas: VectorCanvas, t: Float64[Tensor, "B 1"], noise: Noise
    ) -> Float[Tensor, "B"]:
        """The bound's integrand at time t, summed over free positions. `[B, L, E] -> [B]` nats per unit
        time
        """
        t = self.clock.snap(t)
        z, times, _ = self.noised(canvas, t, noise)
        before = None
        if self.self_conditioning is not None:
            before = self.estimate(net, z, times, None, canvas.condition)
        error = canvas.vectors - self.estimate(net, z, times, before, canvas.condition)
        return self._weighted(canvas, error, self.clock.snr_weight(self.process, t))

    def vector_bound(
        self, net: Network, canvas: VectorCanvas, u: Float64[Tensor, "B 1"], noise: Noise
    ) -> Float[Tensor, "B"]:
        """The bound's integral over time from one u ~ U(0, 1) per row, at times at which it varies little.
        `[B, L, E] -> [B]` nats
        """
        t, pace = self.clock.spread(self.process, u)
        nats = self.vector_density(net, canvas, t, noise)
        return nats * pace[:, 0].to(nats)

    def vector_prior(self, canvas: VectorCanvas) -> Float[Tensor, "B"]:
        """The bound's prior term, KL(q(z_1 | e) || N(0, I)) over free positions. `[B, L, E] -> [B]` nats"""
        return (self.process.prior_divergence(canvas.vectors) * canvas.free).sum(-1)

    def noised(
        self, canvas: VectorCanvas, t: Float64[Tensor, "B 1"], noise: Noise
    ) -> tuple[Vectors, Times, Vectors]:
        """z_t, the times of its positions, and the noise in it; context is clean, and at time 0."""
        eps = standard(Stream.CORRUPT, canvas.vectors, noise)
        z = self.process.mixed(canvas.vectors, eps, t)
        if bool(canvas.free.all()):
            return z, t, eps
        return torch.where(canvas.free[..., None], z, canvas.vectors), torch.where(canvas.free, t, 0), eps

    def _weighted(
        self, canvas: VectorCanvas, error: Vectors, weight: Float64[Tensor, "B 1"]
    ) -> Float[Tensor, "B"]:
        """The squared errors of free positions, weighted."""
        nats = (error.square().sum(-1) * canvas.free).sum(-1)
        return nats * weight[:, 0].to(nats)
