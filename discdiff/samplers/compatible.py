"""Whether a sampler can draw from a method, and fill a canvas, asked before any work."""

from collections.abc import Sequence
from typing import Any

from discdiff.networks.given import given_to_sample
from discdiff.samplers import left_to_right
from discdiff.samplers.allowed import check_allowed
from discdiff.samplers.blocks import Blocks, check_order
from discdiff.samplers.gaussian import GaussianSampler
from discdiff.samplers.guidance import ClassifierBased, labels_of
from discdiff.samplers.inverse import Inverse
from discdiff.samplers.left_to_right import LeftToRight
from discdiff.samplers.sampler import Sampler
from discdiff.types import Canvas, DiscdiffError


def check(method: Any, sampler: Any) -> None:
    """Raises DiscdiffError, with the reason, where `sampler` can't draw from `method`."""
    own = method.default_sampler(1)
    if type(sampler) is not type(own):
        raise DiscdiffError(
            f"{method.kind} can't be drawn with the sampler {sampler.kind!r}: give {own.kind!r}"
            + (" and put other samplers inside it" if isinstance(own, Blocks) else "")
            + ", or the method's default_sampler"
        )
    _check_whole(sampler)
    if isinstance(sampler, Sampler | GaussianSampler):
        sampler.check(method)
    elif isinstance(sampler, Blocks):
        _check_blocks(method, own, sampler)
    elif isinstance(sampler, Inverse):
        _check_inverse(method, own, sampler)


def check_canvas(method: Any, sampler: Any, canvas: Canvas) -> None:
    """Raises DiscdiffError, with the reason, where `sampler` can't fill `canvas` from `method`."""
    if isinstance(sampler, LeftToRight):
        left_to_right.check_canvas(canvas)
    elif isinstance(sampler, Blocks):
        check_order(canvas, sampler.size)
        check_canvas(method.inner, sampler.inside, canvas)
    elif isinstance(sampler, Inverse):
        given_to_sample(canvas, method.rightward)
    elif isinstance(sampler, GaussianSampler):
        method.check_canvas(canvas)
    elif isinstance(sampler, Sampler):
        check_allowed(canvas, method.tokens_alike)
        if sampler.guidance is not None:
            labels_of(canvas)


def check_labels(sampler: Any, labels: Sequence[int], classes: int) -> None:
    """Raises DiscdiffError for labels that a network of so many classes doesn't know, or guidance without.

    The network is the classifier where guidance asks one.
    """
    guidance = getattr(getattr(sampler, "inside", sampler), "guidance", None)
    if labels and not classes:
        raise DiscdiffError("labels were given and the network was trained without: leave them out")
    if labels and not 0 <= min(labels) <= max(labels) < classes:
        raise DiscdiffError(f"labels are 0 to {classes - 1} for this network, not {list(labels)}")
    if guidance is not None and not labels:
        raise DiscdiffError("guidance needs a class for each row: give labels, one or more")


def _check_blocks(method: Any, own: Blocks, sampler: Blocks) -> None:
    if sampler.size != own.size:
        raise DiscdiffError(
            f"{method.kind} has blocks of {own.size} and the sampler of {sampler.size}: make them agree"
        )
    check(method.inner, sampler.inside)


def _check_inverse(method: Any, own: Inverse, sampler: Inverse) -> None:
    layers = own.model_copy(update={"base": sampler.base, "microbatch": sampler.microbatch})
    if sampler != layers or (own.base is None) != (sampler.base is None):
        raise DiscdiffError(
            f"{method.kind} samples by its layers: give its default_sampler, "
            "with another base or a microbatch at most"
        )
    if sampler.base is not None:
        check(method.base, sampler.base)


def _check_whole(sampler: Any) -> None:
    """A classifier reads the text itself, and all of it."""
    inner = getattr(sampler, "inside", getattr(sampler, "base", None))
    if isinstance(getattr(inner, "guidance", None), ClassifierBased):
        raise DiscdiffError(
            f"a classifier reads whole texts and the sampler {sampler.kind} shows none before it is done: "
            f"leave classifier_based guidance out of the sampler inside {sampler.kind}"
        )
