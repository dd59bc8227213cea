"""Rotary positions: queries and keys turned by an angle proportional to position.

Su et al. 2021, arXiv:2104.09864.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

BASE = 10_000.0


def rotation(
    positions: Int[Tensor, "... L"], width: int, dtype: torch.dtype
) -> Float[Tensor, "2 _ L 1 half"]:
    """Cosines and sines of each position's angles, for heads of `width`: `[B, L] -> [2, B, L, 1, width / 2]`.

    Positions `[L]` count as `[1, L]`.
    """
    exponent = torch.arange(0, width, 2, device=positions.device, dtype=torch.float64) / width
    angles = positions.double()[..., None] * BASE**-exponent
    turned = torch.stack([angles.cos(), angles.sin()])[..., None, :].to(dtype)
    return turned if positions.ndim == 2 else turned[:, None]


def rotate(x: Float[Tensor, "B L H E"], angles: Float[Tensor, "2 _ L 1 half"]) -> Float[Tensor, "B L H E"]:
    """Turn each pair (x_j, x_{j + E/2}) of a head by its angle; keeps the dtype of x."""
    cos, sin = angles
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)
