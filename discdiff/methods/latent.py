"""Latent diffusion of text: Gaussian diffusion of the latents of an autoencoder that was trained before.

Lovelace et al. 2022, arXiv:2212.09462. The autoencoder is trained first, a run of its own, and frozen; then
the noised latents of texts are denoised, the velocity being predicted (Salimans and Ho 2022,
arXiv:2202.00512) with self-conditioning (Chen et al. 2022, arXiv:2208.04202). To sample, latents are drawn
and each position becomes its likeliest token given all of them. Where the paper bends a pretrained language
model into the autoencoder, whose decoder writes from left to right, this one is trained on the same tokens as
the diffusion, with blocks of the same backbone, and writes all positions at once.

It isn't scored. The encoder is deterministic, so q(z | x) has no density, and the variational bound on
-log p(x), which holds its entropy, is infinite.

Nothing can be given: every latent depends on all of the text, so no prefix fixes any of them. Positions
behind the last free one are padding, which isn't seen.
"""

from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float, Int64
from pydantic import model_validator
from torch import Tensor, nn

from discdiff.methods.autoencoder import Autoencoder
from discdiff.methods.gaussian_diffusion import Exact, GaussianDiffusion, SelfConditioning
from discdiff.networks import AnyBackbone
from discdiff.networks.autoencoder import AutoencoderNetwork, Seen, portions
from discdiff.noise import Noise
from discdiff.predictions import AnyPrediction, PredictVelocity
from discdiff.processes.gaussian import VariancePreserving
from discdiff.samplers import AnySampler, GaussianSampler
from discdiff.samplers.compatible import check
from discdiff.samplers.gaussian import Denoiser, unwatched
from discdiff.samplers.microbatch import fixed
from discdiff.samplers.trace import Observer, nobody
from discdiff.schedules import SquaredCosine
from discdiff.types import Canvas, Condition, DiscdiffError, Network, VectorCanvas


class LatentNetwork(nn.Module):
    """A frozen autoencoder, and the network that denoises its latents."""

    def __init__(self, autoencoder: AutoencoderNetwork, denoiser: nn.Module):
        super().__init__()
        self.vocab = autoencoder.vocab
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.denoiser = denoiser

    def train(self, mode: bool = True) -> "LatentNetwork":
        """Of the denoiser: the autoencoder has no dropout any more."""
        super().train(mode)
        self.autoencoder.eval()
        return self


class Latent(GaussianDiffusion, frozen=True):
    """Diffusion of the latents of `autoencoder`; training starts from a trained one."""

    kind: Literal["latent"] = "latent"
    autoencoder: Autoencoder = Autoencoder()
    process: VariancePreserving = VariancePreserving(schedule=SquaredCosine())
    prediction: AnyPrediction = PredictVelocity()
    self_conditioning: SelfConditioning | None = SelfConditioning()
    unscored: ClassVar[str] = (
        "latent diffusion has no likelihood bound: its encoder is deterministic; "
        "report judge perplexity instead."
    )

    @model_validator(mode="after")
    def _can_be_read(self) -> "Latent":
        if self.process.ends[1] == 0 and self.prediction.needs_signal:
            raise DiscdiffError(
                "the clean latent can't be read off the noise where no signal is left, at t = 1: "
                "give the process a stop below 1, as 0.999, or predict x0 or velocity"
            )
        if isinstance(self.weighting, Exact) and self.process.ends[0] == 1:
            raise DiscdiffError(
                "the exact weighting is infinite where latents have no noise, at t = 0: "
                "give the process a start above 0, as 1e-4, or take the simple weighting"
            )
        return self

    @property
    def first(self) -> Autoencoder:
        """What is trained before."""
        return self.autoencoder

    def network(self, backbone: AnyBackbone, vocab: int) -> LatentNetwork:
        """The autoencoder's network, and on half of the backbone's blocks one that reads latents."""
        rest = portions(backbone)[-1]
        denoiser = self.denoiser(rest, self.autoencoder.size, vocab)
        return LatentNetwork(self.autoencoder.network(backbone, vocab), denoiser)

    def begin(self, net: LatentNetwork, trained: nn.Module) -> None:
        """Copy a trained autoencoder into the network. Raises DiscdiffError if it is of another shape."""
        ours, theirs = net.autoencoder.state_dict(), trained.state_dict()
        if {name: p.shape for name, p in ours.items()} != {name: p.shape for name, p in theirs.items()}:
            raise DiscdiffError(
                f"latent diffusion was given a network that is not of {self.autoencoder!r}: "
                "give an autoencoder trained with the same fields, backbone and vocabulary"
            )
        net.autoencoder.load_state_dict(theirs)

    def default_sampler(self, steps: int) -> GaussianSampler:
        """Ancestral, in so many steps."""
        return GaussianSampler(steps=steps)

    def loss(self, net: LatentNetwork, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """What the diffusion minimizes, at one time per row, summed over the numbers of latents. `-> [B]`"""
        seen = _seen(canvas, self.autoencoder.span)
        with torch.no_grad():
            z = net.autoencoder.encode(seen)
        noise = noise.on(canvas.rows)
        condition = Condition(canvas.condition.labels, seen.documents)
        latents = VectorCanvas(z, seen.live_latents, condition)
        return self.vector_loss(_denoiser(net), latents, noise.time(), noise)

    def check_canvas(self, canvas: Canvas) -> None:
        """Raises DiscdiffError for a canvas that can't be filled."""
        _check_nothing_given(canvas)
        _seen(canvas, self.autoencoder.span)

    @torch.no_grad()
    def sample(
        self,
        net: LatentNetwork,
        canvas: Canvas,
        sampler: AnySampler,
        noise: Noise,
        observe: Observer = nobody,
    ) -> Int64[Tensor, "B L"]:
        """Draw latents, then take the likeliest token at each position; `observe` is told the tokens that
        each state decodes to. `-> [B, L]`
        """
        check(self, sampler)
        chosen = cast(GaussianSampler, sampler)
        self.check_canvas(canvas)
        seen = _seen(canvas, self.autoencoder.span)
        blank = next(net.denoiser.parameters()).new_zeros(*seen.live_latents.shape, self.autoencoder.size)

        def decode(z: Tensor) -> Tensor:
            logits = fixed(net.autoencoder.decode, chosen.microbatch, z, seen.canvas.condition)
            return logits.argmax(-1)

        def watch(t: float, z: Tensor) -> None:
            observe(t, decode(z))

        denoiser = Denoiser(
            self.process,
            partial(self.estimate, _denoiser(net)),
            blank,
            seen.live_latents,
            Condition(canvas.condition.labels, seen.documents),
        )
        z = chosen.run(denoiser, noise.on(canvas.rows), unwatched if observe is nobody else watch)
        return decode(z)


def _denoiser(net: LatentNetwork) -> Network:
    return cast(Any, net.denoiser)


def _seen(canvas: Canvas, span: int) -> Seen:
    """The canvas as the autoencoder reads it. Raises DiscdiffError where something is given."""
    seen = Seen(canvas, span)
    if bool((seen.live & ~canvas.free).any()):
        raise DiscdiffError(
            "some positions are given, and every latent depends on all of the text, so none is known from a "
            "part of it: leave all positions free, or use a diffusion of tokens to prompt or infill"
        )
    return seen


def _check_nothing_given(canvas: Canvas) -> None:
    """Raises DiscdiffError where sampling would not obey what is asked."""
    if not bool(canvas.free[:, -1].all()):
        raise DiscdiffError(
            "the last position is given, and latents can't be told what comes after them: "
            "leave it free, or use a diffusion of tokens to infill"
        )
    if canvas.allowed is not None:
        raise DiscdiffError(
            "tokens were restricted with `allowed`, and those of latents are decided all at once by what was "
            "drawn: give no restriction, or use a diffusion of tokens"
        )
