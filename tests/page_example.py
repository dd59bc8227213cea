"""A report of models that need no training: exact networks, one of another law, a method without a bound."""

import numpy as np
import torch

from discdiff.evaluation.estimate import Estimate
from discdiff.evaluation.likelihood import Ledger, Likelihood, Protocol, Text, compare, unigram
from discdiff.evaluation.page import Cell, Comparison, Fact, Model, Page, Trace, ZeroShot
from discdiff.evaluation.quality import Judged, Quality, quality, with_training
from discdiff.evaluation.sequences import sequences
from discdiff.evaluation.series import Mark, Series
from discdiff.methods import Autoregressive, Mdlm, Udlm
from discdiff.oracle import Law
from discdiff.types import canvas

LETTERS = "ab"
TEXT = Text(tokens=32, characters=32, bytes=32)
LAW, OTHER = Law.random(vocab=2, length=3, seed=1), Law.random(vocab=2, length=3, seed=2)
STEPS = 6
NAMES = ("autoregressive", "mdlm", "udlm", "latent")


def protocol(estimator: str) -> Protocol:
    return Protocol(
        estimator=estimator,
        times="4 strata, 2 draws in each",
        precision="float64",
        tokenizer="letters, 2 tokens",
        packing="wrap, 3 tokens",
        counted="24 tokens in 8 sequences, no separators, no padding",
        data="the law itself; seed 0",
    )


def ledgers() -> dict[str, Ledger]:
    whole, estimator = canvas(LAW.sequences), Likelihood(strata=4, draws=2)
    return {
        "autoregressive": estimator.measure(Autoregressive(), LAW.causal_network(), [whole]),
        "mdlm": estimator.measure(Mdlm(), LAW.network(Mdlm()), [whole]),
        "udlm": estimator.measure(Udlm(), OTHER.network(Udlm()), [whole]),
    }


def trace(tokens: np.ndarray, *, masked: bool) -> Trace:
    """A token a step from the left, out of masks or out of noise."""
    first = tuple((i, None if masked else "ab"[i % 2]) for i in range(len(tokens)))
    later = [((i, LETTERS[v] if v < 2 else "<b>&"),) for i, v in enumerate(tokens)]
    return Trace(times=tuple(np.linspace(1, 0, len(tokens) + 1)), steps=(first, *later))


def read(row: Quality, name: str) -> Quality:
    return row.read_by_itself() if name == "autoregressive" else row


def page() -> Page:
    """Everything that a report can show."""
    found = ledgers()
    scores = {name: each.score(TEXT, protocol(name)) for name, each in found.items()}
    draw = np.random.default_rng(0)
    rows = [sequences(draw.integers(0, 2, (12, 16)), 2) for _ in NAMES]
    real = sequences(np.tile([0, 1, 1, 0], (12, 4)), 2)
    measured = with_training(
        [quality(each) for each in (*rows, real)], [*rows, real], [draw.integers(0, 2, 99)]
    )
    judged = Judged(
        judge="the law",
        perplexity=Estimate(value=2.5, se=0.1),
        sample_mean=Estimate(value=3.0, se=0.2),
        mauve=0.5,
        mauve_protocol="12 samples against 12 real texts",
    )
    models = [
        Model(
            name=name,
            family=name,
            parameters=1000,
            steps=40,
            score=scores.get(name),
            unscored=""
            if name in scores
            else "latent diffusion has no likelihood bound: its encoder is deterministic",
            quality=read(row.beside(measured[-1]).model_copy(update={"judged": judged}), name),
            evaluations=STEPS,
            sampler="ancestral, steps 6",
            training=tuple(
                Series(name=curve, marks=tuple(Mark(x=s, y=2 - s / 40, se=0.1) for s in (1, 20, 40)))
                for curve in ("loss", "bound")
            ),
            samples=("</script><b>bold</b> & plain",),
            trace=trace(np.array([0, 1, 2, 0, 1, 1]), masked=name == "mdlm")
            if name in ("mdlm", "udlm")
            else None,
            settings={"kind": name},
            entropy=1.6881,
            excess=Estimate(value=1.6881, se=0.0091) if name in scores else None,
        )
        for name, row in zip(NAMES, measured[:-1], strict=True)
    ]
    there = protocol("mdlm").model_copy(update={"data": "another law"})
    away = scores["mdlm"].model_copy(update={"protocol": there})
    counts = np.bincount(LAW.sequences.flatten().numpy())
    return Page(
        title="A report & its <parts>",
        created="2026-01-02 03:04 UTC",
        summary="Three laws and a method without one.",
        models=tuple(models),
        unigram=unigram(counts, [canvas(LAW.sequences)]).score(TEXT, protocol("unigram")),
        real=measured[-1],
        real_samples=("abba abba",),
        comparisons=(
            Comparison(first="mdlm", second="udlm", difference=compare(found["mdlm"], found["udlm"])),
        ),
        zero_shot=(ZeroShot(model="mdlm", store="elsewhere", score=away),),
        frontier=tuple(cells()),
        facts=(Fact(group="Versions", name="torch", value=torch.__version__),),
        specs={"train-0123456789abcdef": '{"kind": "mdlm"}'},
        warnings=("Nothing here was trained.",),
    )


def cells() -> list[Cell]:
    """Temperature in batches of 8, steps in batches of 1 and 8, and a model without steps."""
    spread = iter(np.random.default_rng(1).random(99))
    lines = [("temperature", v, 8) for v in (0.7, 0.85, 1.0)]
    lines += [("steps", v, batch) for batch in (1, 8) for v in (2, 4, 8)]
    swept = [(name, *line) for name in ("mdlm", "udlm") for line in lines]
    swept += [("autoregressive", "batch", batch, batch) for batch in (1, 8)]
    return [
        Cell(
            model=name,
            sweep=sweep,
            setting=value,
            evaluations=value if sweep == "steps" else STEPS,
            batch=batch,
            entropy=Estimate(value=0.5 + 0.1 * extra, se=0.01),
            perplexity=Estimate(value=2 + extra, se=0.05),
            itself=name == "autoregressive",
            seconds=0.01 * (1 + extra) / batch,
        )
        for (name, sweep, value, batch), extra in zip(swept, spread, strict=False)
    ]
