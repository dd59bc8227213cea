"""What every tokenizer does: text to ids and back, with documents kept apart.

A tokenizer is opened from a specification (`Characters`, `Text8`, `Symbols`, `Bytes`, `Pretrained`) and is
described in full by its JSON, which is itself a specification: a store keeps it, and its SHA-256 is the
tokenizer's identity.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from discdiff.types import DiscdiffError

SEPARATOR = "<|endoftext|>"
"""How the end of a document is shown in decoded text."""


class Encoded(NamedTuple):
    """Documents as ids: the i-th is `ids[offsets[i] : offsets[i + 1]]`, without a separator."""

    ids: np.ndarray
    offsets: np.ndarray


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back."""

    @property
    def size(self) -> int:
        """V: ids are below it. The separator counts, a mask token does not."""
        ...

    @property
    def separator(self) -> int | None:
        """The id that closes a document, None where the protocol has none."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of `to_json()`."""
        ...

    def encode_batch(self, documents: Sequence[str]) -> Encoded:
        """Encode documents. Text never becomes the separator, whatever it spells.

        Raises DiscdiffError for text outside the vocabulary.
        """
        ...

    def decode(self, ids: ArrayLike) -> str:
        """The text of ids, in which a separator reads `<|endoftext|>`.

        Raises DiscdiffError for an id outside the vocabulary.
        """
        ...

    def to_json(self) -> str:
        """All that is needed to open the same tokenizer anywhere: `discdiff.data.tokenizers.from_json`."""
        ...


def fingerprint(json: str) -> str:
    """The identity of a tokenizer: SHA-256 of its JSON, in hexadecimal."""
    return hashlib.sha256(json.encode()).hexdigest()


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Borders of consecutive documents of these lengths. `[n] -> [n + 1]`"""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def checked_ids(ids: ArrayLike, size: int) -> np.ndarray:
    """The ids as a flat int64 array. Raises DiscdiffError if one is not in the vocabulary."""
    found: np.ndarray[Any, np.dtype[np.int64]] = np.asarray(ids).astype(np.int64).ravel()
    wrong = found[(found < 0) | (found >= size)]
    if wrong.size:
        raise DiscdiffError(
            f"id {int(wrong[0])} is not in the vocabulary, whose ids are 0 to {size - 1}; "
            "fill mask tokens before decoding"
        )
    return found
