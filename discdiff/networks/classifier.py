"""A network that names the class of a noisy sequence: a transformer's features, averaged over positions, and
a linear head.

    log p(label = c | x_t, t)  =  log softmax_c ( W mean over i of h_i(x_t, t) )

It reads tokens, or one-hot vectors of them with the same answer to the last bit: the product of a one-hot
vector and the embedding's table adds zeros to one of its rows. So it has a slope in the tokens, which the
first-order approximation of guidance asks for.
"""

from dataclasses import replace
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int64
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

    @property
    def table(self) -> Float[Tensor, "K D"]:
        """The embeddings of all states."""
        return cast(TokenEmbedding, self.trunk.embedding).weight

    def slope(
        self, x: Int64[Tensor, "B L"], t: Float[Tensor, "B _"], labels: Int64[Tensor, "B"]
    ) -> Float[Tensor, "B L D"]:
        """The gradient of log p(label | x_t) for the embeddings of tokens; its products with the table are
        the gradient for one-hot tokens, which are K numbers each. `[B, L] -> [B, L, D]`
        """
        leaf: list[Tensor] = []

        def cut(_: nn.Module, inputs: object, embedded: Tensor) -> Tensor:
            leaf.append(embedded.detach().requires_grad_())
            return leaf[0]

        handle = self.trunk.embedding.register_forward_hook(cut)
        try:
            with torch.enable_grad():
                log_p = self(x, t).log_softmax(-1).gather(-1, labels[:, None]).sum()
                return torch.autograd.grad(log_p, leaf)[0]
        finally:
            handle.remove()
