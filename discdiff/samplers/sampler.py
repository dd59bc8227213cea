"""Sampling from discrete diffusion: a grid of times, a reverse step, and what may be added to them.

    grid        at which times the network is asked                    discdiff.samplers.grid
    reverse     the law of x_s given x_t                                discdiff.samplers.reverse
    order       mask noise: which tokens a step fills                   discdiff.samplers.orders
    filters     what is cut from the law of the clean token             discdiff.samplers.filters
    corrector   moves that undo earlier mistakes                        discdiff.samplers.correctors
    guidance    towards a class                                         discdiff.samplers.guidance
    cache       what need not be evaluated again                        discdiff.samplers.cache
    windows     for sequences longer than the network knows             discdiff.samplers.windows

Each is a value; parts that contradict each other are refused when a sampler is made, and those that a
method's noise can't take by `check`, before anything is evaluated.

Context and allowed tokens are enforced on the laws that are drawn from. For mask noise context is conditioned
on exactly; for other noise it is told to the network as data, at time 0, and is then exact too. Allowed
tokens restrict each position's law by itself.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Int64
from pydantic import Field, model_validator
from torch import Tensor

from discdiff.noise import Noise
from discdiff.processes import Interpolating, Mask, Process, Uniform
from discdiff.samplers.cache import Unchanged
from discdiff.samplers.correctors import After, AnyCorrector, FlowCorrector, ForwardBackward, Remask, Within
from discdiff.samplers.filters import AnyFilter
from discdiff.samplers.grid import AnyGrid, Even, Held
from discdiff.samplers.guidance import AnyGuidance, ClassifierBased, ClassifierFree
from discdiff.samplers.orders import AnyOrder, EntropyBudget
from discdiff.samplers.predictor import Predictor, Reversible, check_network
from discdiff.samplers.reverse import Ancestral, AnyReverse, FirstHitting, FlowEuler, GreedyTail
from discdiff.samplers.steps import Step, denoise
from discdiff.samplers.sweeps import sweep
from discdiff.samplers.trace import Observer, nobody, within
from discdiff.samplers.unmasking import hit, in_order
from discdiff.samplers.windows import Windows, cut
from discdiff.types import Canvas, DiscdiffError, Network, Value

_WINDOW = 2**20
"""Numbers of steps that a window has for itself."""


@dataclass(frozen=True)
class Draw:
    """Samples, the network evaluations that each row took part in, and the calls of the network."""

    tokens: Int64[Tensor, "B L"]
    evaluations: Int64[Tensor, "B"]
    calls: int


class Sampler(Value, frozen=True):
    """From t = 1 to t = 0 in `steps` steps.

    `microbatch`: call the network with exactly so many rows at a time, so that its rounding doesn't depend on
    what a row is batched with.
    """

    kind: Literal["reverse"] = "reverse"
    steps: int = Field(default=64, ge=1)
    grid: AnyGrid = Even()
    reverse: AnyReverse = Ancestral()
    order: AnyOrder | None = None
    filters: tuple[AnyFilter, ...] = ()
    corrector: AnyCorrector | None = None
    guidance: AnyGuidance | None = None
    cache: Unchanged | None = None
    windows: Windows | None = None
    microbatch: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _composes(self) -> "Sampler":
        for refused, why in _contradictions(self):
            if refused:
                raise DiscdiffError(why)
        self.grid.times(self.steps)
        return self

    def check(self, method: Any) -> None:
        """Raises DiscdiffError, with the reason, for a method that this sampler can't draw from."""
        if not isinstance(method, Reversible):
            raise DiscdiffError(
                f"{getattr(method, 'kind', type(method).__name__)} has no discrete noise to reverse: "
                "use the method's default_sampler"
            )
        for refused, why in _mismatches(self, method):
            if refused:
                name = getattr(method, "kind", type(method).__name__)
                raise DiscdiffError(f"{why}; {name} has {_name(method.process)}")

    def evaluations(self, length: int) -> int:
        """Evaluations of the network for a sequence, at most; one more where a schedule starts below alpha =
        1.

        With mask noise there may be fewer, since a step that unmasks nothing asks nothing.
        """
        several = isinstance(self.guidance, ClassifierFree) and self.guidance.strength not in (0, 1)
        if self.windows is None:
            return self._steps(length) * (1 + self._sweeps) * (1 + several)
        spans = self.windows.spans(length)
        new = [stop - before for (_, before), (_, stop) in pairwise([(0, 0), *spans])]
        return sum(self._steps(n) for n in new) * (1 + self._sweeps) * (1 + several)

    def _steps(self, length: int) -> int:
        adaptive = isinstance(self.reverse, FirstHitting) or isinstance(self.order, EntropyBudget)
        return length if adaptive else self.steps

    @property
    def _sweeps(self) -> int:
        return self.corrector.sweeps if isinstance(self.corrector, After) else 0

    def times(self) -> list[float]:
        """t_0 = 1 > t_1 > ... > t_n = 0."""
        return self.grid.times(self.steps)

    def run(
        self,
        method: Reversible,
        net: Network,
        canvas: Canvas,
        noise: Noise,
        observe: Observer = nobody,
    ) -> Int64[Tensor, "B L"]:
        """Fill the free positions of a canvas; its context is never touched. `-> [B, L]`"""
        return self.draw(method, net, canvas, noise, observe).tokens

    @torch.no_grad()
    def draw(
        self,
        method: Reversible,
        net: Network,
        canvas: Canvas,
        noise: Noise,
        observe: Observer = nobody,
    ) -> Draw:
        """Fill the free positions and say what it took. Rows of `noise` are those of the canvas."""
        self.check(method)
        check_network(net, self.guidance)
        length = canvas.shape[1]
        spans = [(0, length)] if self.windows is None else self.windows.spans(length)
        x, done, calls = canvas.tokens, 0, 0
        evaluations = torch.zeros(canvas.shape[0], dtype=torch.int64, device=x.device)
        for index, (start, stop) in enumerate(spans):
            predictor = self.predictor(method, net, cut(canvas, x, start, stop, done))
            seen = within(observe, canvas, x, start, net.vocab)
            here = self._fill(predictor, noise.at(noise.step + index * _WINDOW), seen)
            x, done, calls = (
                torch.cat([x[:, :start], here, x[:, stop:]], dim=1),
                stop,
                calls + predictor.calls,
            )
            evaluations = evaluations + predictor.evaluations
        return Draw(x, evaluations, calls)

    def predictor(self, method: Reversible, net: Network, canvas: Canvas) -> Predictor:
        """The network as this sampler asks it."""
        return Predictor(
            method,
            net,
            canvas,
            guidance=self.guidance,
            filtering=self.filters,
            cache=self.cache,
            microbatch=self.microbatch,
        )

    def step(self, predictor: Predictor) -> Step:
        """One step of this sampler, by its law or as a draw. Raises DiscdiffError where it takes none."""
        if isinstance(self.reverse, FirstHitting) or self.order is not None:
            raise DiscdiffError("first hitting and orders choose tokens and have no law of a step by itself")
        return Step(predictor, self.reverse, self.corrector if isinstance(self.corrector, Within) else None)

    def _fill(self, predictor: Predictor, noise: Noise, observe: Observer) -> Int64[Tensor, "B L"]:
        process, canvas = predictor.process, predictor.canvas
        prior = process.prior((canvas.shape[0], canvas.shape[1]), predictor.vocab, noise)
        x = torch.where(canvas.free, prior, canvas.tokens)
        observe(1.0, x)
        if predictor.mask is not None and isinstance(self.reverse, FirstHitting):
            return hit(predictor, predictor.mask, x, noise, observe)
        if predictor.mask is not None and self.order is not None:
            return in_order(predictor, predictor.mask, self.order, x, self.times(), noise, observe)
        return self._follow(predictor, x, noise, observe)

    def _follow(
        self, predictor: Predictor, x: Int64[Tensor, "B L"], noise: Noise, observe: Observer
    ) -> Int64[Tensor, "B L"]:
        """Step through the grid, with sweeps behind each step."""
        step, each = self.step(predictor), 1 + self._sweeps
        for index, (t, s) in enumerate(pairwise(self.times())):
            first = noise.step + index * each
            x = step.draw(x, s, t, noise.at(first))
            if isinstance(self.corrector, After) and self.corrector.stop <= s and t <= self.corrector.start:
                for number in range(self._sweeps):
                    x = sweep(self.corrector, step, x, s, t, noise.at(first + 1 + number))
            observe(s, x)
        start, _ = predictor.process.ends
        if start == 1:
            return x
        x = denoise(predictor, x, noise.at(noise.step + self.steps * each))
        observe(0.0, x)
        return x


def _contradictions(sampler: Sampler) -> list[tuple[bool, str]]:
    """Parts that can't be combined with each other, whatever the method."""
    hitting, ordered = isinstance(sampler.reverse, FirstHitting), sampler.order is not None
    corrector, ancestral = sampler.corrector, sampler.reverse == Ancestral()
    within = isinstance(corrector, Within)
    flow = isinstance(corrector, FlowCorrector)
    return [
        (hitting and ordered, "first hitting fills tokens in random order: leave the order out"),
        (hitting and sampler.grid != Even(), "first hitting draws its own times: leave the grid out"),
        (
            hitting and corrector is not None,
            "rows of first hitting are at different times: leave the corrector out",
        ),
        (
            hitting and sampler.cache is not None,
            "first hitting changes a token at each step: leave the cache out",
        ),
        (ordered and not ancestral, "an order says which tokens a step fills: set reverse to ancestral"),
        (ordered and corrector is not None, "tokens filled in an order are final: leave the corrector out"),
        (
            ordered and isinstance(sampler.grid, Held),
            "an order fills nothing while time stands still: take another grid",
        ),
        (
            within and not flow and not ancestral,
            f"{_kind(corrector)} widens the ancestral step: set reverse to ancestral",
        ),
        (
            flow and not isinstance(sampler.reverse, FlowEuler),
            "flow_corrector widens the flow step: set reverse to flow",
        ),
        (
            isinstance(sampler.grid, Held) and (corrector is None or flow),
            "nothing moves while time stands still but remask, psi, forward_backward or gibbs: "
            "set one as corrector, or take another grid",
        ),
    ]


def _mismatches(sampler: Sampler, method: Reversible) -> list[tuple[bool, str]]:
    """Parts that a method's noise can't take."""
    process = method.process
    mask, fixed = isinstance(process, Mask), isinstance(process, Mask | Uniform)
    edits = sampler.filters or sampler.guidance or sampler.corrector or sampler.order
    plain = not edits and not isinstance(sampler.reverse, FirstHitting | FlowEuler)
    return [
        (
            not method.tokens_alike and not plain,
            "noise that treats tokens differently takes ancestral and euler steps, and no order, filters, "
            "corrector or guidance",
        ),
        (isinstance(sampler.reverse, FirstHitting) and not mask, "first_hitting undoes mask noise"),
        (isinstance(sampler.reverse, GreedyTail) and mask, "the greedy tail needs noise that changes tokens"),
        (isinstance(sampler.reverse, FlowEuler) and not fixed, "the flow step needs mask or uniform noise"),
        (sampler.order is not None and not mask, "an order needs mask noise"),
        (isinstance(sampler.corrector, Remask) and not mask, "remask needs mask noise: use psi"),
        (
            isinstance(sampler.corrector, ForwardBackward) and not isinstance(process, Interpolating),
            "forward_backward needs mask, uniform or hybrid noise",
        ),
        (
            isinstance(sampler.guidance, ClassifierBased) and not fixed,
            "classifier_based guidance needs mask or uniform noise",
        ),
        (
            sampler.cache is not None and mask,
            "with mask noise a step that changes no token asks nothing of the network: leave the cache out",
        ),
    ]


def _kind(part: Any) -> str:
    return getattr(part, "kind", "none")


def _name(process: Process) -> str:
    return f"{getattr(process, 'kind', type(process).__name__)} noise"
