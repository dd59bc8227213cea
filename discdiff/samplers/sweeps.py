"""Sweeps of the correctors that come after a step: the state is at s before them and after them."""

from typing import cast

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from discdiff.noise import Noise, Stream, categorical
from discdiff.processes import Interpolating
from discdiff.samplers.correctors import After, Gibbs
from discdiff.samplers.orders import rank
from discdiff.samplers.predictor import Predictor, Where, positions
from discdiff.samplers.reverse import Dynamics
from discdiff.samplers.steps import Step, everywhere


def sweep(
    corrector: After, step: Step, x: Int64[Tensor, "B L"], s: float, t: float, noise: Noise
) -> Int64[Tensor, "B L"]:
    """One sweep after the step from t to s. `[B, L] -> [B, L]`"""
    if isinstance(corrector, Gibbs):
        return _redraw(corrector, step.predictor, x, s, noise)
    up = s + corrector.length * (t - s)
    return step.draw(_noise_again(step.predictor, x, s, up, noise), s, up, noise)


def _noise_again(predictor: Predictor, x: Tensor, s: float, t: float, noise: Noise) -> Tensor:
    """x_t given x_s, at the free positions."""
    process, vocab = cast(Interpolating, predictor.process), predictor.vocab
    keep, uniform = kept(process, vocab, s, t, x.device)
    u = noise.uniform(Stream.CORRECT, x.shape[1])
    anything = (noise.uniform(Stream.CORRECT_VALUE, x.shape[1]) * vocab).long()
    noised = torch.where(u < keep + vocab * uniform, anything, vocab) if process.extra else anything
    return torch.where(predictor.canvas.free & (u >= keep), noised, x)


def kept(
    process: Interpolating, vocab: int, s: float, t: float, device: torch.device
) -> tuple[Float64[Tensor, ""], Float64[Tensor, ""]]:
    """From any state at s: the probability of being untouched at t, and of each token as noise; the mask has
    the rest.
    """
    at = torch.tensor([s, t], dtype=torch.float64, device=device)
    before, now = process.levels(at[0], vocab), process.levels(at[1], vocab)
    keep = now.alpha / before.alpha
    return keep, (now.uniform - keep * before.uniform).clamp_min(0)


def _redraw(corrector: Gibbs, predictor: Predictor, x: Tensor, s: float, noise: Noise) -> Tensor:
    """Some free positions from q_s of their leave-one-out law; with mask noise they are hidden first, and
    those that stay so need no network.
    """
    chosen = some(predictor.canvas.free, corrector.positions, noise)
    time = look_time(predictor, x, s)
    if predictor.mask is None:
        where = positions(chosen)
        predictor.look(x, time)
        return x.index_put(where, _drawn(predictor, where, s, noise))
    hidden = torch.where(chosen, predictor.vocab, x)
    shown = noise.uniform(Stream.STEP, x.shape[1]) >= predictor.mask.schedule.beta(everywhere(x, s))
    where = positions(chosen & shown)
    if not len(where[0]):
        return hidden
    rows = where[0].unique_consecutive()
    predictor.look(hidden, time, rows if len(rows) < len(x) else None)
    return hidden.index_put(where, _drawn(predictor, where, 0.0, noise))


def look_time(predictor: Predictor, x: Int64[Tensor, "B L"], s: float) -> Float64[Tensor, "B 1"]:
    """The time that the network is told: s, but never that at which no mask can be, where it hides some."""
    return everywhere(x, s if predictor.mask is None else max(s, 2.0**-20))


def _drawn(predictor: Predictor, where: Where, s: float, noise: Noise) -> Int64[Tensor, "N"]:
    u = noise.uniform(Stream.STEP_VALUE, predictor.x.shape[1])[where]

    def read(dynamics: Dynamics, raw: Tensor, x: Tensor, now: Tensor, part: slice) -> Tensor:
        return categorical(_conditional(predictor, dynamics, raw, x, now, s), u[part])

    return predictor.each(where, read)


def log_conditional(predictor: Predictor, where: Where, s: float) -> Float[Tensor, "N K"]:
    """log p(x_s | x_s elsewhere) at positions, after `look` at (x_s, s). `-> [N, K]`"""

    def read(dynamics: Dynamics, raw: Tensor, x: Tensor, now: Tensor, part: slice) -> Tensor:
        return _conditional(predictor, dynamics, raw, x, now, s)

    return predictor.each(where, read)


def _conditional(
    predictor: Predictor, dynamics: Dynamics, raw: Tensor, x: Tensor, now: Tensor, s: float
) -> Tensor:
    law = predictor.log_clean(dynamics, raw, x, now)
    return predictor.process.log_marginal(law, torch.full_like(now, s))


def some(free: Bool[Tensor, "B L"], count: int, noise: Noise) -> Bool[Tensor, "B L"]:
    """So many of the free positions of each row, any alike. `-> [B, L]`"""
    score = noise.uniform(Stream.ORDER, free.shape[1]).masked_fill(~free, -torch.inf)
    return free & (rank(score) < count)
