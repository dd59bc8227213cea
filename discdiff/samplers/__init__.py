"""Sampling: how a model is followed from noise to data."""

from typing import Annotated

from pydantic import Field

from discdiff.samplers.inverse import Inverse
from discdiff.samplers.left_to_right import LeftToRight
from discdiff.samplers.reverse import Ancestral, AnyReverse, Euler
from discdiff.samplers.sampler import Sampler

AnySampler = Annotated[Sampler | LeftToRight | Inverse, Field(discriminator="kind")]
Inverse.model_rebuild(_types_namespace={"AnySampler": AnySampler})

__all__ = ["Ancestral", "AnyReverse", "AnySampler", "Euler", "Inverse", "LeftToRight", "Sampler"]
