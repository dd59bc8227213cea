"""Noise by any rate matrix: q_t(y | x) = exp(sigma_t R)(x, y), with sigma = -log alpha of the schedule.

D3PM's structured kernels (Austin et al. 2021, arXiv:2107.03006) in continuous time: every transition is
exp((sigma_t - sigma_s) R), the rate of jumping is sigma'_t R, and with `Complete` this is uniform noise.
Draws simulate jumps, so that nothing of size V is made for a token: their number is Poisson, and each goes to
a neighbor.
"""

from functools import lru_cache
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from pydantic import model_validator
from torch import Tensor

from discdiff.noise import Noise, Stream
from discdiff.processes.exponential import AnyRoute, Basis, Eigenbasis, Series, poisson
from discdiff.processes.kernels import AnyKernel, Gaussian, Generator
from discdiff.schedules import AnySchedule, Linear
from discdiff.types import DiscdiffError, Value


class Matrix(Value, frozen=True):
    """Tokens are exchanged for others at the rates of a kernel."""

    kind: Literal["matrix"] = "matrix"
    extra: ClassVar[int] = 0
    kernel: AnyKernel = Gaussian()
    route: AnyRoute = Eigenbasis()
    schedule: AnySchedule = Linear()

    @model_validator(mode="after")
    def _ends(self) -> "Matrix":
        if self.schedule.ends[1] == 0 and not isinstance(self.route, Eigenbasis):
            raise DiscdiffError(
                "uniformization needs a finite amount of noise and the schedule ends at alpha = 0: "
                "cut its end off, as by Linear(eps=1e-3), or take the eigenbasis"
            )
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """alpha at t = 0 and t = 1."""
        return self.schedule.ends

    def states(self, vocab: int) -> int:
        """K, the number of noisy states."""
        return vocab + self.extra

    def alpha(self, t: Tensor) -> Tensor:
        """exp(-sigma) at t."""
        return self.schedule.alpha(t)

    def live(self, x_t: Int64[Tensor, "*n"], vocab: int) -> Bool[Tensor, "*n"]:
        """Everywhere."""
        return torch.ones_like(x_t, dtype=torch.bool)

    def corrupt(
        self, x0: Int64[Tensor, "B L"], t: Float64[Tensor, "B _"], vocab: int, noise: Noise
    ) -> Int64[Tensor, "B L"]:
        """Draw x_t from q_t(. | x0) by its jumps, or where noise has no end from the law itself. `[B, L] ->
        [B, L]`
        """
        sigma = self._sigma(t).expand(x0.shape)
        endless = sigma.isinf()
        jumped = self._jump(x0, torch.where(endless, 0, sigma), vocab, noise)
        if not bool(endless.any()):
            return jumped
        law = self.log_marginal(_one_hot(x0[endless], vocab), t.expand(x0.shape)[endless]).exp()
        u = noise.uniform(Stream.CORRUPT_VALUE, x0.shape[1])[endless]
        at_rest = torch.searchsorted(law.cumsum(-1), (u * law.sum(-1))[:, None], right=True)[:, 0]
        return jumped.masked_scatter(endless, at_rest.clamp_max(law.shape[-1] - 1))

    def _jump(self, x: Tensor, sigma: Tensor, vocab: int, noise: Noise) -> Tensor:
        rates, length = self._rates(vocab), x.shape[1]
        table = Jumps.of(rates, x.device)
        mean = (table.rate * sigma).flatten()
        most = Series.terms_of(mean.max().item(), 1e-15)
        cdf = poisson(mean, most).cumsum(-1)
        u = noise.uniform(Stream.CORRUPT, length).flatten()
        jumps = torch.searchsorted(cdf, u[:, None], right=True)[:, 0].reshape(x.shape)
        draws = noise.uniform(Stream.CORRUPT_VALUE, max(int(jumps.max()), 1), length)
        for k in range(int(jumps.max())):
            x = torch.where(k < jumps, table.next(x, draws[:, k]), x)
        return x

    def prior(self, shape: tuple[int, int], vocab: int, noise: Noise) -> Int64[Tensor, "B L"]:
        """Draw from the law that sampling starts from: q_1 of a uniform token. `-> [B, L]`"""
        token = (noise.uniform(Stream.PRIOR_VALUE, shape[1]) * vocab).long().expand(shape)
        one = torch.ones(shape[0], 1, dtype=torch.float64, device=token.device)
        return self.corrupt(token, one, vocab, noise)

    def log_marginal(
        self, log_clean: Float[Tensor, "*n V"], t: Float64[Tensor, "*m"]
    ) -> Float[Tensor, "*n K"]:
        """Push a distribution of tokens forward to time t. `[..., V] -> [..., K]`"""
        p = torch.nn.functional.pad(log_clean.exp(), (0, self.extra))
        return self._apply(p, self._sigma(t), log_clean.shape[-1], columns=False).log()

    def log_unmarginal(
        self, log_noisy: Float[Tensor, "*n K"], t: Float64[Tensor, "*m"]
    ) -> Float[Tensor, "*n V"]:
        """The distribution of tokens whose marginal at t this is, through the eigenbasis. `[..., K] -> [...,
        V]`
        """
        if not isinstance(self.route, Eigenbasis):
            raise DiscdiffError(
                "a score can't be read as a law of tokens where the matrix is only known by its sparse rows: "
                "take a leave-one-out or posterior head, Euler steps, or the eigenbasis"
            )
        vocab = log_noisy.shape[-1] - self.extra
        clean = self._apply(log_noisy.exp(), -self._sigma(t), vocab, columns=False)[..., :vocab]
        clean = clean.clamp_min(torch.finfo(clean.dtype).tiny)
        return (clean / clean.sum(-1, keepdim=True)).log()

    def log_likelihood(
        self, x_t: Int64[Tensor, "*n"], t: Float64[Tensor, "*m"], vocab: int, dtype: torch.dtype
    ) -> Float[Tensor, "*n V"]:
        """log q_t(x_t | x_0 = .). `[...] -> [..., V]`"""
        return self._column(x_t, self._sigma(t), vocab, dtype)[..., :vocab]

    def log_transition(
        self,
        x_t: Int64[Tensor, "*n"],
        s: Float64[Tensor, "*m"],
        t: Float64[Tensor, "*m"],
        vocab: int,
        dtype: torch.dtype,
    ) -> Float[Tensor, "*n K"]:
        """log q(x_t | x_s = .) for s < t. `[...] -> [..., K]`"""
        return self._column(x_t, self._sigma(t) - self._sigma(s), vocab, dtype)

    def rate(self, x_t: Int64[Tensor, "*n"], t: Float64[Tensor, "*m"], vocab: int) -> Float64[Tensor, "*n K"]:
        """R_t(. -> x_t), zero at x_t itself. `[...] -> [..., K]`"""
        speed = -self.schedule.dalpha(t) / self.schedule.alpha(t)
        into = Jumps.of(self._rates(vocab), x_t.device).into(x_t)
        return into * speed.expand(x_t.shape)[..., None]

    def _sigma(self, t: Tensor) -> Tensor:
        return -self.schedule.alpha(t).log()

    def _rates(self, vocab: int) -> Generator:
        return _generator(self.kernel, vocab)

    def _column(self, x_t: Tensor, sigma: Tensor, vocab: int, dtype: torch.dtype) -> Tensor:
        certain = torch.zeros(*x_t.shape, self.states(vocab), dtype=dtype, device=x_t.device)
        certain = certain.scatter_(-1, x_t[..., None], 1)
        return self._apply(certain, sigma, vocab, columns=True).log()

    def _apply(self, p: Tensor, sigma: Tensor, vocab: int, columns: bool) -> Tensor:
        route = _prepared(self.route, self._rates(vocab), p.device)
        flat = p.reshape(-1, p.shape[-1])
        moved = route.apply(flat, sigma.expand(p.shape[:-1]).reshape(-1), columns)
        return moved.reshape(p.shape)


class Jumps:
    """Rows and columns of a generator as padded lists of neighbors on a device, for draws and rates."""

    def __init__(self, rates: Generator, device: torch.device):
        self.states = rates.states
        self.rate = rates.exits().max().item()
        target, out = _padded(rates.source, rates.target, rates.rate, rates.states)
        source, flow = _padded(rates.target, rates.source, rates.rate, rates.states)
        cdf = out.cumsum(-1) / self.rate
        self.target, self.cdf = target.to(device), cdf.to(device)
        self.source, self.flow = source.to(device), flow.to(device)

    @staticmethod
    @lru_cache(maxsize=8)
    def of(rates: Generator, device: torch.device) -> "Jumps":
        return Jumps(rates, device)

    def next(self, x: Tensor, u: Tensor) -> Tensor:
        """One jump of the uniformized chain: to a neighbor, or nowhere."""
        choice = torch.searchsorted(self.cdf[x.flatten()], u.reshape(-1, 1).contiguous(), right=True).reshape(
            x.shape
        )
        stay = choice >= self.target.shape[1]
        moved = self.target[x].gather(-1, choice.clamp_max(self.target.shape[1] - 1)[..., None])[..., 0]
        return torch.where(stay, x, moved)

    def into(self, x: Tensor) -> Tensor:
        """R(. -> x). `[...] -> [..., K]`"""
        dense = torch.zeros(*x.shape, self.states, dtype=torch.float64, device=x.device)
        return dense.scatter_add_(-1, self.source[x], self.flow[x])


def _padded(row: Tensor, column: Tensor, value: Tensor, states: int) -> tuple[Tensor, Tensor]:
    """Sparse rows as `[K, D]` lists, padded by entries of value zero that point at the row itself."""
    order = row.argsort(stable=True)
    row, column, value = row[order], column[order], value[order]
    count = torch.bincount(row, minlength=states)
    place = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
    width = int(count.max())
    columns = torch.arange(states)[:, None].expand(states, width).clone()
    values = torch.zeros(states, width, dtype=torch.float64)
    columns[row, place], values[row, place] = column, value
    return columns, values


def _one_hot(tokens: Tensor, vocab: int) -> Tensor:
    return torch.nn.functional.one_hot(tokens, vocab).double().log()


@lru_cache(maxsize=8)
def _generator(kernel: AnyKernel, vocab: int) -> Generator:
    return kernel.generator(vocab)


@lru_cache(maxsize=8)
def _prepared(route: AnyRoute, rates: Generator, device: torch.device) -> Basis | Series:
    return route.prepare(rates, device)
