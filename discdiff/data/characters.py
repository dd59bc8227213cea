"""One token a character, by table look-up: any alphabet, text8's 27 symbols, and the symbols of a law.

There is no unknown token. A character outside the alphabet is an error, because a token that stands for many
texts makes bits per character a number about another text. An alphabet that is taken from a corpus is taken
from all of its splits.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, field_validator

from discdiff.data.encoding import SEPARATOR, Encoded, checked_ids, fingerprint, offsets_of
from discdiff.types import DiscdiffError, Value

_IDEOGRAPHS = 0x4E00
_MOST_SYMBOLS = 26 + 20_992


class CharacterTokenizer:
    """The i-th character of the alphabet is token i; the separator, if any, is the last id."""

    def __init__(self, spec: "Characters | Text8 | Symbols", alphabet: str, separated: bool):
        if not alphabet:
            raise DiscdiffError(
                "V = 0: the alphabet is empty; give at least one character, or text to take it from"
            )
        self._spec = spec
        self._alphabet = alphabet
        self.separator = len(alphabet) if separated else None
        self.size = len(alphabet) + separated

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.to_json())

    def to_json(self) -> str:
        return self._spec.model_dump_json()

    @cached_property
    def _table(self) -> np.ndarray:
        """Id of each code point; `size` marks those outside the alphabet."""
        points = np.array([ord(character) for character in self._alphabet])
        table = np.full(max(128, int(points.max()) + 2), self.size, np.min_scalar_type(self.size))
        table[points] = np.arange(len(points))
        return table

    @cached_property
    def _bytes_table(self) -> bytes | None:
        """The same for ASCII text, as `bytes.translate` takes it; None if ids and mark don't fit a byte."""
        return self._table[:128].tobytes() + bytes(128) if self.size < 256 else None

    def encode_batch(self, documents: Sequence[str]) -> Encoded:
        text = "".join(documents)
        ids = self._encode(text)
        unknown = np.flatnonzero(ids == self.size)
        if unknown.size:
            raise DiscdiffError(_unknown_character(text[int(unknown[0])], self._alphabet))
        return Encoded(ids, offsets_of([len(document) for document in documents]))

    def _encode(self, text: str) -> np.ndarray:
        if self._bytes_table is not None and text.isascii():
            return np.frombuffer(text.encode("ascii").translate(self._bytes_table), np.uint8)
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        outside = len(self._table) - 1
        return self._table[np.minimum(points, outside) if points.max(initial=0) > outside else points]

    def decode(self, ids: ArrayLike) -> str:
        found = checked_ids(ids, self.size)
        return "".join(map([*self._alphabet, SEPARATOR].__getitem__, found.tolist()))


def _unknown_character(character: str, alphabet: str) -> str:
    shown = alphabet if len(alphabet) <= 40 else alphabet[:40] + "..."
    return (
        f"the text holds {character!r} (U+{ord(character):04X}), which is not in the alphabet of "
        f"{len(alphabet)} characters {shown!r}; give an alphabet that covers the text, leave it out to "
        "take it from the corpus, or use Bytes()"
    )


class Characters(Value, frozen=True):
    """One token a character, and a separator after each document: V = characters + 1.

    Without an alphabet it is taken from the corpus, all splits of it, in code point order.
    """

    kind: Literal["characters"] = "characters"
    alphabet: str | None = None

    @field_validator("alphabet")
    @classmethod
    def _distinct(cls, alphabet: str | None) -> str | None:
        if alphabet is not None and len(set(alphabet)) != len(alphabet):
            raise ValueError("an alphabet names each character once")
        return alphabet

    def open(self) -> CharacterTokenizer:
        """The tokenizer. Raises DiscdiffError if there is no alphabet yet: see `train`."""
        if self.alphabet is None:
            raise DiscdiffError(
                "the alphabet is not known yet; tokenize a corpus, call train(documents), or give alphabet"
            )
        return CharacterTokenizer(self, self.alphabet, separated=True)

    def train(self, documents: Iterable[str]) -> CharacterTokenizer:
        """The tokenizer of this alphabet, or of the one that the documents have."""
        if self.alphabet is not None:
            return self.open()
        return Characters(alphabet=alphabet_of(documents)).open()


class Text8(Value, frozen=True):
    """The 27 symbols of text8, space and a to z, with no separator: V = 27.

    Text8 is one document, so nothing closes it. Other documents run into each other under this tokenizer.
    """

    kind: Literal["text8"] = "text8"

    def open(self) -> CharacterTokenizer:
        return CharacterTokenizer(self, " abcdefghijklmnopqrstuvwxyz", separated=False)


class Symbols(Value, frozen=True):
    """The ids of a law, each written as one character, with no separator: V = size."""

    kind: Literal["symbols"] = "symbols"
    size: Annotated[int, Field(ge=1, le=_MOST_SYMBOLS)]

    def open(self) -> CharacterTokenizer:
        return CharacterTokenizer(self, symbols(self.size), separated=False)


def symbols(size: int) -> str:
    """The characters that write ids below `size`: a to z, then ideographs."""
    return "".join(chr(97 + i) if i < 26 else chr(_IDEOGRAPHS + i - 26) for i in range(size))


def alphabet_of(documents: Iterable[str]) -> str:
    """The distinct characters of the documents, in code point order."""
    seen = np.zeros(0x110000, bool)
    for document in documents:
        seen[np.frombuffer(document.encode("utf-32-le", "surrogatepass"), np.uint32)] = True
    return "".join(map(chr, np.flatnonzero(seen).tolist()))
