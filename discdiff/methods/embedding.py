"""Diffusion of token embeddings (Diffusion-LM). Li et al. 2022, arXiv:2205.14217.

Tokens become vectors e(x), one-hot or a learned table, which Gaussian noise diffuses, from
z_0 ~ N(sqrt(alpha_0) e(x), beta_0) to z_1; a network takes z_1 ~ N(0, I) back to z_0, and rounding,
p(x | z_0), to tokens. With q(z_s | z_t, x) the bridges of the noise and p(z_s | z_t) those to the network's
estimate,

    -log p(x)  <=  KL(q(z_1 | x) || N(0, I))
                   +  sum over steps of E KL(q(z_s | z_t, x) || p(z_s | z_t))
                   +  E -log p(x | z_0),

or with an integral over time in place of the sum (`clock`). This is the paper's end-to-end bound: its
log q(z_0 | x) - log p(z_0 | z_1/T) is the last of the steps. The paper conditions the bridges on a drawn z_0,
here they are on x itself, which is as large on average and varies less. Training minimizes the paper's simple
loss, |e(x) - estimate|^2 with the prior and the rounding term, from which the table learns as well.

In the paper the network predicts e (x0), alpha is 1 - sqrt(t), beta_0 is 0.01 and samples are rounded by the
argmax: the defaults. A sampler without filters draws from p(x | z_0), the model that the bound scores.
One-hot vectors with `Nearest` rounding have no learned part but the denoising network.
"""

from functools import partial
from typing import ClassVar, Literal, cast

import torch
from jaxtyping import Bool, Float, Float64, Int64
from pydantic import model_validator
from torch import Tensor

from discdiff.chunks import in_chunks, per_row
from discdiff.methods.gaussian_diffusion import GaussianDiffusion
from discdiff.networks import AnyBackbone
from discdiff.networks.encoders import AnyEncoder, AnyRounding, EmbeddingNetwork, Table, Tied
from discdiff.noise import Noise, Stream, categorical
from discdiff.processes.gaussian import standard
from discdiff.samplers import AnySampler, GaussianSampler, Greedy
from discdiff.samplers.allowed import check_allowed
from discdiff.samplers.compatible import check
from discdiff.samplers.filters import apply
from discdiff.samplers.gaussian import Denoiser, unwatched
from discdiff.samplers.microbatch import fixed
from discdiff.samplers.trace import Observer, nobody
from discdiff.types import Canvas, DiscdiffError, VectorCanvas

_CHUNK = 2**25
"""Logits held at once."""
_ALIKE = 64
"""Positions decoded at once where rounding must not depend on the batch."""


class Embedding(GaussianDiffusion, frozen=True):
    """A Gaussian diffusion of the vectors of tokens, and rounding."""

    kind: Literal["embedding"] = "embedding"
    tabled: ClassVar[bool] = True
    """There is a vector for each token: estimates may be clamped to it."""
    encoder: AnyEncoder = Table()
    rounding: AnyRounding = Tied()

    @model_validator(mode="after")
    def _has_densities(self) -> "Embedding":
        start, stop = self.process.ends
        if start == 1:
            raise DiscdiffError(
                "z_0 has no noise, so no density, and the bound would be infinite: "
                "give the process a start above 0, as 1e-4"
            )
        if stop == 0 and self.prediction.needs_signal:
            raise DiscdiffError(
                "the clean vector can't be read off the noise where no signal is left, at t = 1: "
                "give the process a stop below 1, as 0.999, or predict x0 or velocity"
            )
        return self

    def network(self, backbone: AnyBackbone, vocab: int) -> EmbeddingNetwork:
        """A network that reads and writes vectors, with the encoder and the rounding."""
        net = self.denoiser(backbone, self.encoder.size(vocab), vocab)
        rounding = self.rounding.build(vocab, self.process)
        return EmbeddingNetwork(vocab, net.trunk, net.head, self.encoder.build(vocab), rounding)

    def default_sampler(self, steps: int) -> GaussianSampler:
        """DDPM in so many steps, rounded by the argmax."""
        return GaussianSampler(steps=steps, filters=(Greedy(),))

    def loss(self, net: EmbeddingNetwork, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """What training minimizes, at one time per row. `-> [B]` nats"""
        noise, vectors = noise.on(canvas.rows), _vectors(net, canvas)
        return self.vector_loss(net, vectors, noise.time(), noise) + self._ends(net, canvas, vectors, noise)

    def bound(self, net: EmbeddingNetwork, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """An unbiased estimate, from one time per row, of an upper bound on -log p. `-> [B]` nats

        With a continuous clock strata of time are even in log beta.
        """
        noise, vectors = noise.on(canvas.rows), _vectors(net, canvas)
        return self.vector_bound(net, vectors, noise.time(), noise) + self._ends(net, canvas, vectors, noise)

    def density_at(
        self, net: EmbeddingNetwork, canvas: Canvas, t: Float64[Tensor, "B 1"], noise: Noise
    ) -> Float[Tensor, "B"]:
        """The bound's integrand at given times, summed over free positions. `-> [B]` nats per unit time"""
        return self.vector_density(net, _vectors(net, canvas), t, noise.on(canvas.rows))

    def ends(self, net: EmbeddingNetwork, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """The prior and the rounding term. `-> [B]` nats"""
        return self._ends(net, canvas, _vectors(net, canvas), noise.on(canvas.rows))

    def check_canvas(self, canvas: Canvas) -> None:
        """Raises DiscdiffError for a canvas that can't be filled."""
        check_allowed(canvas)

    @torch.no_grad()
    def sample(
        self,
        net: EmbeddingNetwork,
        canvas: Canvas,
        sampler: AnySampler,
        noise: Noise,
        observe: Observer = nobody,
    ) -> Int64[Tensor, "B L"]:
        """Fill the free positions of a canvas; `observe` is told the tokens that each state rounds to. `->
        [B, L]`
        """
        check(self, sampler)
        self.check_canvas(canvas)
        chosen, noise = cast(GaussianSampler, sampler), noise.on(canvas.rows)
        free, clean = canvas.free, net.encoder(canvas.tokens)

        def watch(t: float, z: Tensor) -> None:
            if t > 0:
                observe(t, torch.where(free, net.log_tokens(z).argmax(-1), canvas.tokens))

        denoiser = Denoiser(
            self.process, partial(self.estimate, net), clean, free, canvas.condition, net.nearest
        )
        z = chosen.run(denoiser, noise, unwatched if observe is nobody else watch)
        tokens = _round(net, canvas, chosen, z, noise.at(noise.step + chosen.steps))
        observe(0.0, tokens)
        return tokens

    def _ends(
        self, net: EmbeddingNetwork, canvas: Canvas, vectors: VectorCanvas, noise: Noise
    ) -> Float[Tensor, "B"]:
        e = vectors.vectors
        zero = torch.zeros(1, 1, dtype=torch.float64, device=e.device)
        z = self.process.mixed(e, standard(Stream.EMBEDDING, e, noise), zero)
        where = canvas.free.nonzero(as_tuple=True)
        nats = _rounding_nats(net, z[where], canvas.tokens[where])
        return self.vector_prior(vectors) + per_row(nats, where, canvas.shape)


def _vectors(net: EmbeddingNetwork, canvas: Canvas) -> VectorCanvas:
    return VectorCanvas(net.encoder(canvas.tokens), canvas.free, canvas.condition)


def _rounding_nats(
    net: EmbeddingNetwork, z: Float[Tensor, "N E"], tokens: Int64[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """-log p(x | z_0). `[N, E] -> [N]`"""

    def nats(z: Tensor, tokens: Tensor) -> Tensor:
        return -net.log_tokens(z).gather(-1, tokens[:, None])[:, 0]

    return in_chunks(nats, net.vocab, z, tokens)


def _round(
    net: EmbeddingNetwork, canvas: Canvas, sampler: GaussianSampler, z: Tensor, noise: Noise
) -> Int64[Tensor, "B L"]:
    """Draw the free tokens from p(x | z_0), within what is allowed. `[B, L, E] -> [B, L]`"""
    where = canvas.free.nonzero(as_tuple=True)
    u = noise.uniform(Stream.STEP_VALUE, canvas.shape[1])[where]

    def draw(z: Tensor, u: Tensor, *allowed: Bool[Tensor, "N V"]) -> Tensor:
        law = net.log_tokens(z)
        law = law.masked_fill(~allowed[0], -torch.inf) if allowed else law
        return categorical(apply(sampler.filters, law), u)

    allowed = () if canvas.allowed is None else (canvas.allowed[where],)
    size = max(1, _CHUNK // net.vocab) if sampler.microbatch is None else _ALIKE
    drawn = fixed(draw, min(size, max(_ALIKE, len(u))), z[where], u, *allowed)
    return canvas.tokens.index_put(where, drawn)
