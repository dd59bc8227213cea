"""What a sampler asks of the network: predictions at some positions of some rows, edited and counted.

A prediction is a pair (dynamics, raw): the method's own dynamics and raw output, or, where guidance, allowed
tokens or filters have a say, a leave-one-out law that they made of it, and dynamics that read it so.

Positions are given as index tensors, so a step waits for the device once, to learn how many there are.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from discdiff import algebra
from discdiff.chunks import at_once
from discdiff.parameterizations import LeaveOneOut, Parameterization, Posterior
from discdiff.processes import Mask, Process
from discdiff.samplers import filters
from discdiff.samplers.allowed import check_allowed
from discdiff.samplers.cache import Unchanged, changed
from discdiff.samplers.guidance import (
    AnyGuidance,
    Classifier,
    ClassifierBased,
    ClassifierFree,
    labels_of,
    log_ratios,
)
from discdiff.samplers.microbatch import fixed
from discdiff.samplers.reverse import Dynamics
from discdiff.types import Canvas, Condition, DiscdiffError, Network

_CHUNK = 2**24
"""Logits that the head writes at once; they are read in pieces that a cache holds."""
_NEVER = -1e30
"""A log-probability that counts as none, unless nothing else is allowed."""

Where = tuple[Tensor, Tensor]
"""Rows and columns of positions."""
Read = Callable[[Dynamics, Tensor, Tensor, Tensor, slice], Tensor]
"""(dynamics, raw [N, W], x_t [N], t [N], which of all positions) -> [N, ...]"""


@runtime_checkable
class Reversible(Dynamics, Protocol):
    """A method whose forward process is discrete: what a sampler needs of it."""

    @property
    def parameterization(self) -> Parameterization: ...

    tokens_alike: ClassVar[bool]


@dataclass(frozen=True)
class Edited:
    """The reverse dynamics of a leave-one-out law, whatever head it was read off."""

    process: Process

    def log_bridge(self, raw: Tensor, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return algebra.log_bridge(self.process, raw, x_t, s, t)

    def rates(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        log_score = algebra.log_score_from_clean(self.process, raw, x_t, t)
        return algebra.reverse_rate(self.process, log_score, x_t, t)

    def log_denoise(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return algebra.log_posterior(self.process, raw, x_t, t)


class Predictor:
    """A network on a canvas, as one method reads it. `look` evaluates it, `each` reads what it said.

    `evaluations` counts, for each row, the evaluations of the network it took part in; `calls` counts the
    calls.
    """

    def __init__(
        self,
        method: Reversible,
        net: Network,
        canvas: Canvas,
        *,
        guidance: AnyGuidance | None = None,
        filtering: tuple[filters.AnyFilter, ...] = (),
        cache: Unchanged | None = None,
        microbatch: int | None = None,
    ):
        self.method, self.net, self.canvas = method, net, canvas
        self.process, self.vocab = method.process, net.vocab
        self.mask = scheduled_mask(method)
        self.guidance, self.filtering, self.microbatch = guidance, filtering, microbatch
        self.edits = guidance is not None or bool(filtering) or canvas.allowed is not None
        self.evaluations = torch.zeros(canvas.shape[0], dtype=torch.int64, device=canvas.tokens.device)
        self.calls = 0
        self.x, self.t = canvas.tokens, torch.zeros(0, 1, dtype=torch.float64)
        self._rows: Tensor | None = None
        self._hidden: list[Tensor] = []
        self._conditions = _conditions(canvas, guidance)
        self._clean_context = not isinstance(self.process, Mask) and not bool(canvas.free.all())
        self._cache = cache
        if cache is not None:
            cache.check(net)
        check_allowed(canvas, method.tokens_alike)

    @torch.no_grad()
    def look(
        self, x: Int64[Tensor, "B L"], t: Float64[Tensor, "B 1"], rows: Int64[Tensor, "R"] | None = None
    ) -> None:
        """Evaluate the network at time t, on `rows` of the batch alone if given and if the network can.

        Context is data, so unless noise masks, its own time is 0.
        """
        if getattr(self.net, "whole_batch", False):
            rows = None
        if self._clean_context:
            t = torch.where(self.canvas.free, t, 0)
        if self._cache is not None and self._hidden:
            self._refresh(changed(self.x, x), x, t)
        else:
            self._hidden = self._evaluate(x, t, rows)
            self._rows = None if rows is None else _places(rows, x.shape[0])
        self.x, self.t = x, t

    def _evaluate(self, x: Tensor, t: Tensor, rows: Tensor | None) -> list[Tensor]:
        count = len(self._conditions)
        self.calls += count
        if rows is None:
            self.evaluations += count
        else:
            self.evaluations[rows] += count
            x, t = x[rows], t[rows]
        conditions = [c if rows is None else c.taken(rows) for c in self._conditions]
        return [fixed(self.net.trunk, self.microbatch, x, t, condition) for condition in conditions]

    def _refresh(self, rows: Tensor, x: Tensor, t: Tensor) -> None:
        if len(rows):
            fresh = self._evaluate(x, t, rows)
            if len(rows) == len(x):
                self._hidden = fresh
                return
            for kept, new in zip(self._hidden, fresh, strict=True):
                kept.index_copy_(0, rows, new)

    def each(self, where: Where, read: Read) -> Tensor:
        """What `read` makes of the predictions at some positions, some of them at a time. `-> [N, ...]`"""
        size = max(1, _CHUNK // (self.vocab + 1))
        count = max(len(where[0]), 1)
        parts = [part for i in range(0, count, size) for part in self._read(where, slice(i, i + size), read)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @torch.no_grad()
    def _read(self, where: Where, chunk: slice, read: Read) -> list[Tensor]:
        rows, columns = where[0][chunk], where[1][chunk]
        here = rows if self._rows is None else self._rows[rows]
        raws = [fixed(self.net.head, self._heads, hidden[here, columns]) for hidden in self._hidden]
        size = self._piece(raws[0])
        pieces = [slice(i, i + size) for i in range(0, max(len(rows), 1), size)]
        return [
            self._told(
                [raw[piece] for raw in raws],
                rows[piece],
                columns[piece],
                slice(chunk.start + piece.start, chunk.start + piece.start + len(rows[piece])),
                read,
            )
            for piece in pieces
        ]

    def _told(self, raws: list[Tensor], rows: Tensor, columns: Tensor, part: slice, read: Read) -> Tensor:
        """What `read` makes of some logits."""
        x, t = self.x[rows, columns], self.t.expand_as(self.x)[rows, columns]
        if not self.edits:
            return read(self.method, raws[0], x, t, part)
        return read(Edited(self.process), self._edit(raws, x, t, rows, columns), x, t, part)

    def _piece(self, raw: Tensor) -> int:
        """How many positions are read at once; a classifier is asked of as many as there are."""
        several = isinstance(self.guidance, ClassifierBased)
        return max(1, len(raw)) if several else at_once(raw)

    def log_clean(self, dynamics: Dynamics, raw: Tensor, x: Tensor, t: Tensor) -> Float[Tensor, "N V"]:
        """The leave-one-out law of a prediction. `[N, W] -> [N, V]`"""
        if isinstance(dynamics, Edited):
            return raw
        return self.method.parameterization.log_clean(self.process, raw, x, t)

    def log_weights(self, dynamics: Dynamics, raw: Tensor, x: Tensor, t: Tensor) -> Float[Tensor, "N V"]:
        """The leave-one-out law up to a constant. `[N, W] -> [N, V]`"""
        stated = isinstance(self.method.parameterization, LeaveOneOut)
        return raw if stated else self.log_clean(dynamics, raw, x, t)

    def log_token(self, dynamics: Dynamics, raw: Tensor, x: Tensor, t: Tensor) -> Float[Tensor, "N V"]:
        """log p(x_0 | x_t) up to a constant; where noise masks, at masked positions. `[N, W] -> [N, V]`

        A mask rules no token out and weighs none, so there logits are taken as they are.
        """
        read_off = isinstance(self.method.parameterization, Posterior | LeaveOneOut)
        if self.mask is not None and (isinstance(dynamics, Edited) or read_off):
            return raw
        return dynamics.log_denoise(raw, x, t)

    @property
    def _heads(self) -> int | None:
        return None if self.microbatch is None else 64

    def _edit(
        self, raws: list[Tensor], x: Tensor, t: Tensor, rows: Tensor, columns: Tensor
    ) -> Float[Tensor, "N V"]:
        """The leave-one-out law after guidance, allowed tokens and filters. `-> [N, V]`"""
        laws = [self.method.parameterization.log_clean(self.process, raw, x, t) for raw in raws]
        law = self.guidance.combine(laws) if isinstance(self.guidance, ClassifierFree) else laws[0]
        if isinstance(self.guidance, ClassifierBased) and self.mask is not None:
            law = law + self.log_ratios((rows, columns))[:, : self.vocab].to(law)
        if self.canvas.allowed is not None:
            allowed = self.canvas.allowed[rows, columns]
            law = torch.where(allowed, law.clamp_min(_NEVER), -torch.inf)
        return filters.apply(self.filtering, law)

    def log_ratios(self, where: Where) -> Float[Tensor, "N K"]:
        """What the classifier adds to the log-probability of each change of a token. `-> [N, K]`"""
        guidance = cast(ClassifierBased, self.guidance)
        classifier = cast(Classifier, getattr(self.net, "classifier"))  # noqa: B009
        states = self.process.states(self.vocab)
        now = (self.canvas, self.x, self.t)
        return log_ratios(guidance, classifier, *now, where, states, self.microbatch)

    def tilt(self, where: Where, part: slice, log_law: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """The law of a step as a classifier weighs it; unless noise masks, when tokens are weighed
        themselves. `[N, K] -> [N, K]`
        """
        if not isinstance(self.guidance, ClassifierBased) or self.mask is not None:
            return log_law
        return log_law + self.log_ratios((where[0][part], where[1][part])).to(log_law)


def scheduled_mask(method: Reversible) -> Mask | None:
    """The method's noise, if it masks and its schedule alone says when it is undone."""
    return method.process if isinstance(method.process, Mask) and method.tokens_alike else None


def _conditions(canvas: Canvas, guidance: AnyGuidance | None) -> list[Condition]:
    """What the network is shown, once for each evaluation; it always says which rows it is of."""
    if guidance is not None:
        labels_of(canvas)
    condition = canvas.condition
    if condition.rows is None:
        condition = replace(condition, rows=torch.arange(canvas.shape[0], device=canvas.tokens.device))
    if isinstance(guidance, ClassifierFree):
        return guidance.conditions(condition)
    if isinstance(guidance, ClassifierBased):
        return [replace(condition, labels=None)]
    return [condition]


def check_network(net: Network, guidance: AnyGuidance | None) -> None:
    """Raises DiscdiffError where guidance needs what the network lacks."""
    if isinstance(guidance, ClassifierBased) and not isinstance(getattr(net, "classifier", None), nn.Module):
        raise DiscdiffError(
            "classifier-based guidance needs a classifier of noisy sequences: give Guided(network, it)"
        )


def positions(chosen: Bool[Tensor, "B L"]) -> Where:
    """Rows and columns of the chosen positions; waits for the device to count them."""
    rows, columns = chosen.nonzero(as_tuple=True)
    return rows, columns


def _places(rows: Int64[Tensor, "R"], batch: int) -> Int64[Tensor, "B"]:
    """Where each row of the batch stands among `rows`. `-> [B]`"""
    places = torch.zeros(batch, dtype=torch.int64, device=rows.device)
    return places.index_copy(0, rows, torch.arange(len(rows), device=rows.device))
