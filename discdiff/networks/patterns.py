"""Who may attend to whom, as a function of indices: computed densely, or block by block on a GPU.

A dense mask `[L, L]` has every score computed and the forbidden ones thrown away. FlexAttention (Dong et al.
2024, arXiv:2412.05496) reads the same function and skips the blocks of 128 x 128 in which nothing is allowed;
its backward pass needs a GPU, it has no dropout and no head narrower than 16. float64 stays dense.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Allowed = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(row, query, key), index tensors that broadcast -> whether the query may attend to the key"""

LEAST_WIDTH = 16
"""Of a head that the kernel takes."""


@dataclass(frozen=True)
class Pattern:
    """`allowed` for `length` positions; `rows` is the number of rows if they differ, else None."""

    allowed: Allowed
    length: int
    rows: int | None = None

    def dense(self, device: torch.device) -> Bool[Tensor, "..."]:
        """The mask of every pair: `[L, L]`, or `[B, 1, L, L]` if rows differ."""
        index = torch.arange(self.length, device=device)
        if self.rows is None:
            return self.allowed(torch.zeros_like(index)[:, None], index[:, None], index)
        row = torch.arange(self.rows, device=device)[:, None, None, None]
        return self.allowed(row, index[:, None], index)

    def sparse(self, device: torch.device) -> BlockMask:
        """The mask of blocks."""
        return create_block_mask(
            lambda row, head, query, key: self.allowed(row, query, key),
            B=self.rows,
            H=None,
            Q_LEN=self.length,
            KV_LEN=self.length,
            device=str(device),
        )


def has_kernel(h: Tensor, width: int) -> bool:
    """Whether attention of heads of this width, on features as these, can be computed by blocks."""
    return h.is_cuda and h.dtype != torch.float64 and width >= LEAST_WIDTH


def by_blocks(
    query: Float[Tensor, "B H L E"],
    key: Float[Tensor, "B H L E"],
    value: Float[Tensor, "B H L E"],
    mask: BlockMask,
) -> Float[Tensor, "B H L E"]:
    """Attention where blocks allow it: one compiled kernel on a GPU, plain on a CPU."""
    attend = _compiled() if query.is_cuda else flex_attention
    return attend(query, key, value, block_mask=mask)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)
