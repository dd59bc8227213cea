"""A text autoencoder: one transformer from tokens to latent vectors, another from latents back to tokens.

With r tokens to a latent of E numbers, and h the features of the first transformer,

    z_j = a / sqrt(mean of a^2),  a = A [h_(r j), ..., h_(r j + r - 1)],      tokens -> latents
    h'_(r j + k) = B_k z_j,                                                  latents -> the other's input

so every latent has mean square one, exactly: Gaussian diffusion finds unit scale without statistics to
gather. Latent diffusion of text: Lovelace et al. 2022, arXiv:2212.09462, where a pretrained language model is
bent into the autoencoder; here it is trained from scratch, on the same tokens as all that follows.

Latents know the words around them, and only those: other documents are hidden from attention, and so is
padding, which is token 0 whatever stood there where it shares a latent with text.
"""

from dataclasses import replace

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from discdiff.networks.attention import Bidirectional
from discdiff.networks.conditioner import ask
from discdiff.networks.embedding import TokenEmbedding, VectorEmbedding
from discdiff.networks.given import up_to_last, without_padding
from discdiff.networks.transformer import Head, Transformer, Trunk
from discdiff.types import Canvas, Condition, DiscdiffError

EPS = 1e-6


class AutoencoderNetwork(nn.Module):
    """`encode` and `decode`, without noise or dropout of their own once in eval mode."""

    def __init__(self, vocab: int, span: int, size: int, encoder: Transformer, decoder: Transformer):
        super().__init__()
        self.vocab = vocab
        self.span = span
        self.size = size
        self.encoder = Encoder(vocab, span, size, encoder)
        self.decoder = Decoder(vocab, span, size, decoder)

    def encode(self, seen: "Seen") -> Float[Tensor, "B M E"]:
        """The latents of tokens. `[B, L] -> [B, L / r, E]`"""
        return self.encoder(seen.canvas.tokens, seen.canvas.condition)

    def decode(self, z: Float[Tensor, "B M E"], condition: Condition) -> Float[Tensor, "B L V"]:
        """The logits of tokens given latents, in the tokens' condition. `[B, L / r, E] -> [B, L, V]`"""
        return self.decoder(z, condition)


class Encoder(nn.Module):
    """Tokens to latents of mean square one: `[B, L] -> [B, L / r, E]`."""

    def __init__(self, vocab: int, span: int, size: int, backbone: Transformer):
        super().__init__()
        self.span = span
        self.trunk = Trunk(backbone, Bidirectional(), TokenEmbedding(vocab, backbone.width))
        self.head = Head(span * backbone.width, size, tied=None)
        # Zero, as heads begin, has no direction.
        nn.init.normal_(self.head.weight, std=(span * backbone.width) ** -0.5)

    def forward(self, tokens: Int64[Tensor, "B L"], condition: Condition) -> Float[Tensor, "B M E"]:
        h = ask(self.trunk, tokens, condition)
        a = self.head(h.unflatten(1, (-1, self.span)).flatten(2))
        return F.rms_norm(a, a.shape[-1:], eps=EPS)


class Decoder(nn.Module):
    """Latents to logits: `[B, L / r, E] -> [B, L, V]`."""

    def __init__(self, vocab: int, span: int, size: int, backbone: Transformer):
        super().__init__()
        self.span = span
        self.spread = VectorEmbedding(size, span * backbone.width)
        self.trunk = Trunk(backbone, Bidirectional(), nn.Identity())
        self.head = Head(backbone.width, vocab, tied=None)

    def forward(self, z: Float[Tensor, "B M E"], condition: Condition) -> Float[Tensor, "B L V"]:
        h = self.spread(z).unflatten(-1, (self.span, -1)).flatten(1, 2)
        return self.head(ask(self.trunk, h, condition))


class Seen:
    """A canvas as an autoencoder reads it: padding hidden, no class labels.

    Raises DiscdiffError where latents of `span` tokens can't cover it.
    """

    def __init__(self, canvas: Canvas, span: int):
        length, documents = canvas.shape[1], canvas.condition.documents
        if length % span:
            raise DiscdiffError(
                f"{length} positions were given and a latent stands for {span}: "
                f"take a length that is a multiple of {span}, or another span"
            )
        if documents is not None and span > 1:
            raise DiscdiffError(
                f"attention was to stay within documents and a latent stands for {span} tokens, which may be "
                "of two: pack rows another way than isolated, or take a span of 1"
            )
        hidden = without_padding(canvas)
        self.span = span
        self.canvas = replace(hidden, condition=Condition(documents=hidden.condition.documents))
        self.live = up_to_last(canvas.free)
        """Positions that are not padding, `[B, L]`."""

    @property
    def live_latents(self) -> Bool[Tensor, "B M"]:
        """Latents that stand for a token at least."""
        return self.live.unflatten(1, (-1, self.span)).any(-1)

    @property
    def documents(self) -> Int64[Tensor, "B M"] | None:
        """The document of each latent; latents of padding have one of their own."""
        documents = self.canvas.condition.documents
        return None if documents is None else documents.unflatten(1, (-1, self.span)).amax(-1)


def portions(backbone: Transformer) -> tuple[Transformer, Transformer, Transformer]:
    """The backbones of encoder, decoder and what is trained on latents: a quarter of the blocks, a quarter,
    the rest; none less than one. The first two have no use for times or classes.
    """
    quarter = max(1, backbone.layers // 4)
    alone = {"layers": quarter, "time": False, "labels": 0, "tied": False}
    rest = {"layers": max(1, backbone.layers - 2 * quarter), "tied": False}
    part = backbone.model_copy(update=alone)
    return part, part, backbone.model_copy(update=rest)
