"""A text autoencoder: not a generative model, but the first of two that make latent diffusion.

Lovelace et al. 2022, arXiv:2212.09462. With z = enc(x), latents of mean square one, it is trained by

    sum over free positions of   -log dec(x_i | z + sigma eps),    eps ~ N(0, I)

The noise is what makes sampled latents decode: it keeps the latents of different texts farther apart than
about sigma, and has the decoder read each ball of that size as the text in its middle (compare the
perturbations of Meshchaninov et al. 2025, arXiv:2506.21170).
"""

from typing import ClassVar, Literal, NoReturn

import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from discdiff.networks import AnyBackbone
from discdiff.networks.autoencoder import AutoencoderNetwork, Seen, portions
from discdiff.noise import Noise, Stream
from discdiff.types import Canvas, DiscdiffError, Value


class Autoencoder(Value, frozen=True):
    """A latent of `size` numbers for every `span` tokens; the decoder learns under noise of deviation
    `sigma`.
    """

    kind: Literal["autoencoder"] = "autoencoder"
    span: int = Field(default=1, ge=1)
    size: int = Field(default=32, ge=1)
    sigma: float = Field(default=0.3, ge=0)
    unscored: ClassVar[str] = "an autoencoder gives texts no probability: train latent on top of it."

    def network(self, backbone: AnyBackbone, vocab: int) -> AutoencoderNetwork:
        """Encoder and decoder, with a quarter of the backbone's blocks each: the rest is the diffusion's."""
        encoder, decoder, _ = portions(backbone)
        return AutoencoderNetwork(vocab, self.span, self.size, encoder, decoder)

    def default_sampler(self, steps: int) -> NoReturn:
        """An autoencoder is not drawn from. Raises DiscdiffError."""
        raise _generates_nothing()

    def sample(self, net: AutoencoderNetwork, canvas: Canvas, sampler: object, noise: Noise) -> NoReturn:
        """An autoencoder is not drawn from. Raises DiscdiffError."""
        raise _generates_nothing()

    def loss(self, net: AutoencoderNetwork, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """The cross-entropy of free tokens given all of the text, through noise. `-> [B]` nats"""
        seen = Seen(canvas, self.span)
        z = net.encode(seen)
        eps = noise.on(canvas.rows).normal(Stream.CORRUPT, *z.shape[1:]).to(z)
        logits = net.decode(z + self.sigma * eps, seen.canvas.condition)
        nats = F.cross_entropy(logits.transpose(1, 2), seen.canvas.tokens, reduction="none")
        return (nats * canvas.free).sum(-1)

    def reconstruct(self, net: AutoencoderNetwork, canvas: Canvas) -> Int64[Tensor, "B L"]:
        """The likeliest token of each position given the latents of all. `[B, L] -> [B, L]`"""
        seen = Seen(canvas, self.span)
        return net.decode(net.encode(seen), seen.canvas.condition).argmax(-1)


def _generates_nothing() -> DiscdiffError:
    return DiscdiffError(
        "an autoencoder generates nothing by itself: train latent, which starts from it, and draw from that"
    )
