"""Conditioners: the transformers that tell a flow's layers how to transform each position.

A flow is given one backbone and shares its blocks out among its parts, so that flows and diffusions of the
same backbone have about as many parameters: n parts of a backbone of N blocks get N // n blocks each, the
first N mod n of them one more, and none less than one. Parts have no use for a time.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from discdiff.networks.attention import KeyValueCache
from discdiff.networks.transformer import Transformer, TransformerNetwork
from discdiff.types import Condition


def share(backbone: Transformer, parts: int) -> list[Transformer]:
    """The backbones of the parts of a flow."""
    each, more = divmod(backbone.layers, parts)
    blocks = [max(1, each + (part < more)) for part in range(parts)]
    return [backbone.model_copy(update={"layers": n, "time": False, "tied": False}) for n in blocks]


def ask(net: nn.Module, x: Tensor, condition: Condition) -> Float[Tensor, "B L W"]:
    """What a conditioner says of each position of x. `[B, L] or [B, L, E] -> [B, L, W]`"""
    return net(x, torch.zeros(x.shape[0], 1, dtype=torch.float64, device=x.device), condition)


Advance = Callable[[Tensor, int], Tensor]
"""(raw [B, W], position) -> the input that stands at that position [B] or [B, E]"""


def ask_in_turn(
    net: TransformerNetwork, begin: Tensor, length: int, condition: Condition, advance: Advance
) -> None:
    """Ask a causal conditioner of one position after the other, with cached keys and values.

    It reads `begin` `[B, 1]` or `[B, 1, E]` where a document starts, and elsewhere what `advance` made of its
    last answer.
    """
    before, cache = begin, KeyValueCache(capacity=length)
    time = torch.zeros(begin.shape[0], 1, dtype=torch.float64, device=begin.device)
    first = starts(condition, length, begin.device).expand(begin.shape[0], length)
    for position in range(length):
        where = first[:, position].reshape(-1, *[1] * (begin.ndim - 1))
        raw = net(torch.where(where, begin, before), time, _at(condition, position), cache=cache)[:, 0]
        before = advance(raw, position)[:, None]


def starts(condition: Condition, length: int, device: torch.device) -> Bool[Tensor, "_ L"]:
    """Where a document starts: what stands before it is another's. `-> [B, L]` or `[1, L]`"""
    first = (torch.arange(length, device=device) == 0)[None]
    documents = condition.documents
    return first if documents is None else first | (documents != documents.roll(1, dims=1))


def flip(condition: Condition) -> Condition:
    """The condition of the sequence read from its end."""
    documents = condition.documents
    return replace(condition, documents=None if documents is None else documents.flip(1))


def _at(condition: Condition, position: int) -> Condition:
    documents = condition.documents
    return replace(condition, documents=None if documents is None else documents[:, position : position + 1])
