"""Proof that ids spell their documents, for byte-level tokenizers, at a speed that every document can afford.

Each token of a byte-level tokenizer stands for fixed bytes. If the tokens of a batch, laid end to end, match
the text at each token's place, and documents end where they should, then decoding gives back exactly what was
encoded: nothing was lost, doubled, normalized or read as a control token. What this does not prove is that
the text was cut into tokens as the reference cuts it; that is compared on samples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from discdiff.compiled import compiled
from discdiff.data.encoding import offsets_of

WORD = 8
"""Bytes that are compared at once."""


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
    steps = steps_of(definition.get("pre_tokenizer"), "pretokenizers")
    normal = {step["type"] for step in steps_of(definition.get("normalizer"), "normalizers")}
    return (
        definition["model"].get("type", "BPE") == "BPE"
        and normal <= {"NFC"}
        and any(step["type"] == "ByteLevel" for step in steps_of(definition.get("decoder"), "decoders"))
        and any(step["type"] == "ByteLevel" and not step.get("add_prefix_space") for step in steps)
        and all(step["type"] in {"ByteLevel", "Split", "Digits", "Punctuation"} for step in steps)
    )


def steps_of(component: Mapping[str, Any] | None, name: str) -> Sequence[Mapping[str, Any]]:
    if component is None:
        return ()
    return component[name] if component["type"] == "Sequence" else (component,)


class Speller:
    """Compares ids with the text that they should spell."""

    def __init__(self, pieces: Sequence[bytes]):
        self._borders = offsets_of([len(piece) for piece in pieces]).astype(np.uint64)
        self._letters = np.frombuffer(b"".join(pieces), np.uint8)
        self._words = np.array(
            [(*_word(piece[:WORD]), *_word(piece[WORD : 2 * WORD]), len(piece)) for piece in pieces],
            np.uint64,
        )

    def misspelled(self, ids: np.ndarray, offsets: np.ndarray, texts: Sequence[bytes]) -> list[int]:
        """The documents whose ids do not spell their text; `offsets` `[n + 1]` into the ids, `n` texts."""
        ends = offsets_of([len(text) for text in texts])
        text = b"".join([*texts, bytes(3 * WORD)])
        wrong = np.zeros(len(texts), bool)
        words = np.ndarray(ends[-1] + 2 * WORD, "<u8", text, strides=(1,))
        compiled(_spells)(
            ids,
            offsets.astype(np.uint64),
            np.frombuffer(text, np.uint8),
            words,
            ends.astype(np.uint64),
            self._borders,
            self._letters,
            self._words,
            wrong,
        )
        return np.flatnonzero(wrong).tolist()


def _word(letters: bytes) -> tuple[int, int]:
    """Up to eight bytes as a number, and a mask of as many."""
    return int.from_bytes(letters, "little"), (1 << 8 * len(letters)) - 1


def _spells(
    ids: np.ndarray,
    offsets: np.ndarray,
    text: np.ndarray,
    words: np.ndarray,
    ends: np.ndarray,
    borders: np.ndarray,
    letters: np.ndarray,
    pieces: np.ndarray,
    wrong: np.ndarray,
) -> None:
    """Mark each document in which some id is not what stands in the text, or that ends elsewhere.

    `words[i]` are the eight bytes of the text from i on. `pieces[x]` are the first eight bytes of piece x,
    what of a word they are, the next eight, what of a word those are, and the piece's length. The few longer
    ones are compared byte by byte: piece x is `letters[borders[x] : borders[x + 1]]`. Numbers are unsigned:
    an index that might count from the end costs as much as the comparison.
    """
    first, second = np.uint64(WORD), np.uint64(2 * WORD)
    for document in range(len(wrong)):
        at, end = ends[document], ends[document + 1]
        right, differ = True, np.uint64(0)
        for i in range(offsets[document], offsets[document + 1]):
            x = ids[i]
            if x >= len(pieces):
                right = False
                break
            differ |= (words[at] ^ pieces[x, 0]) & pieces[x, 1]
            differ |= (words[at + first] ^ pieces[x, 2]) & pieces[x, 3]
            length = pieces[x, 4]
            if at + length > end:
                right = False
                break
            if length > second:
                for k in range(second, length):
                    right &= text[at + k] == letters[borders[x] + k]
            at += length
        wrong[document] = not right or differ != 0 or at != end
