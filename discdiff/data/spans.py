"""Parts of a corpus: what one task reads, planned from the inputs alone, never from the number of workers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

SPAN = 32 * 2**20
"""Bytes of input that one task reads, nearly."""


@dataclass(frozen=True)
class Piece:
    """A part of one input: bytes of a text, row groups of a table, or documents of a law.

    Records that begin in `start` to `stop` belong to the piece; `stop` None is the end of the input.
    """

    path: str
    """Where the input is, after `base`; what a store says it was made from."""
    suffix: str
    start: int = 0
    stop: int | None = None
    size: int = 0
    """Bytes of the piece, as far as known."""
    version: str = ""
    """What tells the input from another of its name, wherever it lies: its size, its ETag if it has one."""
    stamp: str = ""
    """When the input was modified."""
    base: str = ""
    """Where the path begins: a place that does not matter, such as that of an unpacked archive."""
    first: int = 0
    """The first of the piece's documents that is read."""
    last: int | None = None
    """One past the last of them, None for all."""

    @property
    def url(self) -> str:
        return self.base + self.path

    def __str__(self) -> str:
        whole = self.start == 0 and self.stop is None
        return self.path if whole else f"{self.path}[{self.start}:{'' if self.stop is None else self.stop}]"


@dataclass(frozen=True)
class Span:
    """What one task reads, in order, and the split that it belongs to (None: split by document)."""

    pieces: Sequence[Piece]
    split: str | None = None

    def __str__(self) -> str:
        others = f" and {len(self.pieces) - 1} more" if len(self.pieces) > 1 else ""
        return f"{self.pieces[0]}{others}"


def grouped(pieces: Iterable[Piece], split: str | None = None, size: int = SPAN) -> list[Span]:
    """Consecutive pieces gathered into spans of about `size` bytes."""
    spans: list[Span] = []
    group: list[Piece] = []
    for piece in pieces:
        if group and sum(each.size for each in group) + piece.size > size:
            spans.append(Span(tuple(group), split))
            group = []
        group.append(piece)
    return [*spans, Span(tuple(group), split)] if group else spans


def cut(size: int, target: int) -> list[tuple[int, int]]:
    """Ranges of nearly equal length, at most `target`, that cover `size`."""
    count = max(1, -(-size // target))
    borders = [size * i // count for i in range(count + 1)]
    return list(pairwise(borders))
