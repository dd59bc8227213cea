"""What closed forms need of a row of logits: a few numbers, with gradients that hold one tensor of its size.

With `x_0` and `x_t` two entries of a row and "around" all entries but `x_t` (all, where x_t is no token):

    at_0     = raw(x_0)
    at_t     = raw(x_t), very low where x_t is no token
    around   = log sum over y != x_t of exp raw(y)
    total    = sum over y != x_t of raw(y)                                                 (`with_total`)
    softened = sum over y != x_t of log(1 + kappa w(y)),   w = softmax of raw after `tilt` is added at x_t
                                                                                        (`with_softened`)

Taking x_t apart keeps what is left of a law that is almost sure of it: no difference of near numbers occurs.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_NEVER = -1e30
_MOST = 1e30
"""kappa is cut here, where what it weighs has long been nothing."""
_CACHED = 2**18
"""Entries for each core at once where no gradient is wanted: they and what they become fit its cache."""


class Sums(NamedTuple):
    """The numbers above, each `[...]`; `rest` is the one that the function's name says."""

    at_0: Tensor
    at_t: Tensor
    around: Tensor
    rest: Tensor


def cross_entropy(raw: Float[Tensor, "*n V"], x0: Int64[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """-log softmax(raw)(x_0). `[..., V] -> [...]`"""
    if not torch.is_grad_enabled():
        return _by_rows(_nats, raw, x0)[0]
    return _CrossEntropy.apply(raw, x0)  # pyright: ignore[reportReturnType]


def with_total(raw: Float[Tensor, "*n V"], x0: Int64[Tensor, "*n"], x_t: Int64[Tensor, "*n"]) -> Sums:
    """The entries, their surroundings and their total. `[..., V] -> [...]`"""
    if not torch.is_grad_enabled():
        return Sums(*_by_rows(_total, raw, x0, x_t))
    return Sums(*_Total.apply(raw, x0, x_t))  # pyright: ignore[reportGeneralTypeIssues]


def with_softened(
    raw: Float[Tensor, "*n V"],
    x0: Int64[Tensor, "*n"],
    x_t: Int64[Tensor, "*n"],
    tilt: Tensor,
    log_kappa: Tensor,
) -> Sums:
    """The entries, their surroundings and the softened sum. `[..., V] -> [...]`"""
    if not torch.is_grad_enabled():
        if raw.device.type == "cpu" and raw.dtype == torch.float32:
            return _in_one_pass(raw, x0, x_t, tilt, log_kappa)
        return Sums(*_by_rows(_softened, raw, x0, x_t, tilt, log_kappa))
    return Sums(*_Softened.apply(raw, x0, x_t, tilt, log_kappa))  # pyright: ignore[reportGeneralTypeIssues]


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, raw: Tensor, x0: Tensor) -> Tensor:
        nats, share, whole = _surprise(raw, x0)
        ctx.save_for_backward(share, whole, x0)
        return nats

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, slope: Tensor
    ) -> tuple[Tensor, None]:
        share, whole, x0 = ctx.saved_tensors
        grad = share * (slope / whole)[..., None]
        return grad.scatter_add_(-1, x0[..., None], -slope[..., None]), None


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, raw: Tensor, x0: Tensor, x_t: Tensor) -> tuple[Tensor, ...]:
        numbers, share, whole = _totaled(raw, x0, x_t)
        ctx.save_for_backward(share, whole, x0, x_t)
        return numbers

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *slopes: Tensor
    ) -> tuple[Tensor | None, ...]:
        share, whole, x0, x_t = ctx.saved_tensors
        slope_0, slope_t, slope_around, slope_total = slopes
        grad = share * (slope_around / whole)[..., None]
        grad += slope_total[..., None]
        _add(grad, x_t, torch.where(_token(x_t, share), slope_t - slope_total, 0))
        return _add(grad, x0, slope_0), None, None


class _Softened(Function):
    @staticmethod
    def forward(
        ctx: Any, raw: Tensor, x0: Tensor, x_t: Tensor, tilt: Tensor, log_kappa: Tensor
    ) -> tuple[Tensor, ...]:
        at_t, share, whole, around, scale, w_t, kappa = _weighed(raw, x_t, tilt, log_kappa)
        ctx.save_for_backward(share, scale, w_t, kappa, whole, x0, x_t)
        return _entry(raw, x0), at_t, around, (share * kappa[..., None]).log1p_().sum(-1)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *slopes: Tensor
    ) -> tuple[Tensor | None, ...]:
        share, scale, w_t, kappa, whole, x0, x_t = ctx.saved_tensors
        slope_0, slope_t, slope_around, slope_softened = slopes
        # d log(1 + kappa w(y)) = kappa w(y) / (1 + kappa w(y)) * d log w(y)
        soft = share * kappa[..., None]
        soft /= soft + 1
        pull = slope_softened * soft.sum(-1)
        grad = soft.mul_(slope_softened[..., None])
        grad.addcmul_(share, (slope_around / whole - pull * scale)[..., None])
        _add(grad, x_t, torch.where(_token(x_t, share), slope_t - pull * w_t, 0))
        return _add(grad, x0, slope_0), None, None, None, None


def _surprise(raw: Tensor, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-log softmax(raw)(x_0), and exp(raw - top) with its sum."""
    top = raw.amax(-1, keepdim=True)
    share = (raw - top).exp_()
    whole = share.sum(-1)
    return top[..., 0] + whole.log() - _entry(raw, x0), share, whole


def _nats(raw: Tensor, x0: Tensor) -> tuple[Tensor]:
    return (_surprise(raw, x0)[0],)


def _totaled(raw: Tensor, x0: Tensor, x_t: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """The numbers of `with_total`, and exp(raw - top) around x_t with its sum."""
    at_t, share, top = _apart(raw, x_t)
    whole = share.sum(-1)
    total = raw.sum(-1) - torch.where(_token(x_t, raw), at_t, 0)
    return (_entry(raw, x0), at_t, top + whole.log(), total), share, whole


def _total(raw: Tensor, x0: Tensor, x_t: Tensor) -> tuple[Tensor, ...]:
    return _totaled(raw, x0, x_t)[0]


class _Weighed(NamedTuple):
    """What a law says of x_t, and exp(raw - top) around it; `scale` times that is the law, `kappa` times that
    is softened."""

    at_t: Tensor
    share: Tensor
    whole: Tensor
    around: Tensor
    scale: Tensor
    w_t: Tensor
    kappa: Tensor


def _weighed(raw: Tensor, x_t: Tensor, tilt: Tensor, log_kappa: Tensor) -> _Weighed:
    at_t, share, top = _apart(raw, x_t)
    whole = share.sum(-1)
    around, tilted = top + whole.log(), at_t + tilt.to(raw)
    log_norm = torch.logaddexp(around, tilted)
    scale = (top - log_norm).exp()
    kappa = log_kappa.exp().clamp_max(_MOST).to(raw) * scale
    return _Weighed(at_t, share, whole, around, scale, (tilted - log_norm).exp(), kappa)


def _softened(raw: Tensor, x0: Tensor, x_t: Tensor, tilt: Tensor, log_kappa: Tensor) -> tuple[Tensor, ...]:
    """The numbers of `_Softened` where no gradient is wanted: the shares have then served their turn."""
    found = _weighed(raw, x_t, tilt, log_kappa)
    softened = found.share.mul_(found.kappa[..., None]).log1p_().sum(-1)
    return _entry(raw, x0), found.at_t, found.around, softened


def _in_one_pass(raw: Tensor, x0: Tensor, x_t: Tensor, tilt: Tensor, log_kappa: Tensor) -> Sums:
    """The same on a CPU, which makes no tensor of the size of `raw`."""
    from discdiff.softened import around_and_softened

    log_kappa = log_kappa.double().clamp_max(math.log(_MOST))
    columns = (x.expand(x_t.shape).flatten() for x in (x_t, tilt.double(), log_kappa))
    found = around_and_softened(raw.reshape(-1, raw.shape[-1]), *columns)
    around, softened = (x.view(x_t.shape) for x in found)
    at_t = torch.where(_token(x_t, raw), _entry(raw, x_t.clamp_max(raw.shape[-1] - 1)), _NEVER)
    return Sums(_entry(raw, x0), at_t, around, softened)


def _by_rows(
    function: Callable[..., tuple[Tensor, ...]], raw: Tensor, *columns: Tensor
) -> tuple[Tensor, ...]:
    """A function of rows, on a CPU so few rows at a time that what it makes of them stays in the cores'
    caches. `[..., V], [...] -> [...]`
    """
    size = max(1, _CACHED * torch.get_num_threads() // raw.shape[-1])
    if raw.device.type != "cpu" or raw.ndim != 2 or len(raw) <= size:
        return function(raw, *columns)
    found = [function(*rows) for rows in zip(*(x.split(size) for x in (raw, *columns)), strict=True)]
    return tuple(torch.cat(each) for each in zip(*found, strict=True))


def _apart(raw: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """raw(x_t), and exp(raw - top) with zero at x_t, and top."""
    here, token = x_t.clamp_max(raw.shape[-1] - 1), _token(x_t, raw)
    found = _entry(raw, here)
    share = raw.scatter(-1, here[..., None], torch.where(token, -torch.inf, found)[..., None])
    top = share.amax(-1).clamp_min(_NEVER)
    share.sub_(top[..., None]).exp_()
    return torch.where(token, found, _NEVER), share, top


def _token(x_t: Tensor, raw: Tensor) -> Tensor:
    return x_t < raw.shape[-1]


def _entry(raw: Tensor, index: Tensor) -> Tensor:
    return raw.gather(-1, index[..., None])[..., 0]


def _add(grad: Tensor, index: Tensor, value: Tensor) -> Tensor:
    return grad.scatter_add_(-1, index.clamp_max(grad.shape[-1] - 1)[..., None], value[..., None])
