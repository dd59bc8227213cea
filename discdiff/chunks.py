"""The head and what follows it, some positions at a time: no tensor `[N, W]` is held where it would be
large.

Each piece's logits are computed, used and forgotten; the backward pass computes them again. That costs one
product with the head's matrix in four, and leaves memory below that of one tensor of logits.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_CHUNK = 2**24
"""Logits held at once when there are too many for one piece."""
_CACHED = 2**21
"""The same on a CPU where no gradient is wanted: they stay in its cache and cost no page faults."""
_ROWS = 128
"""Positions that a CPU's head is given at least: its matrix is read once for all of them."""
_NEAR = 2**18
"""Logits that a CPU reads at once where they are there already: with what is made of them they fit the cache
that is its own."""


def in_chunks(nats: Callable[..., Tensor], width: int, *columns: Tensor) -> Tensor:
    """A function that takes each position on its own and makes `width` numbers of it on the way.
    `[N, ...], ... -> [N]`
    """
    cached = columns[0].device.type == "cpu" and not torch.is_grad_enabled()
    size = max(_ROWS, _CACHED // width) if cached else max(1, _CHUNK // width)
    if len(columns[0]) <= size:
        return nats(*columns)
    pieces = zip(*(column.split(size) for column in columns), strict=True)
    return torch.cat([_recomputed(nats, *piece) for piece in pieces])


def at_once(logits: Tensor) -> int:
    """How many positions of logits that are there already are best read at once. `[..., W]`"""
    return max(1, (_NEAR if logits.device.type == "cpu" else _CHUNK) // logits.shape[-1])


def by_chunks(
    head: nn.Module, width: int, term: Callable[..., Tensor], hidden: Tensor, *columns: Tensor
) -> Tensor:
    """`term(head(hidden), *columns)`, where the head writes `width` numbers per position. `[N, D] -> [N]`"""

    def nats(h: Tensor, *at: Tensor) -> Tensor:
        return term(head(h), *at)

    return in_chunks(nats, width, hidden, *columns)


def per_row(values: Tensor, where: tuple[Tensor, ...], shape: torch.Size) -> Tensor:
    """Values at some positions of a batch, summed over each row. `[N], ([N], [N]) -> [B]`

    In the same order every time, which `index_add` does not promise on a GPU.
    """
    return values.new_zeros(shape).index_put(where, values).sum(-1)


def _recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return function(*inputs)
    value = checkpoint(function, *inputs, use_reentrant=False)
    return value  # pyright: ignore[reportReturnType]
