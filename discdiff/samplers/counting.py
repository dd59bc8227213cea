"""Evaluations of a network, counted row by row while something is drawn.

A row is counted once for each call of the trunk that it takes part in. Samplers that ask the network of some
rows only say which in the condition's `rows`; a call that does not say is one of all rows.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from discdiff.noise import Noise
from discdiff.samplers.trace import Observer, nobody
from discdiff.types import Canvas, Condition


def draw(
    method: Any, network: Any, canvas: Canvas, sampler: Any, noise: Noise, observe: Observer = nobody
) -> tuple[Int64[Tensor, "B L"], Int64[Tensor, "B"]]:
    """Samples of any family, and the evaluations that each row took: counted, or what the sampler states for
    a network in other parts than trunk and head. `-> [B, L], [B]`
    """
    if not hasattr(network, "trunk"):
        stated = torch.full((canvas.shape[0],), sampler.evaluations(canvas.shape[1]))
        return method.sample(network, canvas, sampler, noise, observe), stated
    with counted(network, canvas.shape[0]) as count:
        tokens = method.sample(network, canvas, sampler, noise, observe)
    return tokens, count()


@contextmanager
def counted(network: nn.Module, batch: int) -> Generator[Callable[[], Int64[Tensor, "B"]]]:
    """Within, `count()` says how many evaluations each of `batch` rows has taken part in. `-> [B]`"""
    total = torch.zeros(batch, dtype=torch.int64)

    def called(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        rows = next((each.rows for each in inputs if isinstance(each, Condition)), None)
        if rows is None:
            total.add_(1)
        else:
            total[rows.unique().cpu()] += 1

    handle = network.get_submodule("trunk").register_forward_pre_hook(called)
    try:
        yield lambda: total
    finally:
        handle.remove()
