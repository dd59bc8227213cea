"""What a flow may be given beside its free positions, and sentences for what it may not.

A position that isn't free is padding if no free one follows, else context. Padding becomes token 0 and is
hidden from all other positions. Context may be a prefix, of a flow that reads from left to right alone. A
flow that mixes all positions has no tractable law of some tokens given others.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from discdiff.types import Canvas, Condition, DiscdiffError


def given(canvas: Canvas, rightward: bool) -> Canvas:
    """The canvas as a flow reads it: padding hidden, context checked."""
    if bool(canvas.free.all()):
        return canvas
    live = up_to_last(canvas.free)
    context = live & ~canvas.free
    if not rightward and bool(context.any()):
        raise DiscdiffError(
            "some positions are given and the flow mixes all positions, so the law of the others given them "
            "is out of reach: leave all positions free, or use a flow whose layers are all rightward"
        )
    if bool((context & (canvas.free.cumsum(-1) > 0)).any()):
        raise DiscdiffError(
            "context stands after free positions, and a flow from left to right can be given a prefix only: "
            "move the context to the front, or use a diffusion method to infill"
        )
    return without_padding(canvas)


def given_to_sample(canvas: Canvas, rightward: bool) -> Canvas:
    """As `given`, where padding would be taken for context that is obeyed."""
    if not bool(canvas.free[:, -1].all()):
        raise DiscdiffError(
            "the last position is given and a flow can't be told what comes after: "
            "leave it free, or use a diffusion method to infill"
        )
    if canvas.allowed is not None:
        raise DiscdiffError(
            "tokens were restricted with `allowed`, and a flow's tokens are decided by its base draw alone: "
            "give no restriction, or use a diffusion or autoregressive method"
        )
    return given(canvas, rightward)


def without_padding(canvas: Canvas) -> Canvas:
    """The canvas with what stands behind the last free position made token 0 and a document of its own."""
    live = up_to_last(canvas.free)
    if bool(live.all()):
        return canvas
    tokens = torch.where(live, canvas.tokens, 0)
    return replace(canvas, tokens=tokens, condition=_apart(canvas.condition, live))


def up_to_last(free: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """Positions at or before the last free one. `[B, L] -> [B, L]`"""
    return free.long().flip(1).cummax(1).values.flip(1) > 0


def _apart(condition: Condition, live: Tensor) -> Condition:
    documents = (
        torch.zeros_like(live, dtype=torch.int64) if condition.documents is None else condition.documents
    )
    return replace(condition, documents=torch.where(live, documents, -1 - documents))
