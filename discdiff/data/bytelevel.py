"""One token a byte of UTF-8.

V = 256 and a store takes one byte a token: the byte 0xFF never occurs in UTF-8, so it is the separator.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from discdiff.data.encoding import SEPARATOR, Encoded, checked_ids, fingerprint, offsets_of
from discdiff.types import Value


class ByteTokenizer:
    """Id b is byte b; 255 closes a document."""

    size = 256
    separator = 255

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.to_json())

    def to_json(self) -> str:
        return Bytes().model_dump_json()

    def encode_batch(self, documents: Sequence[str]) -> Encoded:
        encoded = [document.encode() for document in documents]
        return Encoded(
            np.frombuffer(b"".join(encoded), np.uint8), offsets_of([len(text) for text in encoded])
        )

    def decode(self, ids: ArrayLike) -> str:
        """The text of bytes; those that are not UTF-8, as a model may write them, read U+FFFD."""
        raw = checked_ids(ids, self.size).astype(np.uint8).tobytes()
        return SEPARATOR.join(part.decode("utf-8", "replace") for part in raw.split(b"\xff"))


class Bytes(Value, frozen=True):
    """One token a byte of UTF-8 and a separator after each document: V = 256."""

    kind: Literal["bytes"] = "bytes"

    def open(self) -> ByteTokenizer:
        return ByteTokenizer()
