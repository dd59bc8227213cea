"""Proof that ids spell their documents, for byte-level tokenizers, at a speed that every document can afford.

Each token of a byte-level tokenizer stands for fixed bytes. If the tokens of a batch, laid end to end, match
the text at each token's place, and documents end where they should, then decoding gives back exactly what was
encoded: nothing was lost, doubled, normalized or read as a control token. What this does not prove is that
the text was cut into tokens as the reference cuts it; that is compared on samples.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

_BLOCK = 1 << 15
"""Tokens that are checked at once: their work arrays stay in the cache."""


def byte_of_character() -> dict[str, int]:
    """The printable characters that write the 256 bytes in byte-level tokenizers since GPT-2."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def pieces_of(definition: Mapping[str, Any]) -> list[bytes] | None:
    """The bytes of each token of a `tokenizer.json`, None if its tokens are not fixed bytes of the text."""
    if not _is_byte_level(definition):
        return None
    bytes_by_character = byte_of_character()
    vocabulary: dict[str, int] = definition["model"]["vocab"]
    added = {token["id"]: token["content"].encode() for token in definition.get("added_tokens") or ()}
    pieces = [b""] * (max([*vocabulary.values(), *added]) + 1)
    for token, index in vocabulary.items():
        if index not in added:
            if any(character not in bytes_by_character for character in token):
                return None
            pieces[index] = bytes(bytes_by_character[character] for character in token)
    for index, content in added.items():
        pieces[index] = content
    return pieces


def _is_byte_level(definition: Mapping[str, Any]) -> bool:
    steps = _steps(definition.get("pre_tokenizer"), "pretokenizers")
    normal = {step["type"] for step in _steps(definition.get("normalizer"), "normalizers")}
    return (
        definition["model"].get("type", "BPE") == "BPE"
        and normal <= {"NFC"}
        and any(step["type"] == "ByteLevel" for step in _steps(definition.get("decoder"), "decoders"))
        and any(step["type"] == "ByteLevel" and not step.get("add_prefix_space") for step in steps)
        and all(step["type"] in {"ByteLevel", "Split", "Digits", "Punctuation"} for step in steps)
    )


def _steps(component: Mapping[str, Any] | None, name: str) -> Sequence[Mapping[str, Any]]:
    if component is None:
        return ()
    return component[name] if component["type"] == "Sequence" else (component,)


class Speller:
    """Compares ids with the text that they should spell."""

    def __init__(self, pieces: Sequence[bytes]):
        self._lengths = np.array([len(piece) for piece in pieces], np.uint32)
        self._words = -(-max(8, int(self._lengths.max())) // 8)
        table = np.zeros((len(pieces), 8 * self._words), np.uint8)
        for row, piece in zip(table, pieces, strict=True):
            row[: len(piece)] = np.frombuffer(piece, np.uint8)
        mask = np.where(np.arange(8 * self._words) < self._lengths[:, None], 0xFF, 0).astype(np.uint8)
        self._table = np.ascontiguousarray(table.view(np.uint64).T)
        self._mask = np.ascontiguousarray(mask.view(np.uint64).T)

    def misspelled(self, ids: np.ndarray, offsets: np.ndarray, texts: Sequence[bytes]) -> list[int]:
        """The documents whose ids do not spell their text; `offsets` `[n + 1]` into the ids, `n` texts."""
        if self._spells(ids, offsets, texts):
            return []
        parts = [ids[a:b] for a, b in pairwise(offsets)]
        ends = [np.array([0, len(part)]) for part in parts]
        return [i for i, text in enumerate(texts) if not self._spells(parts[i], ends[i], [text])]

    def _spells(self, ids: np.ndarray, offsets: np.ndarray, texts: Sequence[bytes]) -> bool:
        padded = np.frombuffer(b"".join(texts) + bytes(8 * self._words), np.uint8)
        size = len(padded) - 8 * self._words
        windows = np.ndarray(len(padded) - 7, np.dtype("<u8"), padded, strides=(1,))
        borders = np.zeros(len(ids) + 1, np.int64)  # where in the text each token begins
        for start in range(0, len(ids), _BLOCK):
            block = ids[start : start + _BLOCK]
            lengths = self._lengths.take(block)
            ends = borders[start + 1 : start + 1 + len(block)]
            np.cumsum(lengths, out=ends)
            ends += borders[start]
            if ends[-1] > size or not self._matches(block, lengths, ends - lengths, windows):
                return False
        return bool(borders[-1] == size and (borders[offsets] == _ends(texts)).all())

    def _matches(self, ids: np.ndarray, lengths: np.ndarray, starts: np.ndarray, windows: np.ndarray) -> bool:
        """Compare pieces and text eight bytes at a time; after the first word few pieces are left."""
        for word in range(self._words):
            difference = windows[starts]
            difference ^= self._table[word].take(ids)
            difference &= self._mask[word].take(ids)
            if difference.any():
                return False
            longer = np.flatnonzero(lengths > 8 * (word + 1))
            if not longer.size:
                break
            ids, lengths, starts = ids[longer], lengths[longer], starts[longer] + 8
        return True


def _ends(texts: Sequence[bytes]) -> np.ndarray:
    return np.cumsum([0, *(len(text) for text in texts)])
