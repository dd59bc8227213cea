"""One step of a sampler from t to s: its law, and a draw from it.

The law of a step is a product over positions. For mask noise it is drawn by two questions, "unmask?" and then
"to what?": the first needs no network, so the network is asked of the rows alone in which something is
unmasked, and its head of those positions alone. For other noise that mixes, the questions are those of
`discdiff.samplers.bridge`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from discdiff.noise import Noise, Stream, categorical
from discdiff.processes import Interpolating, Mask
from discdiff.samplers.bridge import bridge
from discdiff.samplers.correctors import FlowCorrector, Psi, Within
from discdiff.samplers.guidance import ClassifierBased
from discdiff.samplers.predictor import Predictor, Where, positions
from discdiff.samplers.reverse import Ancestral, Dynamics, Euler, FlowEuler


@dataclass(frozen=True)
class Step:
    """A reverse step, perhaps widened by a corrector, on a network's predictions."""

    predictor: Predictor
    reverse: Ancestral | Euler | FlowEuler
    within: Within | None = None

    def moving(self, x: Int64[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        """The positions that it may change: the free ones that are not certain for good."""
        free = self.predictor.canvas.free
        return free if self.within else free & self.predictor.process.live(x, self.predictor.vocab)

    def draw(self, x: Int64[Tensor, "B L"], s: float, t: float, noise: Noise) -> Int64[Tensor, "B L"]:
        """x_s given x_t. `[B, L] -> [B, L]`"""
        if self.predictor.mask is not None:
            return self._unmask(self.predictor.mask, x, s, t, noise)
        where = positions(self.moving(x))
        self.predictor.look(x, everywhere(x, t))
        u = noise.uniform(Stream.STEP, x.shape[1])[where]
        if not self._bridges_by_parts():
            return x.index_put(where, self._read(where, s, t, u))
        value = noise.uniform(Stream.STEP_VALUE, x.shape[1])[where]
        return x.index_put(where, bridge(self.predictor, where, s, u, value))

    def _bridges_by_parts(self) -> bool:
        """Whether the step is the bridge of mixing noise and nothing else."""
        predictor = self.predictor
        plain = self.within is None and self.reverse == Ancestral() and predictor.method.tokens_alike
        weighed = isinstance(predictor.guidance, ClassifierBased)
        return plain and not weighed and isinstance(predictor.process, Interpolating)

    def log_law(self, where: Where, s: float, t: float) -> Float[Tensor, "N K"]:
        """log p(x_s | x_t) at positions, after `look` at (x_t, t). `-> [N, K]`"""
        return self._read(where, s, t, None)

    def _read(self, where: Where, s: float, t: float, u: Float64[Tensor, "N"] | None) -> Tensor:
        """The laws at positions, or draws from them: a chunk at a time, since laws are large."""

        def read(dynamics: Dynamics, raw: Tensor, x: Tensor, now: Tensor, part: slice) -> Tensor:
            law = self.predictor.tilt(where, part, self._law(dynamics, raw, x, now, s, t))
            return law.log_softmax(-1) if u is None else categorical(law, u[part])

        return self.predictor.each(where, read)

    def _law(self, dynamics: Dynamics, raw: Tensor, x: Tensor, now: Tensor, s: float, t: float) -> Tensor:
        mask = self.predictor.mask
        if mask is not None:
            return self._masked_law(mask, dynamics.log_denoise(raw, x, now), x, s, t)
        before = torch.full_like(now, s)
        if isinstance(self.within, Psi | FlowCorrector):
            return self.within.log_law(dynamics, raw, x, before, now)
        return self.reverse.log_law(dynamics, raw, x, before, now)

    # Mask noise -----------------------------------------------------------------------------------

    def _odds(self, process: Mask, s: float, t: float, like: Tensor) -> tuple[Tensor, Tensor]:
        """The probabilities that a mask gives way to a token, and a token to a mask."""
        at = torch.tensor([s, t], dtype=torch.float64, device=like.device)
        unmask = self.reverse.unmask(process, at[0], at[1])
        if self.within is None:
            return unmask, torch.zeros_like(unmask)
        remask = self.within.sigma(process, at[0], at[1])
        balance = remask * process.schedule.alpha(at[1]) / process.schedule.beta(at[1])
        return (unmask + balance).clamp_max(1), remask

    def _masked_law(self, process: Mask, log_token: Tensor, x: Tensor, s: float, t: float) -> Tensor:
        unmask, remask = (p.to(log_token) for p in self._odds(process, s, t, x))
        masked = (x == self.predictor.vocab)[:, None]
        tokens = log_token + torch.where(masked, unmask, 1 - remask).log()
        return torch.cat([tokens, torch.where(masked, 1 - unmask, remask).log()], dim=-1)

    def _unmask(self, process: Mask, x: Tensor, s: float, t: float, noise: Noise) -> Tensor:
        unmask, remask = self._odds(process, s, t, x)
        free, masked = self.predictor.canvas.free, x == self.predictor.vocab
        chosen = free & masked & (noise.uniform(Stream.STEP, x.shape[1]) < unmask)
        filled = fill(self.predictor, x, chosen, everywhere(x, t), noise)
        if self.within is None:
            return filled
        again = free & ~masked & (noise.uniform(Stream.CORRECT, x.shape[1]) < remask)
        return torch.where(again, self.predictor.vocab, filled)


def fill(
    predictor: Predictor,
    x: Int64[Tensor, "B L"],
    chosen: Bool[Tensor, "B L"],
    t: Float64[Tensor, "B 1"],
    noise: Noise,
) -> Int64[Tensor, "B L"]:
    """Draw the chosen positions from p(x_0 | x_t); the network sees the rows that have some. `-> [B, L]`

    Waits for the device once, to learn which positions these are.
    """
    where = positions(chosen)
    if not len(where[0]):
        return x
    rows = where[0].unique_consecutive()
    predictor.look(x, t, rows if len(rows) < len(x) else None)
    return write(predictor, x, where, noise)


def write(predictor: Predictor, x: Int64[Tensor, "B L"], where: Where, noise: Noise) -> Int64[Tensor, "B L"]:
    """Draw positions from the p(x_0 | x_t) last looked at. `-> [B, L]`"""
    u = noise.uniform(Stream.STEP_VALUE, x.shape[1])[where]

    def read(dynamics: Dynamics, raw: Tensor, x_t: Tensor, now: Tensor, part: slice) -> Tensor:
        return categorical(predictor.log_token(dynamics, raw, x_t, now), u[part])

    return x.index_put(where, predictor.each(where, read))


def denoise(predictor: Predictor, x: Int64[Tensor, "B L"], noise: Noise) -> Int64[Tensor, "B L"]:
    """A jump straight to data at t = 0: what is left where a schedule starts below alpha = 1."""
    live = predictor.canvas.free & predictor.process.live(x, predictor.vocab)
    return fill(predictor, x, live, everywhere(x, 0.0), noise)


def everywhere(x: Int64[Tensor, "B L"], t: float) -> Float64[Tensor, "B 1"]:
    """One time for all rows."""
    return torch.full((x.shape[0], 1), t, dtype=torch.float64, device=x.device)
