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
import pyarrow as pa
import pyarrow.compute as pc

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
    written = {token: index for token, index in vocabulary.items() if index not in added}
    if not bytes_by_character.keys() >= set("".join(written)):
        return None
    bytes_of = str.maketrans({character: chr(byte) for character, byte in bytes_by_character.items()})
    for token, index in written.items():
        pieces[index] = token.translate(bytes_of).encode("latin-1")
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
        self._pieces = pa.array(pieces, pa.binary())

    def misspelled(self, ids: np.ndarray, offsets: np.ndarray, texts: Sequence[bytes]) -> list[int]:
        """The documents whose ids do not spell their text; `offsets` `[n + 1]` into the ids, `n` texts."""
        if self._spells(ids, offsets, texts):
            return []
        parts = [ids[a:b] for a, b in pairwise(offsets)]
        ends = [np.array([0, len(part)]) for part in parts]
        return [i for i, text in enumerate(texts) if not self._spells(parts[i], ends[i], [text])]

    def _spells(self, ids: np.ndarray, offsets: np.ndarray, texts: Sequence[bytes]) -> bool:
        if len(ids) and ids.max() >= len(self._pieces):
            return False
        text = pa.py_buffer(b"".join(texts))
        borders = np.zeros(len(ids) + 1, np.int64)  # where in the text each token begins
        for start in range(0, len(ids), _BLOCK):
            spelled = pc.take(self._pieces, pa.array(ids[start : start + _BLOCK]), boundscheck=False)
            _, ends, written = spelled.buffers()
            begin, block = borders[start], np.frombuffer(ends, np.int32, len(spelled) + 1)
            borders[start : start + len(block)] = begin + block
            if written is not None and not text[begin : begin + int(block[-1])].equals(written):
                return False
        return bool(borders[-1] == text.size and (borders[offsets] == _ends(texts)).all())


def _ends(texts: Sequence[bytes]) -> np.ndarray:
    return np.cumsum([0, *(len(text) for text in texts)])
