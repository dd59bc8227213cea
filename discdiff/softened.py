"""The softened sum of `sums` on a processor's cores, each row of logits in one pass through their caches.

With `top` the greatest entry but raw(x_t), `share(y) = exp(raw(y) - top)` for y != x_t, and kappa scaled so
that kappa share(y) is what `sums` calls kappa w(y):

    around   = top + log sum share
    softened = log prod (1 + kappa share)

The product is taken in double precision, some factors at a time. Its exponent is then set aside as an
integer, so that it never overflows, and one logarithm does for a row. A product near 1 would leave of its
factors only what stands behind the 1: there the first two terms of the logarithm's series in kappa are taken.

This file imports Numba, which takes a quarter of a second: import it where it is called.
"""

import math
import threading
from functools import partial

import numba
import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from numba import prange
from torch import Tensor

from discdiff.compiled import compiled

_REORDERED = frozenset({"reassoc", "contract", "nsz"})
"""Sums may be taken in another order and products fused; that there are no NaNs must not be supposed."""
_LOCK = threading.Lock()
"""Not every way in which Numba may run threads bears two callers."""
_NEVER = -1e30
_LITTLE = 4e-4
"""Below this the series' third term is less than a float shows, and above it what the product loses."""
_LANES = 64
_FACTORS = 8
"""kappa share is at most 1e30, so that the factors of one lane reach 1e240."""
_LOG2_E = np.float32(1 / math.log(2))
_LOG_2 = np.float32(math.log(2))
_TAYLOR = tuple(np.float32(1 / math.factorial(k)) for k in range(6, -1, -1))
_LEAST = np.float32(-126)
"""2 to this power is the least float that has all its digits; what is less counts as zero."""
_BIAS, _DIGITS = np.int32(127), np.int32(23)
"""Of a float's exponent, and of its fraction."""
_BIAS_OF_DOUBLES, _DIGITS_OF_DOUBLES = 1023, 52
_FRACTION = 2**_DIGITS_OF_DOUBLES - 1
_ONE = _BIAS_OF_DOUBLES << _DIGITS_OF_DOUBLES


def around_and_softened(
    raw: Float32[Tensor, "n V"],
    x_t: Int64[Tensor, "n"],
    tilt: Float64[Tensor, "n"],
    log_kappa: Float64[Tensor, "n"],
) -> tuple[Float32[Tensor, "n"], Float32[Tensor, "n"]]:
    """`sums`' numbers of those names, without gradients, on as many threads as torch uses. `[n, V] -> [n]`

    kappa is at most 1e30.
    """
    found = np.empty((2, len(raw)), np.float32)
    columns = [x.detach().contiguous().numpy() for x in (raw, x_t, tilt, log_kappa)]
    threads = torch.get_num_threads()
    if threads == 1:
        _one_after_another(*columns, *found)
    else:
        with _LOCK:
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # pyright: ignore
            _side_by_side(*columns, *found)
            torch.set_num_threads(threads)  # the threads that Numba starts change torch's number
    around, softened = torch.from_numpy(found)
    return around, softened


# Two functions, since Numba keeps code on disk by its function, whatever the options; and since one thread
# must not start others, which would take cores that belong to other processes.


@partial(compiled, fastmath=_REORDERED)
def _one_after_another(
    raw: np.ndarray,
    x_t: np.ndarray,
    tilt: np.ndarray,
    log_kappa: np.ndarray,
    around: np.ndarray,
    softened: np.ndarray,
) -> None:
    """Write `around` and `softened` of rows of logits. `[n, V], [n], [n], [n] -> [n], [n]`"""
    for i in range(len(raw)):
        around[i], softened[i] = _row(raw[i], x_t[i], tilt[i], log_kappa[i])


@partial(compiled, parallel=True, fastmath=_REORDERED)
def _side_by_side(
    raw: np.ndarray,
    x_t: np.ndarray,
    tilt: np.ndarray,
    log_kappa: np.ndarray,
    around: np.ndarray,
    softened: np.ndarray,
) -> None:
    """The same on several threads."""
    for i in prange(len(raw)):
        around[i], softened[i] = _row(raw[i], x_t[i], tilt[i], log_kappa[i])


@partial(compiled, fastmath=_REORDERED)
def _row(raw: np.ndarray, here: int, tilt: float, log_kappa: float) -> tuple[float, float]:
    """`around` and `softened` of one row. `[V]`"""
    vocab = len(raw)
    share = np.empty((-(-vocab // (_FACTORS * _LANES)), _FACTORS, _LANES), np.float32)
    row, at_t = share.reshape(-1), _NEVER
    row[:vocab] = raw
    row[vocab:] = -np.inf
    if here < vocab:
        at_t = np.float64(raw[here])
        row[here] = -np.inf
    top = _greatest(share)
    log_sum = np.log(_shares(share, top))
    log_norm = np.logaddexp(top + log_sum, at_t + tilt)
    kappa = np.exp(log_kappa + top - log_norm)
    little = kappa * np.exp(log_sum) < _LITTLE
    return top + log_sum, _series(row, kappa) if little else _product(share, kappa)


# A row lies in blocks of lanes, `[blocks, factors, lanes]`, filled up with what adds nothing. A compiler
# makes vector instructions of the loops over lanes.


@partial(compiled, fastmath=_REORDERED)
def _greatest(raw: np.ndarray) -> np.float32:
    """The greatest entry, no less than -1e30."""
    tops = np.full(_LANES, np.float32(_NEVER))
    for b in range(len(raw)):
        for k in range(_FACTORS):
            for lane in range(_LANES):
                entry = raw[b, k, lane]
                tops[lane] = entry if entry > tops[lane] else tops[lane]
    return tops.max()


@partial(compiled, fastmath=_REORDERED)
def _shares(raw: np.ndarray, top: np.float32) -> np.float64:
    """Write exp(raw - top) in the place of raw, and add it up.

    exp x = 2^n exp f, with f of at most log(2) / 2, and its exponential by Taylor's series.
    """
    totals = np.zeros(_LANES)
    part = np.empty(_LANES, np.float32)
    for b in range(len(raw)):
        part[:] = 0
        for k in range(_FACTORS):
            for lane in range(_LANES):
                x = (raw[b, k, lane] - top) * _LOG2_E
                n = np.int32(x - np.float32(0.5))
                f = (x - np.float32(n)) * _LOG_2
                e = _TAYLOR[0]
                e = e * f + _TAYLOR[1]
                e = e * f + _TAYLOR[2]
                e = e * f + _TAYLOR[3]
                e = e * f + _TAYLOR[4]
                e = e * f + _TAYLOR[5]
                e = e * f + _TAYLOR[6]
                power = np.int32((n + _BIAS) << _DIGITS).view(np.float32)
                share = np.float32(0) if x < _LEAST else e * power
                raw[b, k, lane] = share
                part[lane] += share
        for lane in range(_LANES):
            totals[lane] += part[lane]
    return totals.sum()


@partial(compiled, fastmath=_REORDERED)
def _series(share: np.ndarray, kappa: np.float64) -> np.float64:
    """sum log(1 + kappa share), to the square of kappa."""
    total = squares = 0.0
    for v in range(len(share)):
        w = np.float64(share[v])
        total += w
        squares += w * w
    return kappa * total - kappa * kappa * squares / 2


@partial(compiled, fastmath=_REORDERED)
def _product(share: np.ndarray, kappa: np.float64) -> np.float64:
    """log prod (1 + kappa share)."""
    if np.isnan(kappa):
        return np.float64(np.nan)
    product = np.ones(_LANES)
    exponent = np.zeros(_LANES, np.int64)
    for b in range(len(share)):
        for lane in range(_LANES):
            p = product[lane]
            for k in range(_FACTORS):
                p *= 1 + kappa * share[b, k, lane]
            bits = np.float64(p).view(np.int64)
            exponent[lane] += (bits >> _DIGITS_OF_DOUBLES) - _BIAS_OF_DOUBLES
            product[lane] = np.int64(bits & _FRACTION | _ONE).view(np.float64)
    return np.log(product.prod()) + math.log(2) * exponent.sum()
