"""Distributions small enough to enumerate, and the network that infinite training would reach.

A `Law` is any distribution on the V^L sequences of length L. From it follow, by enumeration in float64:

    the exact network of a method    what its raw output is where p(x_0^i | x_t without i) is known
    the exact bound of a method      sum over x_t and an integral over t, nothing drawn
    the exact law of a sampler       its transition matrices on the K^L noisy sequences, multiplied

so that what theory says of a method can be checked to rounding: with the exact network its bound is -log p,
and its sampler's law tends to the data. Cost grows as K^L: V = 3 and L = 3 take milliseconds.
"""

import math
from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor, nn

from discdiff.algebra import log_one_hot
from discdiff.networks import KeyValueCache
from discdiff.networks.encoders import AnyRounding, EmbeddingNetwork, OneHotVectors, TableVectors
from discdiff.noise import Noise, Stream
from discdiff.parameterizations import Parameterization
from discdiff.predictions import AnyPrediction
from discdiff.processes import Interpolating, Mask, Process
from discdiff.processes.gaussian import VariancePreserving
from discdiff.samplers import AnyOrder, FirstHitting, Gibbs, Random, Sampler
from discdiff.samplers.correctors import After
from discdiff.samplers.predictor import Predictor, Reversible, positions
from discdiff.samplers.steps import Step
from discdiff.samplers.sweeps import kept, log_conditional, look_time
from discdiff.samplers.unmasking import expected, masked, plan
from discdiff.schedules import before_one
from discdiff.types import Canvas, Condition, Network, canvas

_NOWHERE = Condition()


@runtime_checkable
class Exact(Protocol):
    """The part of a discrete diffusion that enumeration uses (`discdiff.methods.Diffusion`)."""

    @property
    def process(self) -> Process: ...
    @property
    def parameterization(self) -> Parameterization: ...
    def density(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor: ...
    def reconstruction(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor: ...
    def prior_divergence(self, vocab: int) -> float: ...
    def log_bridge(self, raw: Tensor, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor: ...
    def rates(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor: ...
    def log_denoise(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor: ...


@runtime_checkable
class ExactVectors(Protocol):
    """The part of a diffusion of token vectors that enumeration uses (`discdiff.methods.Embedding`)."""

    @property
    def process(self) -> VariancePreserving: ...
    @property
    def prediction(self) -> AnyPrediction: ...
    @property
    def rounding(self) -> AnyRounding: ...


def every(states: int, length: int) -> Int64[Tensor, "S L"]:
    """All sequences over `states` symbols, in lexicographic order. `-> [states^L, L]`"""
    grid = torch.cartesian_prod(*[torch.arange(states)] * length)
    return grid.reshape(-1, length)


class Law:
    """A distribution on all sequences of a length; `log_p` holds its log-probabilities in lexicographic
    order.
    """

    def __init__(self, log_p: Float64[Tensor, "S"], vocab: int, length: int):
        self.log_p = log_p.log_softmax(-1)
        self.vocab = vocab
        self.length = length
        self.sequences = every(vocab, length)

    @staticmethod
    def random(vocab: int, length: int, seed: int = 0, contrast: float = 1.0) -> "Law":
        """A law with full support and no structure: a softmax of normal logits times `contrast`."""
        logits = Noise(seed).normal(Stream.DATA, vocab**length)[0].double()
        return Law(logits * contrast, vocab, length)

    def log_prob(self, tokens: Int64[Tensor, "B L"]) -> Float64[Tensor, "B"]:
        """log p of sequences, in nats. `[B, L] -> [B]`"""
        return self.log_p[position(tokens, self.vocab)]

    @property
    def entropy(self) -> float:
        """In nats per sequence."""
        return -(self.log_p.exp() * self.log_p).sum().item()

    def log_clean(
        self, process: Process, x_t: Int64[Tensor, "B L"], t: Float64[Tensor, "B _"]
    ) -> Float64[Tensor, "B L V"]:
        """The leave-one-out law p(x_0^i | x_t without i) at every position. `[B, L] -> [B, L, V]`

        A token that noise can't have made (one among masks at t = 1) is context: data.
        """
        likelihood = process.log_likelihood(x_t, t.expand_as(x_t), self.vocab, torch.float64)
        given = (likelihood == -torch.inf).all(-1, keepdim=True) & (x_t < self.vocab)[..., None]
        likelihood = torch.where(given, log_one_hot(x_t.clamp_max(self.vocab - 1), self.vocab), likelihood)
        each = torch.stack([likelihood[:, j, self.sequences[:, j]] for j in range(self.length)], dim=1)
        rows = []
        for i in range(self.length):
            others = [j for j in range(self.length) if j != i]
            joint = self.log_p + each[:, others].sum(1)
            here = [joint[:, self.sequences[:, i] == v].logsumexp(-1) for v in range(self.vocab)]
            rows.append(torch.stack(here, dim=-1))
        return torch.stack(rows, dim=1).log_softmax(-1)

    def log_given(self, log_likelihood: Float64[Tensor, "B L V"]) -> Float64[Tensor, "B L V"]:
        """log p(x^i | evidence) at every position, from what the evidence says of each token. `[B, L, V] ->
        [B, L, V]`
        """
        each = [log_likelihood[:, j, self.sequences[:, j]] for j in range(self.length)]
        joint = self.log_p + torch.stack(each).sum(0)
        rows = [
            torch.stack([joint[:, self.sequences[:, i] == v].logsumexp(-1) for v in range(self.vocab)], -1)
            for i in range(self.length)
        ]
        return torch.stack(rows, dim=1).log_softmax(-1)

    def log_next(self, prefix: Int64[Tensor, "B n"]) -> Float64[Tensor, "B V"]:
        """log p(x_n | x_0 ... x_(n-1)). `[B, n] -> [B, V]`"""
        n = prefix.shape[1]
        match = (self.sequences[None, :, :n] == prefix[:, None]).all(-1)
        joint = self.log_p.masked_fill(~match, -torch.inf)
        here = [joint[:, self.sequences[:, n] == v].logsumexp(-1) for v in range(self.vocab)]
        return torch.stack(here, dim=-1).log_softmax(-1)

    def network(self, method: Exact) -> "OracleNetwork":
        """The network of a discrete diffusion that has nothing left to learn."""

        def raw(x_t: Tensor, t: Tensor) -> Tensor:
            log_clean = self.log_clean(method.process, x_t, t)
            return method.parameterization.express(method.process, log_clean, x_t, t.expand_as(x_t))

        return OracleNetwork(Reverse(raw), self.vocab)

    def vector_network(self, method: ExactVectors, encoder: OneHotVectors | TableVectors) -> EmbeddingNetwork:
        """The network of a diffusion of these vectors that has nothing left to learn."""
        rounding = method.rounding.build(self.vocab, method.process)
        return EmbeddingNetwork(
            self.vocab, PosteriorMean(self, method, encoder), nn.Identity(), encoder, rounding
        )

    def causal_network(self) -> "OracleNetwork":
        """The autoregressive network that has nothing left to learn."""
        return OracleNetwork(Forward(self), self.vocab)


class Labelled:
    """A law for each class, and the probabilities of the classes."""

    def __init__(self, laws: list[Law], shares: list[float]):
        self.laws = laws
        self.log_share = torch.tensor(shares, dtype=torch.float64).log().log_softmax(-1)
        joint = torch.stack([law.log_p for law in laws]) + self.log_share[:, None]
        self.mixture = Law(joint.logsumexp(0), laws[0].vocab, laws[0].length)

    def network(self, method: Exact) -> "OracleNetwork":
        """The network of a diffusion that was shown labels, sometimes none, and has nothing left to learn."""
        parts = [law.network(method).trunk for law in [*self.laws, self.mixture]]
        return OracleNetwork(ByLabel(parts), self.mixture.vocab)

    def classifier(self, process: Process) -> "Bayes":
        """The classifier of noisy sequences that has nothing left to learn."""
        return Bayes(self, process)


class ByLabel(nn.Module):
    """The answer of each label's own trunk; the last is that of no label."""

    def __init__(self, parts: list[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        none = torch.full((len(x),), -1, device=x.device)
        labels = none if condition.labels is None else condition.labels
        answers = torch.stack([part(x, t, condition) for part in self.parts])
        return answers[labels % len(self.parts), torch.arange(len(x))]


class Bayes(nn.Module):
    """log p(label | x_t): `(x [B, L] or its one-hot [B, L, K], t [B, 1]) -> [B, C]`."""

    def __init__(self, labelled: Labelled, process: Process):
        super().__init__()
        self.labelled, self.process = labelled, process

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        vocab, states = self.labelled.mixture.vocab, self.process.states(self.labelled.mixture.vocab)
        tokens = x if x.is_floating_point() else torch.nn.functional.one_hot(x, states).double()
        clean = log_one_hot(torch.arange(vocab), vocab, torch.float64).expand(*t.shape, vocab, vocab)
        forward = self.process.log_marginal(clean, before_one(t)[..., None].expand(*t.shape, vocab)).exp()
        likelihood = (forward @ tokens[..., None])[..., 0].log()
        sequences = self.labelled.mixture.sequences
        each = torch.stack([likelihood[:, i, sequences[:, i]] for i in range(sequences.shape[1])]).sum(0)
        laws = torch.stack([law.log_p for law in self.labelled.laws])
        return ((laws + each[:, None]).logsumexp(-1) + self.labelled.log_share).log_softmax(-1)


class OracleNetwork(nn.Module):
    """A network whose trunk already gives the raw output."""

    def __init__(self, trunk: nn.Module, vocab: int):
        super().__init__()
        self.vocab = vocab
        self.trunk = trunk
        self.head = nn.Identity()

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.trunk(x, t, condition)


class Reverse(nn.Module):
    """The raw output of a diffusion from a function of (x_t, t)."""

    def __init__(self, raw: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.raw = raw

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.raw(x, t)


class PosteriorMean(nn.Module):
    """What a diffusion of vectors predicts, where its estimate is E[e | z_t]; a vector at time 0 is
    certain.
    """

    def __init__(self, law: Law, method: ExactVectors, encoder: OneHotVectors | TableVectors):
        super().__init__()
        self.law, self.method, self.encoder = law, method, encoder

    def forward(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        vectors = self.encoder(torch.arange(self.law.vocab))
        process = self.method.process
        z = z[..., : vectors.shape[-1]]
        signal, left = process.roots(t, z)
        distance = (z[..., None, :] - signal[..., None] * vectors).square().sum(-1)
        at_zero = -(z[..., None, :] - vectors).square().sum(-1) / 1e-6
        evidence = torch.where(t[..., None] == 0, at_zero, -distance / (2 * left**2))
        e = self.law.log_given(evidence.double()).exp().to(z) @ vectors
        return self.method.prediction.target(process, e, (z - signal * e) / left, t)


class Forward(nn.Module):
    """log p(x_i | x_0 ... x_(i-1)) for each position of a sequence shifted by one."""

    def __init__(self, law: Law):
        super().__init__()
        self.law = law

    def forward(
        self, x: Tensor, t: Tensor, condition: Condition, *, cache: KeyValueCache | None = None
    ) -> Tensor:
        start = 0
        if cache is not None:
            start = cache.length
            seen = x.double()[:, None, :, None]
            x = cache.extend(0, seen, seen)[0][:, 0, :, 0].long()
            cache.advance(x.shape[1] - start)
        given = [self.law.log_next(x[:, 1 : i + 1]) for i in range(start, x.shape[1])]
        return torch.stack(given, dim=1)


def position(tokens: Int64[Tensor, "B L"], states: int) -> Int64[Tensor, "B"]:
    """Where sequences stand in lexicographic order. `[B, L] -> [B]`"""
    place = states ** torch.arange(tokens.shape[1] - 1, -1, -1)
    return (tokens * place).sum(-1)


def exact_density(
    method: Exact,
    net: Network,
    x0: Int64[Tensor, "B L"],
    t: float,
    term: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Float64[Tensor, "B"]:
    """The expectation over x_t of the bound's integrand (or another term) at time t. `[B, L] -> [B]`"""
    term = term or method.density
    process = method.process
    states = every(process.states(net.vocab), x0.shape[1])
    time = torch.full((len(states), 1), t, dtype=torch.float64)
    raw = net(states, time, _NOWHERE)
    live = process.live(states, net.vocab)
    likelihood = process.log_likelihood(states, time.expand_as(states), net.vocab, torch.float64)
    sums: list[Tensor] = []
    for row in x0:
        target = row.expand_as(states)
        log_q = likelihood.gather(-1, target[..., None])[..., 0].sum(-1)
        reached = log_q > -torch.inf
        where = live & reached[:, None]
        values = raw.new_zeros(states.shape)
        values[where] = term(raw[where], target[where], states[where], time.expand_as(states)[where])
        sums.append((log_q.exp() * values.sum(-1)).sum())
    return torch.stack(sums)


def exact_bound(
    method: Exact, net: Network, x0: Int64[Tensor, "B L"], nodes: int = 64
) -> Float64[Tensor, "B"]:
    """The continuous-time bound with its ends, nothing drawn. `[B, L] -> [B]` nats

    Gauss-Legendre in theta with t = g(g(theta)), g(x) = sin^2(pi x / 2): integrands have roots and logarithms
    at both ends of time, which the substitution makes smooth.
    """
    theta, weight = gauss_legendre(nodes)
    total = torch.zeros(len(x0), dtype=torch.float64)
    for angle, mass in zip(theta, weight, strict=True):
        inner = math.sin(math.pi * angle / 2) ** 2
        slope = (math.pi / 2) ** 2 * math.sin(math.pi * inner) * math.sin(math.pi * angle)
        total = total + mass * slope * exact_density(method, net, x0, math.sin(math.pi * inner / 2) ** 2)
    return total + exact_ends(method, net, x0)


def exact_steps(method: Exact, net: Network, x0: Int64[Tensor, "B L"], count: int) -> Float64[Tensor, "B"]:
    """The bound of a method whose clock has `count` steps, nothing drawn. `[B, L] -> [B]` nats"""
    steps = [exact_density(method, net, x0, k / count) for k in range(1, count + 1)]
    return torch.stack(steps).mean(0) + exact_ends(method, net, x0)


def exact_ends(method: Exact, net: Network, x0: Int64[Tensor, "B L"]) -> Float64[Tensor, "B"]:
    """The prior and reconstruction terms. `[B, L] -> [B]` nats"""
    start, stop = method.process.ends
    ends = torch.zeros(len(x0), dtype=torch.float64)
    if stop > 0:
        ends = ends + method.prior_divergence(net.vocab) * x0.shape[1]
    return ends if start == 1 else ends + exact_density(method, net, x0, 0.0, method.reconstruction)


def gauss_legendre(nodes: int) -> tuple[list[float], list[float]]:
    """Nodes and weights on [0, 1], from the eigenvectors of the Jacobi matrix (Golub and Welsch 1969)."""
    k = torch.arange(1, nodes, dtype=torch.float64)
    off = k / (4 * k**2 - 1).sqrt()
    value, vector = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return ((value + 1) / 2).tolist(), (vector[0] ** 2).tolist()


def exact_law(
    sampler: Sampler, method: Reversible, net: Network, length: int, given: Canvas | None = None
) -> Float64[Tensor, "S"]:
    """The law of the sequences that a sampler draws, nothing drawn. `-> [K^L]`, lexicographic in noisy states

    `given` is a canvas of one row with context, labels or allowed tokens. Sequences that still hold a mask
    keep their mass, so that a sampler which leaves noise behind is seen. First hitting is followed through
    the order of its tokens alone, so the network may not depend on the time.
    """
    given = given or canvas(torch.zeros(1, length, dtype=torch.int64))
    states = every(method.process.states(net.vocab), length)
    predictor = sampler.predictor(method, net, _everywhere(given, states))
    p = _start(method.process, net.vocab, given, states)
    if isinstance(sampler.reverse, FirstHitting):
        return _in_order(Random(), predictor, p, [torch.tensor(length - k) for k in range(1, length + 1)])
    if sampler.order is not None:
        start = given.free.sum()
        process = cast(Mask, predictor.mask)
        return _in_order(sampler.order, predictor, p, plan(process, sampler.order, start, sampler.times()))
    step = sampler.step(predictor)
    for t, s in pairwise(sampler.times()):
        p = exact_step(step, p, s, t)
        if isinstance(sampler.corrector, After):
            for _ in range(sampler.corrector.sweeps):
                p = exact_sweep(sampler.corrector, step, p, s, t)
    return p


def exact_step(step: Step, p: Float64[Tensor, "S"], s: float, t: float) -> Float64[Tensor, "S"]:
    """The law after a step from t to s of the law before it. `[K^L] -> [K^L]`"""
    states = step.predictor.canvas.tokens
    reached = p > 0
    where = positions(step.moving(states) & reached[:, None])
    step.predictor.look(states, torch.full((len(states), 1), t, dtype=torch.float64))
    return p @ _matrix(states, where, step.log_law(where, s, t))


def exact_sweep(
    corrector: After, step: Step, p: Float64[Tensor, "S"], s: float, t: float
) -> Float64[Tensor, "S"]:
    """The law after a sweep of a corrector behind the step from t to s. `[K^L] -> [K^L]`"""
    predictor, states = step.predictor, step.predictor.canvas.tokens
    if isinstance(corrector, Gibbs):
        return _exact_gibbs(corrector, predictor, p, s)
    up = s + corrector.length * (t - s)
    process = cast(Interpolating, predictor.process)
    vocab, count = predictor.vocab, process.states(predictor.vocab)
    keep, uniform = kept(process, vocab, s, up, states.device)
    forward = torch.eye(count, dtype=torch.float64) * keep
    forward[:, :vocab] += uniform
    forward[:, vocab:] += 1 - keep - vocab * uniform
    where = positions(predictor.canvas.free)
    noised = p @ _matrix(states, where, forward[states[where]].log())
    return exact_step(step, noised, s, up)


def _exact_gibbs(
    corrector: Gibbs, predictor: Predictor, p: Float64[Tensor, "S"], s: float
) -> Float64[Tensor, "S"]:
    """Averaged over the positions that may be chosen; context is the same in all states."""
    states, free = predictor.canvas.tokens, predictor.canvas.free[0].nonzero()[:, 0].tolist()
    choices = list(combinations(free, min(corrector.positions, len(free))))
    after = torch.zeros_like(p)
    for chosen in choices:
        columns = torch.tensor(chosen)
        x = states.clone()
        if predictor.mask is not None:
            x[:, columns] = predictor.vocab
        predictor.look(x, look_time(predictor, x, s))
        at = torch.zeros_like(x, dtype=torch.bool)
        at[p > 0] = at[p > 0].index_fill(1, columns, True)
        where = positions(at)
        after = after + p @ _matrix(states, where, log_conditional(predictor, where, s)) / len(choices)
    return after


def _in_order(
    order: AnyOrder, predictor: Predictor, p: Float64[Tensor, "S"], plan: list[Tensor]
) -> Float64[Tensor, "S"]:
    """Follow an order through its choices; all choices of the random one are alike. `plan` says how many
    tokens each step leaves masked.
    """
    process, states = cast(Mask, predictor.mask), predictor.canvas.tokens
    for left in plan:
        still = masked(predictor, states) & (p > 0)[:, None]
        count = still.sum(-1) - left
        share = still.sum(-1, keepdim=True) / predictor.canvas.free.sum(-1, keepdim=True).clamp_min(1)
        predictor.look(states, expected(process, share))
        if not isinstance(order, Random):
            chosen = order.choose(predictor, still, count, Noise(0).on(predictor.canvas.rows))
            p = _filled(predictor, p, chosen)
            continue
        wanted = every(2, states.shape[1]).bool()
        fits = (wanted[:, None] <= still).all(-1) & (wanted.sum(-1)[:, None] == count.clamp_min(0))
        shares = torch.where(fits, p / fits.sum(0).clamp_min(1), 0)
        p = torch.stack([_filled(predictor, q, some & still) for q, some in zip(shares, wanted, strict=True)])
        p = p.sum(0)
    return p


def _filled(
    predictor: Predictor, p: Float64[Tensor, "S"], chosen: Bool[Tensor, "S L"]
) -> Float64[Tensor, "S"]:
    where = positions(chosen & (p > 0)[:, None])
    tokens = predictor.each(where, lambda dynamics, raw, x, t, _: dynamics.log_denoise(raw, x, t))
    return p @ _matrix(
        predictor.canvas.tokens, where, torch.nn.functional.pad(tokens, (0, 1), value=-torch.inf)
    )


def _start(process: Process, vocab: int, given: Canvas, states: Int64[Tensor, "S L"]) -> Float64[Tensor, "S"]:
    """Where sampling starts: noise at the free positions, the context elsewhere."""
    uniform = torch.full((1, vocab), -math.log(vocab), dtype=torch.float64)
    noise = process.log_marginal(uniform, torch.ones(1, dtype=torch.float64))[0].exp()
    return torch.where(given.free, noise[states], (states == given.tokens).double()).prod(-1)


def _everywhere(given: Canvas, states: Int64[Tensor, "S L"]) -> Canvas:
    """The canvas with each state for its tokens."""
    labels, count = given.condition.labels, len(states)
    return Canvas(
        tokens=states,
        free=given.free.expand(count, -1),
        rows=torch.zeros(count, dtype=torch.int64),
        condition=Condition(labels=None if labels is None else labels.expand(count)),
        allowed=None if given.allowed is None else given.allowed.expand(count, -1, -1),
    )


def _matrix(
    states: Int64[Tensor, "S L"], where: tuple[Tensor, Tensor], log_law: Float64[Tensor, "N K"]
) -> Float64[Tensor, "S S"]:
    """The transition matrix where some positions move, independently, by these laws. `[N, K] -> [S, S]`"""
    law = torch.nn.functional.one_hot(states, int(states.max()) + 1).to(log_law)
    law[where] = log_law.exp()
    matrix = torch.ones(len(states), len(states), dtype=law.dtype)
    for i in range(states.shape[1]):
        matrix = matrix * law[:, i][:, states[:, i]]
    return matrix


def on_tokens(p: Float64[Tensor, "S"], law: Law, states: int) -> Float64[Tensor, "T"]:
    """The part of a law on noisy sequences that lies on clean ones, in `law`'s order. `[K^L] -> [V^L]`"""
    return p[position(law.sequences, states)]


def total_variation(p: Float64[Tensor, "S"], q: Float64[Tensor, "S"]) -> float:
    """Half the sum of absolute differences."""
    return 0.5 * (p - q).abs().sum().item()
