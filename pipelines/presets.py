"""Experiments by name: functions that return specifications.

`python -m jobs.experiment --preset smoke`; add `key.sub=value` to change one thing.
"""

from collections.abc import Callable

from discdiff.data.characters import Characters
from discdiff.data.packing import Wrap
from discdiff.data.pythondocs import PythonDocs
from discdiff.data.specification import Tokenize
from discdiff.evaluation.likelihood import Likelihood
from discdiff.methods import Autoregressive, D3pm, Gidd, Mdlm, Sedd, Udlm
from discdiff.networks import Transformer
from discdiff.processes import Hybrid, Uniform
from discdiff.schedules import Cosine, Linear
from discdiff.training import Cosine as CosineDecay
from discdiff.training import Recipe
from discdiff.types import DiscdiffError
from pipelines.experiment import Experiment, Measuring, Search
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


PRESETS: dict[str, Callable[[], Experiment]] = {each.__name__: each for each in (smoke,)}


def names() -> list[str]:
    return list(PRESETS)


def named(name: str) -> Experiment:
    """The experiment of a name. Raises DiscdiffError for one that is not known."""
    if name not in PRESETS:
        raise DiscdiffError(f"there is no preset {name!r}; there are {', '.join(names())}.")
    return PRESETS[name]()
