"""Undoing mask noise by choice of tokens: first hitting, and orders.

Rows advance on their own: each has its own count of masked tokens and its own time.
"""

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from discdiff.noise import Noise, Stream
from discdiff.processes import Mask
from discdiff.samplers.orders import AnyOrder, EntropyBudget, Random
from discdiff.samplers.predictor import Predictor, positions
from discdiff.samplers.steps import everywhere, fill, write
from discdiff.samplers.trace import Observer


def hit(
    predictor: Predictor, process: Mask, x: Int64[Tensor, "B L"], noise: Noise, observe: Observer
) -> Int64[Tensor, "B L"]:
    """First hitting, from t = 1: a token a row and evaluation, at its time of unmasking. `-> [B, L]`"""
    left = masked(predictor, x).sum(-1, keepdim=True)
    noised = process.schedule.beta(everywhere(x, 1.0))
    for index in range(int(left.max())):
        here = noise.at(noise.step + index)
        noised = noised * here.uniform(Stream.TIME, 1) ** (1 / left.clamp_min(1))
        t = expected(process, noised)
        chosen = Random().choose(predictor, masked(predictor, x), (left[:, 0] > 0).long(), here)
        x = fill(predictor, x, chosen, t, here)
        left = (left - 1).clamp_min(0)
        observe(t, x)
    return x


def in_order(
    predictor: Predictor,
    process: Mask,
    order: AnyOrder,
    x: Int64[Tensor, "B L"],
    times: list[float],
    noise: Noise,
    observe: Observer,
) -> Int64[Tensor, "B L"]:
    """Fill masked tokens in an order, as many a step as the schedule expects on a grid. `-> [B, L]`

    The network is told the time at which so many tokens of the row are expected to be masked.
    """
    many = predictor.canvas.free.sum(-1, keepdim=True).clamp_min(1)
    for index, left in enumerate(plan(process, order, masked(predictor, x).sum(-1), times)):
        still = masked(predictor, x)
        here = noise.at(noise.step + index)
        t = expected(process, still.sum(-1, keepdim=True).double() / many)
        count = still.sum(-1) - left
        rows = (count > 0).nonzero()[:, 0]
        if not len(rows):
            if isinstance(order, EntropyBudget):
                break
            continue
        x = _some(predictor, order, x, still, count, t, rows, here)
        observe(t, x)
    return x


def _some(
    predictor: Predictor,
    order: AnyOrder,
    x: Tensor,
    still: Tensor,
    count: Tensor,
    t: Tensor,
    rows: Tensor,
    noise: Noise,
) -> Tensor:
    """Choose and fill by one evaluation."""
    predictor.look(x, t, rows if len(rows) < len(x) else None)
    active = still & (count > 0)[:, None]
    chosen = order.choose(predictor, active, count, noise)
    return write(predictor, x, positions(chosen), noise)


def plan(
    process: Mask, order: AnyOrder, start: Int64[Tensor, "*b"], times: list[float]
) -> list[Int64[Tensor, "*b"]]:
    """How many tokens each step leaves masked: what the schedule expects, rounded; none after the last."""
    if isinstance(order, EntropyBudget):
        return [torch.zeros_like(start)] * int(start.max())
    share = process.schedule.beta(torch.tensor(times[1:-1], dtype=torch.float64, device=start.device))
    return [*((start * kept + 0.5).floor().long() for kept in share), torch.zeros_like(start)]


def masked(predictor: Predictor, x: Int64[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """The free positions that are masked."""
    return predictor.canvas.free & (x == predictor.vocab)


def expected(process: Mask, share: Float64[Tensor, "B 1"]) -> Float64[Tensor, "B 1"]:
    """The time at which this share of tokens is masked. `[B, 1] -> [B, 1]`"""
    high, low = process.ends
    return process.schedule.inverse((1 - share).clamp(low, high)).clamp(0, 1)
