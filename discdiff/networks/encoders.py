"""Vectors of tokens, fixed or learned, and rounding: the law of a token given its noisy vector.

Rounding is a softmax over the vocabulary, of z [E], with vectors e_x and z_0 ~ N(sqrt(alpha_0) e_x, beta_0):

    Nearest  (sqrt(alpha_0) z . e_x - alpha_0 |e_x|^2 / 2) / beta_0, log q(z_0 | x) but for a constant: Bayes'
             rule from tokens that are alike; nothing is learned, and the most probable is the nearest
    Tied     z . e_x + b_x with learned b: the head of Diffusion-LM (Li et al. 2022, arXiv:2205.14217)
"""

from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from discdiff.processes.gaussian import VariancePreserving
from discdiff.types import Condition, Value


@runtime_checkable
class TokenVectors(Protocol):
    """A module that holds a vector for each token."""

    def __call__(self, tokens: Tensor) -> Tensor: ...
    def products(self, z: Tensor) -> Tensor: ...
    def squares(self) -> Tensor: ...


class OneHotVectors(nn.Module):
    """`scale` times the one-hot vector: `[...] -> [..., V]`."""

    scale: Tensor

    def __init__(self, vocab: int, scale: float):
        super().__init__()
        self.vocab = vocab
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, tokens: Int64[Tensor, "*n"]) -> Float[Tensor, "*n V"]:
        return F.one_hot(tokens, self.vocab) * self.scale

    def products(self, z: Float[Tensor, "*n V"]) -> Float[Tensor, "*n V"]:
        """z . e_x for every x."""
        return z * self.scale

    def squares(self) -> Float[Tensor, "V"]:
        """|e_x|^2 for every x."""
        return self.scale.square().expand(self.vocab)


class TableVectors(nn.Embedding):
    """A learned vector for each token: `[...] -> [..., E]`."""

    def products(self, z: Float[Tensor, "*n E"]) -> Float[Tensor, "*n V"]:
        """z . e_x for every x."""
        with torch.autocast(z.device.type, enabled=False):
            return z @ self.weight.T

    def squares(self) -> Float[Tensor, "V"]:
        """|e_x|^2 for every x."""
        return self.weight.square().sum(-1)


class OneHot(Value, frozen=True):
    """A one-hot vector for each token, times `scale`."""

    kind: Literal["one_hot"] = "one_hot"
    scale: float = Field(default=1.0, gt=0)

    def size(self, vocab: int) -> int:
        """E, the numbers of a vector."""
        return vocab

    def build(self, vocab: int) -> OneHotVectors:
        """The module; it has no parameters."""
        return OneHotVectors(vocab, self.scale)


class Table(Value, frozen=True):
    """A learned vector of `width` numbers for each token."""

    kind: Literal["table"] = "table"
    width: int = Field(default=16, ge=1)

    def size(self, vocab: int) -> int:
        """E, the numbers of a vector."""
        return self.width

    def build(self, vocab: int) -> TableVectors:
        """The module, with standard normal vectors."""
        return TableVectors(vocab, self.width)


class NearestRounding(nn.Module):
    """Logits by Bayes' rule: `[..., E] -> [..., V]`."""

    def __init__(self, process: VariancePreserving):
        super().__init__()
        self.alpha = process.ends[0]
        self.beta = process.beta(torch.zeros(1, dtype=torch.float64)).item()

    def forward(self, z: Float[Tensor, "*n E"], vectors: TokenVectors) -> Float[Tensor, "*n V"]:
        return (self.alpha**0.5 * vectors.products(z) - self.alpha * vectors.squares() / 2) / self.beta


class TiedRounding(nn.Module):
    """Logits by the tokens' own vectors and a bias: `[..., E] -> [..., V]`."""

    def __init__(self, vocab: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab))

    def forward(self, z: Float[Tensor, "*n E"], vectors: TokenVectors) -> Float[Tensor, "*n V"]:
        return vectors.products(z) + self.bias


class Nearest(Value, frozen=True):
    """Bayes' rule, from tokens that are alike: nothing is learned."""

    kind: Literal["nearest"] = "nearest"

    def build(self, vocab: int, process: VariancePreserving) -> NearestRounding:
        """The module; it has no parameters."""
        return NearestRounding(process)


class Tied(Value, frozen=True):
    """A softmax of inner products with the tokens' own vectors, and a learned bias."""

    kind: Literal["tied"] = "tied"

    def build(self, vocab: int, process: VariancePreserving) -> TiedRounding:
        """The module."""
        return TiedRounding(vocab)


AnyEncoder = Annotated[OneHot | Table, Field(discriminator="kind")]
AnyRounding = Annotated[Nearest | Tied, Field(discriminator="kind")]


class EmbeddingNetwork(nn.Module):
    """A network on vectors, the vectors of tokens, and the way back from vectors to tokens."""

    def __init__(
        self,
        vocab: int,
        trunk: nn.Module,
        head: nn.Module,
        encoder: OneHotVectors | TableVectors,
        rounding: NearestRounding | TiedRounding,
    ):
        super().__init__()
        self.vocab = vocab
        self.trunk = trunk
        self.head = head
        self.encoder = encoder
        self.rounding = rounding

    def forward(self, x: Tensor, t: Float[Tensor, "B _"], condition: Condition) -> Float[Tensor, "B L E"]:
        """Of vectors, or of tokens, whose vectors are then read."""
        z = x if x.is_floating_point() else self.encoder(x)
        return self.head(self.trunk(z, t, condition))

    def log_tokens(self, z: Float[Tensor, "*n E"]) -> Float[Tensor, "*n V"]:
        """log p(x | z_0 = z). `[..., E] -> [..., V]`"""
        return self.rounding(z, self.encoder).log_softmax(-1)

    def nearest(self, e: Float[Tensor, "*n E"]) -> Float[Tensor, "*n E"]:
        """The nearest vector of a token. `[..., E] -> [..., E]`"""
        return self.encoder((self.encoder.products(e) - self.encoder.squares() / 2).argmax(-1))
