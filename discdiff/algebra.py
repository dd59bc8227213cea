"""The algebra of time reversal, once for every process.

At one position, given the rest of the noisy sequence, a model may be read in three ways:

    leave-one-out  w(x)  = p(x_0 = x | x_t without this position)
    posterior      p(x)  = p(x_0 = x | x_t)          proportional to  w(x) q_t(x_t | x)
    score          s(y)  = p_t(y) / p_t(x_t)         = q_t(y | w) / q_t(x_t | w)

where q_t(y | w) = sum over x of w(x) q_t(y | x). From w follow, exactly,

    bridge         p(x_s = y | x_t)  proportional to  q(x_t | x_s = y) q_s(y | w)          for s < t,
    reverse rate   from x_t to y     =  R_t(y -> x_t) s(y).

Shapes: `log_clean` is `[..., V]`, anything over noisy states `[..., K]`, `x_t` and times `[...]`, where times
broadcast.
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from discdiff.processes import Process


def log_posterior(
    process: Process,
    log_clean: Float[Tensor, "*n V"],
    x_t: Int64[Tensor, "*n"],
    t: Float64[Tensor, "*m"],
) -> Float[Tensor, "*n V"]:
    """Leave-one-out to posterior. `[..., V] -> [..., V]`"""
    likelihood = process.log_likelihood(x_t, t, log_clean.shape[-1], log_clean.dtype)
    return (log_clean + likelihood).log_softmax(-1)


def log_clean_from_posterior(
    process: Process,
    logits: Float[Tensor, "*n V"],
    x_t: Int64[Tensor, "*n"],
    t: Float64[Tensor, "*m"],
) -> Float[Tensor, "*n V"]:
    """Posterior (unnormalized) to leave-one-out. `[..., V] -> [..., V]`

    Tokens that could not have become x_t are ruled out by the posterior and stay ruled out. With mask noise
    this is MDLM's carry-over: an unmasked token is certain, a masked one is read as it stands.
    """
    likelihood = process.log_likelihood(x_t, t, logits.shape[-1], logits.dtype)
    impossible = likelihood == -torch.inf
    return (logits - likelihood).masked_fill(impossible, -torch.inf).log_softmax(-1)


def log_score_from_clean(
    process: Process,
    log_clean: Float[Tensor, "*n V"],
    x_t: Int64[Tensor, "*n"],
    t: Float64[Tensor, "*m"],
) -> Float[Tensor, "*n K"]:
    """Leave-one-out to score. `[..., V] -> [..., K]`"""
    marginal = process.log_marginal(log_clean, t)
    return marginal - marginal.gather(-1, x_t[..., None])


def log_clean_from_score(
    process: Process, log_score: Float[Tensor, "*n K"], t: Float64[Tensor, "*m"]
) -> Float[Tensor, "*n V"]:
    """Score to leave-one-out. `[..., K] -> [..., V]`"""
    return process.log_unmarginal(log_score.log_softmax(-1), t)


def log_bridge(
    process: Process,
    log_clean: Float[Tensor, "*n V"],
    x_t: Int64[Tensor, "*n"],
    s: Float64[Tensor, "*m"],
    t: Float64[Tensor, "*m"],
) -> Float[Tensor, "*n K"]:
    """log p(x_s | x_t) of a leave-one-out law; of a one-hot law, log q(x_s | x_t, x_0). `[..., V] -> [...,
    K]`
    """
    step = process.log_transition(x_t, s, t, log_clean.shape[-1], log_clean.dtype)
    return (step + process.log_marginal(log_clean, s)).log_softmax(-1)


def reverse_rate(
    process: Process,
    log_score: Float[Tensor, "*n K"],
    x_t: Int64[Tensor, "*n"],
    t: Float64[Tensor, "*m"],
) -> Float[Tensor, "*n K"]:
    """Rates of the reversed jumps out of x_t, zero at x_t itself. `[..., K] -> [..., K]`"""
    into = process.rate(x_t, t, log_score.shape[-1] - process.extra).to(log_score)
    jumps = torch.where(into > 0, into * log_score.exp(), 0)
    return jumps.scatter(-1, x_t[..., None], 0)


def log_one_hot(
    tokens: Int64[Tensor, "*n"], vocab: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*n V"]:
    """The law that is certain of a token. `[...] -> [..., V]`"""
    certain = torch.full((*tokens.shape, vocab), -torch.inf, device=tokens.device, dtype=dtype)
    return certain.scatter_(-1, tokens[..., None], 0)
