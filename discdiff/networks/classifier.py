"""A network that names the class of a noisy sequence: a transformer's features, averaged over positions, and
a linear head.

    log p(label = c | x_t, t)  =  log softmax_c ( W mean over i of h_i(x_t, t) )

It reads tokens, or one-hot vectors of them with the same answer to the last bit: the product of a one-hot
vector and the embedding's table adds zeros to one of its rows. So it has a slope in the tokens, which the
first-order approximation of guidance asks for.
"""

from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from discdiff.networks.attention import Bidirectional
from discdiff.networks.embedding import TokenEmbedding
from discdiff.networks.transformer import Head, Transformer, Trunk
from discdiff.types import Condition

_NOTHING = Condition()


@runtime_checkable
class Classifies(Protocol):
    """Noisy tokens `[B, L]`, or their one-hot `[B, L, K]`, and times to logits of classes `[B, C]`."""

    vocab: int
    """V, the number of clean tokens."""

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor: ...


class ClassifierNetwork(nn.Module):
    """A transformer that answers for whole rows. `[B, L] or [B, L, K], [B, 1] or [B, L] -> [B, C]`"""

    def __init__(self, backbone: Transformer, states: int, vocab: int):
        super().__init__()
        self.vocab = vocab
        self.classes = backbone.labels
        blind = backbone.model_copy(update={"labels": 0, "tied": False})
        self.trunk = Trunk(blind, Bidirectional(), TokenEmbedding(states, backbone.width))
        self.head = Head(backbone.width, self.classes, tied=None)

    def forward(
        self, x: Tensor, t: Float[Tensor, "B _"], condition: Condition = _NOTHING
    ) -> Float[Tensor, "B C"]:
        """Of the documents in a condition; the label in it is what is to be found, and is not looked at."""
        h = self.trunk(x, t, replace(condition, labels=None))
        return self.head(h.to(torch.promote_types(h.dtype, torch.float32)).mean(1))
