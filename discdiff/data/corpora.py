"""All corpora: each plans the parts that tasks read, from its inputs alone, and reads a part as documents."""

from collections.abc import Iterator
from typing import Annotated, Protocol, runtime_checkable

from pydantic import Field

from discdiff.data.files import Files
from discdiff.data.laws import Law
from discdiff.data.published import Lm1b, OpenWebText, Text8Corpus, Wikitext
from discdiff.data.pythondocs import PythonDocs
from discdiff.data.spans import SPAN, Piece, Span

__all__ = [
    "AnyCorpus",
    "Corpus",
    "Files",
    "Law",
    "Lm1b",
    "OpenWebText",
    "Piece",
    "PythonDocs",
    "Span",
    "Text8Corpus",
    "Wikitext",
]


@runtime_checkable
class Corpus(Protocol):
    """Documents in a fixed order, in parts that can be read apart."""

    def plan(self, size: int = SPAN) -> list[Span]:
        """Parts of about `size` bytes, in order: the same wherever and however often it is asked."""
        ...

    def documents(self, span: Span) -> Iterator[str]:
        """The documents of a part, in order."""
        ...


AnyCorpus = Annotated[
    PythonDocs | Files | Law | Text8Corpus | Lm1b | OpenWebText | Wikitext, Field(discriminator="kind")
]
