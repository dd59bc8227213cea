"""Draws from the bridge of noise that mixes a token with uniform tokens and masks, a part at a time.

The step from s to t keeps a state with probability k and else makes x_t of any state with probability f. With
w the law of the clean token the bridge is a mixture of four:

    p(x_s = y | x_t)  proportional to  (f + k [y = x_t]) q_s(y | w)
                =  f alpha_s w(y)  +  f u_s  +  f m_s [y = mask]  +  k q_s(x_t | w) [y = x_t].

Which part it is takes w(x_t) alone, and staying is least likely where w(x_t) = 0. A position that would stay
even then stays, whatever the network says, and the head is not asked of it: small steps ask it of few. The
large draw, from w, is made where it is asked for.
"""

from typing import cast

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from discdiff.noise import Cumulative
from discdiff.processes import Interpolating
from discdiff.samplers.predictor import Predictor, Where
from discdiff.samplers.reverse import Dynamics


def bridge(
    predictor: Predictor, where: Where, s: float, u: Float64[Tensor, "N"], value: Float64[Tensor, "N"]
) -> Int64[Tensor, "N"]:
    """x_s at positions, after `look` at (x_t, t): `u` asks which part, `value` which token. `-> [N]`"""
    process, vocab = cast(Interpolating, predictor.process), predictor.vocab
    now = predictor.x[where]
    least = _shares(process, now, predictor.t.expand_as(predictor.x)[where], s, torch.zeros_like(u), vocab)
    asked = (u * least[:, -1] < least[:, 2]).nonzero()[:, 0]
    if not len(asked):
        return now
    there = (where[0][asked], where[1][asked])
    return now.index_copy(0, asked, mixed(predictor, there, s, u[asked], value[asked]))


def mixed(
    predictor: Predictor, where: Where, s: float, u: Float64[Tensor, "N"], value: Float64[Tensor, "N"]
) -> Int64[Tensor, "N"]:
    """The same draws, with the head asked of all these positions. `-> [N]`"""
    process, vocab = cast(Interpolating, predictor.process), predictor.vocab

    def read(dynamics: Dynamics, raw: Tensor, x: Tensor, t: Tensor, part: slice) -> Tensor:
        law = Cumulative.of(predictor.log_weights(dynamics, raw, x, t))
        shares = _shares(process, x, t, s, law.share(x.clamp_max(vocab - 1)), vocab)
        chosen = (u[part, None] * shares[:, -1:] >= shares[:, :-1]).sum(-1)
        tokens = torch.stack(
            [law.draw(value[part]), (value[part] * vocab).long(), torch.full_like(x, vocab), x]
        )
        return tokens.gather(0, chosen[None])[0]

    return predictor.each(where, read)


def _shares(
    process: Interpolating, x: Tensor, t: Tensor, s: float, here: Tensor, vocab: int
) -> Float64[Tensor, "N 4"]:
    """The weights of a token of w, any token, the mask, staying, added up; `here` is w(x_t). `-> [N, 4]`"""
    before, now = process.levels(torch.full_like(t, s), vocab), process.levels(t, vocab)
    keep = now.alpha / before.alpha
    masked = x == vocab
    floor = torch.where(masked, now.mask - keep * before.mask, now.uniform - keep * before.uniform)
    floor = floor.clamp_min(0)
    same = torch.where(masked, before.mask, before.alpha * here + before.uniform)
    parts = (floor * before.alpha, floor * before.uniform * vocab, floor * before.mask, keep * same)
    return torch.stack(parts, dim=-1).cumsum(-1)
