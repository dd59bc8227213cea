"""Whether a sampler can draw from a method, asked before any work."""

from typing import Any

from discdiff.samplers.sampler import Sampler
from discdiff.types import DiscdiffError


def check(method: Any, sampler: Any) -> None:
    """Raises DiscdiffError, with the reason, where `sampler` can't draw from `method`."""
    own = method.default_sampler(1)
    if isinstance(own, Sampler) and isinstance(sampler, Sampler):
        return sampler.check(method)
    if type(sampler) is not type(own):
        raise DiscdiffError(
            f"{method.kind} can't be drawn with the sampler {sampler.kind!r}: give {own.kind!r}, "
            "or the method's default_sampler"
        )
    if hasattr(own, "inside"):
        if sampler.size != own.size:
            raise DiscdiffError(
                f"{method.kind} has blocks of {own.size} and the sampler of {sampler.size}: make them agree"
            )
        return check(method.inner, sampler.inside)
    if getattr(own, "base", None) is not None or getattr(sampler, "base", None) is not None:
        if own.model_copy(update={"base": sampler.base}) != sampler:
            raise DiscdiffError(
                f"{method.kind} samples by its layers and its base's sampler: give default_sampler with another base at most"
            )
        return check(method.base, sampler.base)
    return None
