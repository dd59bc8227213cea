"""Experiments by name: functions that return specifications.

`python -m jobs.experiment --preset smoke`; add `key.sub=value` to change one thing.
"""

from collections.abc import Callable

from discdiff.data.characters import Characters, Symbols
from discdiff.data.laws import Law, MarkovChain
from discdiff.data.packing import Wrap
from discdiff.data.pythondocs import PythonDocs
from discdiff.data.specification import Tokenize
from discdiff.evaluation.likelihood import Likelihood
from discdiff.methods import (
    AnyMethod,
    ArgmaxFlow,
    Autoregressive,
    Block,
    D3pm,
    DiscreteFlow,
    Duo,
    DuoDistilled,
    Embedding,
    FlowMatching,
    GenMd4,
    Gidd,
    Latent,
    Md4,
    Mdlm,
    Multinomial,
    Sedd,
    Udlm,
)
from discdiff.methods.gaussian_diffusion import Exact
from discdiff.networks import Transformer
from discdiff.processes import Hybrid, Uniform
from discdiff.schedules import Cosine, Linear
from discdiff.training import Cosine as CosineDecay
from discdiff.training import Recipe
from discdiff.types import DiscdiffError
from pipelines.experiment import Control, Experiment, Measuring, Search
from pipelines.frontier import Frontier
from pipelines.generate import Default, Drawing


def smoke() -> Experiment:
    """Every family on Python's own documentation, small enough for two cores and a few minutes."""
    return Experiment(
        name="smoke",
        corpus=Tokenize(corpus=PythonDocs(), tokenizer=Characters()),
        methods=(Autoregressive(), Mdlm(), Udlm(), Gidd(), Sedd(), D3pm()),
        backbone=Transformer(layers=2, width=96, heads=4),
        recipe=Recipe(
            steps=300,
            batch=32,
            learning_rate=3e-3,
            warmup=30,
            decay=CosineDecay(),
            ema=0.98,
            validate_every=150,
            validate_rows=64,
            checkpoint_every=150,
        ),
        packing=Wrap(length=64),
        drawing=Drawing(sampler=Default(steps=32), count=64),
        measuring=Measuring(rows=256, estimator=Likelihood(strata=8, draws=1)),
        summary="Six families, trained alike for a few seconds each: everything works; nothing is compared.",
    )


def compare() -> Experiment:
    """Every family, with the same network, tokens and steps, on Python's documentation and on a known law."""
    recipe = Recipe(
        steps=400,
        batch=32,
        learning_rate=2e-3,
        warmup=40,
        decay=CosineDecay(),
        ema=0.98,
        validate_every=200,
        validate_rows=64,
        checkpoint_every=400,
    )
    chain = MarkovChain.random(vocab=16, seed=1, contrast=2.0)
    law = Law(law=chain, length=32, train=20_000, validation=256, test=1024)
    return Experiment(
        name="compare",
        corpus=Tokenize(corpus=PythonDocs(), tokenizer=Characters()),
        methods=FAMILIES,
        backbone=Transformer(layers=4, width=96, heads=4),
        recipe=recipe,
        packing=Wrap(length=64),
        drawing=Drawing(sampler=Default(steps=64), count=64),
        measuring=Measuring(rows=256, estimator=Likelihood(strata=8, draws=2)),
        frontier=Frontier(
            temperatures=(0.7, 1.0), top_ps=(0.9,), steps=(8, 64), batches=(1, 8), at=64, count=8
        ),
        control=Control(
            corpus=Tokenize(corpus=law, tokenizer=Symbols(size=chain.vocab)),
            packing=Wrap(length=law.length),
            recipe=recipe.model_copy(update={"steps": 300, "warmup": 30, "checkpoint_every": 300}),
            measuring=Measuring(rows=512, estimator=Likelihood(strata=8, draws=2)),
        ),
        summary="Every family with one network size and one small budget: how they are compared, and no "
        "verdict on what any of them reaches at scale.",
    )


FAMILIES: tuple[AnyMethod, ...] = (
    Autoregressive(),
    Mdlm(),
    Md4(),
    GenMd4(),
    Udlm(),
    Duo(),
    DuoDistilled(teacher=Duo()),
    Gidd(),
    Sedd(),
    D3pm(),
    Multinomial(),
    FlowMatching(),
    Block(inner=Mdlm(), size=16),
    DiscreteFlow(),
    ArgmaxFlow(),
    Embedding(weighting=Exact()),
    Latent(),
)
"""One of each family, as its paper has it but for embedding diffusion: in so few steps its simple loss leaves
the bound far behind, so it learns by that.
"""


def with_search(experiment: Experiment) -> Experiment:
    """The experiment, and a short search over schedules and processes for one more model."""
    schedules = (Linear(), Cosine())
    candidates = [D3pm(process=process(schedule=each)) for process in (Uniform, Hybrid) for each in schedules]
    steps = max(2, experiment.recipe.steps // 3)
    short = {
        "steps": steps,
        "warmup": steps // 10,
        "validate_every": steps // 2,
        "checkpoint_every": steps // 2,
    }
    recipe = Recipe.model_validate({**dict(experiment.recipe), **short})
    search = Search(candidates=tuple(candidates), recipe=recipe)
    return experiment.model_copy(update={"search": search})


PRESETS: dict[str, Callable[[], Experiment]] = {each.__name__: each for each in (smoke, compare)}


def names() -> list[str]:
    return list(PRESETS)


def named(name: str) -> Experiment:
    """The experiment of a name. Raises DiscdiffError for one that is not known."""
    if name not in PRESETS:
        raise DiscdiffError(f"there is no preset {name!r}; there are {', '.join(names())}.")
    return PRESETS[name]()
