"""Whether a sampler can draw from a method, asked before any work."""

from typing import Any

from discdiff.samplers.blocks import Blocks
from discdiff.samplers.gaussian import GaussianSampler
from discdiff.samplers.inverse import Inverse
from discdiff.samplers.sampler import Sampler
from discdiff.types import DiscdiffError


def check(method: Any, sampler: Any) -> None:
    """Raises DiscdiffError, with the reason, where `sampler` can't draw from `method`."""
    own = method.default_sampler(1)
    if type(sampler) is not type(own):
        raise DiscdiffError(
            f"{method.kind} can't be drawn with the sampler {sampler.kind!r}: give {own.kind!r}, "
            "or the method's default_sampler"
        )
    if isinstance(sampler, Sampler | GaussianSampler):
        sampler.check(method)
    elif isinstance(sampler, Blocks):
        _check_blocks(method, own, sampler)
    elif isinstance(sampler, Inverse):
        _check_inverse(method, own, sampler)


def _check_blocks(method: Any, own: Blocks, sampler: Blocks) -> None:
    if sampler.size != own.size:
        raise DiscdiffError(
            f"{method.kind} has blocks of {own.size} and the sampler of {sampler.size}: make them agree"
        )
    check(method.inner, sampler.inside)


def _check_inverse(method: Any, own: Inverse, sampler: Inverse) -> None:
    layers = own.model_copy(update={"base": sampler.base})
    if sampler != layers or (own.base is None) != (sampler.base is None):
        raise DiscdiffError(
            f"{method.kind} samples by its layers: give its default_sampler, with another base at most"
        )
    if sampler.base is not None:
        check(method.base, sampler.base)
