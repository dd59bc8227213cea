"""Sampling: how a model is followed from noise to data."""

from typing import Annotated

from pydantic import Field

from discdiff.samplers.left_to_right import LeftToRight
from discdiff.samplers.reverse import Ancestral, AnyReverse, Euler
from discdiff.samplers.sampler import Sampler

AnySampler = Annotated[Sampler | LeftToRight, Field(discriminator="kind")]

__all__ = ["Ancestral", "AnyReverse", "AnySampler", "Euler", "LeftToRight", "Sampler"]
