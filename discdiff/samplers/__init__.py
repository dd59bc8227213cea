"""Sampling: how a model is followed from noise to data."""

from typing import Annotated

from pydantic import Field

from discdiff.samplers.blocks import Blocks
from discdiff.samplers.cache import Unchanged
from discdiff.samplers.correctors import (
    AnyCorrector,
    Cap,
    FlowCorrector,
    ForwardBackward,
    Gibbs,
    Psi,
    Remask,
    Rescale,
)
from discdiff.samplers.filters import AnyFilter, Greedy, MinP, Temperature, TopK, TopP
from discdiff.samplers.gaussian import (
    AnyGaussianStep,
    Clamping,
    Ddim,
    Ddpm,
    GaussianSampler,
    ProbabilityFlow,
)
from discdiff.samplers.grid import AnyGrid, Even, Held, Listed, Quarter, Through
from discdiff.samplers.guidance import AnyGuidance, ClassifierBased, ClassifierFree, Guided
from discdiff.samplers.inverse import Inverse
from discdiff.samplers.left_to_right import LeftToRight
from discdiff.samplers.orders import AnyOrder, Confidence, Entropy, EntropyBudget, Margin, Random
from discdiff.samplers.reverse import (
    Analytic,
    Ancestral,
    AnyReverse,
    Euler,
    FirstHitting,
    FlowEuler,
    GreedyTail,
    Tweedie,
)
from discdiff.samplers.sampler import Draw, Sampler
from discdiff.samplers.trace import Recorder, Trace
from discdiff.samplers.windows import Windows

AnySampler = Annotated[
    Sampler | LeftToRight | Inverse | Blocks | GaussianSampler, Field(discriminator="kind")
]
Inverse.model_rebuild(_types_namespace={"AnySampler": AnySampler})

__all__ = [
    "Analytic",
    "Ancestral",
    "AnyCorrector",
    "AnyFilter",
    "AnyGaussianStep",
    "AnyGrid",
    "AnyGuidance",
    "AnyOrder",
    "AnyReverse",
    "AnySampler",
    "Blocks",
    "Cap",
    "Clamping",
    "ClassifierBased",
    "ClassifierFree",
    "Confidence",
    "Ddim",
    "Ddpm",
    "Draw",
    "Entropy",
    "EntropyBudget",
    "Euler",
    "Even",
    "FirstHitting",
    "FlowCorrector",
    "FlowEuler",
    "ForwardBackward",
    "GaussianSampler",
    "Gibbs",
    "Greedy",
    "GreedyTail",
    "Guided",
    "Held",
    "Inverse",
    "LeftToRight",
    "Listed",
    "Margin",
    "MinP",
    "ProbabilityFlow",
    "Psi",
    "Quarter",
    "Random",
    "Recorder",
    "Remask",
    "Rescale",
    "Sampler",
    "Temperature",
    "Through",
    "TopK",
    "TopP",
    "Trace",
    "Tweedie",
    "Unchanged",
    "Windows",
]
