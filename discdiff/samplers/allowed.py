"""Which canvases restrict tokens in a way that can be held."""

from discdiff.types import Canvas, DiscdiffError


def check_allowed(canvas: Canvas, tokens_alike: bool = True) -> None:
    """Raises DiscdiffError where tokens are restricted so that nothing could be drawn, or can't be held to
    it.
    """
    if canvas.allowed is None:
        return
    if not tokens_alike:
        raise DiscdiffError(
            "noise that treats tokens differently can't be held to allowed tokens: leave them out"
        )
    if not bool((canvas.allowed.any(-1) | ~canvas.free).all()):
        raise DiscdiffError("a free position is allowed no token at all: allow it one at least")
