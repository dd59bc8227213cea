"""The mutual-information schedule of D3PM (Austin et al. 2021, arXiv:2107.03006), estimated from token
frequencies.

It spends equal amounts of information in equal times: I(x_t; x_0) = (1 - t) I(x_0; x_0). With mask noise the
information is alpha times the entropy, so the schedule is linear whatever the corpus.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from discdiff.processes.hybrid import Hybrid
from discdiff.processes.interpolating import Interpolating
from discdiff.processes.mask import Mask
from discdiff.processes.matrix import Matrix
from discdiff.processes.uniform import Uniform
from discdiff.schedules import Linear, Tabulated

_SLICE = 2**24


def mutual_information(
    process: Mask | Uniform | Hybrid | Matrix, frequencies: Float64[Tensor, "V"], t: float
) -> float:
    """I(x_t; x_0) in nats, tokens drawn by their frequencies.

    Noise that interpolates leaves the same entropy behind every token, so I = H(x_t) - H(x_t | x_0) costs V;
    other noise costs V^2.
    """
    if isinstance(process, Interpolating):
        return _interpolating(process, frequencies.double() / frequencies.sum(), t)
    p = frequencies.double() / frequencies.sum()
    seen = p.nonzero()[:, 0]
    time = torch.tensor([t], dtype=torch.float64)
    total = process.log_marginal(p.log()[None], time)[0]
    information = 0.0
    for part in seen.split(max(1, _SLICE // len(p))):
        certain = torch.full((len(part), len(p)), -torch.inf, dtype=torch.float64)
        law = process.log_marginal(certain.scatter_(-1, part[:, None], 0), time.expand(len(part)))
        # A state that nothing reaches may have a share of rounding's size in one of the two.
        reached = (law > -torch.inf) & (total > -torch.inf)
        terms = torch.where(reached, law.exp() * (law - total), 0)
        information += (p[part] * terms.sum(-1)).sum().item()
    return information


def _interpolating(process: Interpolating, p: Float64[Tensor, "V"], t: float) -> float:
    level = process.levels(torch.tensor(t, dtype=torch.float64), len(p))
    spread = _entropy(level.alpha * p + level.uniform).sum()
    around = _entropy(level.alpha + level.uniform) + (len(p) - 1) * _entropy(level.uniform)
    return (spread - around).item()


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p)


def mutual_information_schedule(
    process: Mask | Uniform | Hybrid | Matrix, frequencies: Sequence[float], points: int = 64
) -> Tabulated:
    """alpha at equally spaced times, such that information falls evenly; by bisection of alpha.

    `frequencies` of the V tokens need not sum to one; of a store they are `token_counts` of
    `discdiff.data.frequencies`. The schedule of `process` itself is not used: only its kind of noise is.
    """
    counts = torch.tensor(frequencies, dtype=torch.float64)
    even = process.model_copy(update={"schedule": Linear()})
    whole = mutual_information(even, counts, 0.0)
    values = [1.0]
    for k in range(1, points):
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            left = mutual_information(even, counts, middle) / whole
            low, high = (middle, high) if left > 1 - k / points else (low, middle)
        values.append(1 - (low + high) / 2)
    return Tabulated(values=(*values, 0.0))
