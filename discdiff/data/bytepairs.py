"""Byte-level BPE with GPT-2's words, as one compiled pass over the bytes of many documents.

A text is cut into words, and a word's tokens depend on its bytes alone: they are found by merging when the
word is met, and remembered. Most words of a text are then one look into a table, for many words at once, so
that a processor waits for its memory once. Words are compared in full, never by their hash alone.

Every word that is learned is compared with the bytes of its tokens, and words lie end to end: that ids spell
their document is so proved on the way.

Three parts follow each other: cutting, merging, remembering. They are one file since what Numba keeps on disk
of a function is made anew when the function's own file changes, not when one that it calls does.

This file imports Numba, which takes a quarter of a second: import it where it is called.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from discdiff.compiled import compiled
from discdiff.data.encoding import Encoded, offsets_of
from discdiff.data.spelling import byte_of_character, pieces_of, steps_of

_ZERO, _ONE, _TWO, _THREE, _FOUR, _WORD = (np.uint64(n) for n in (0, 1, 2, 3, 4, 8))
_LOW_BYTE, _TWO_BYTES, _LOW_HALF = (np.uint64(n) for n in (0xFF, 0xFFFF, 0xFFFFFFFF))
_HALF = np.uint64(32)

# Cutting.
#
# Text cut into words as GPT-2 cuts it (Radford et al. 2019), many bytes at a time.
#
# Words are what this pattern matches, one match after the other, the first alternative that fits:
#
#     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
#
# A character is of one of four kinds: letter, number, space, other. Where words start follows from the kinds
# of neighbors, so that no automaton has to walk through the text:
#
# 1. A character of another kind than the one before starts a word, unless it follows a blank (U+0020), which
#    belongs to it.
# 2. Of spaces before something else, the last starts a word (if it is a blank, the word that it belongs to).
# 3. An apostrophe that starts a word takes the letters of a contraction along; what follows starts a word.
#
# Which kind a character beyond ASCII is of is asked of the reference, for many at a time, when one is met.
# Documents lie end to end, each closed by 0xFF, a byte that UTF-8 never has.

OTHER, LETTER, NUMBER, SPACE, BORDER, LATER, UNKNOWN = range(7)
"""Kinds of bytes: those of their characters, except that a wide space's bytes but the first are `LATER`."""
CLOSED = 0xFF
"""The byte that closes documents."""
PADDING = 64
"""Bytes that must follow the text, since it is read some at a time."""
BLOCK = 1024
"""Characters whose kinds are asked for at once."""
_CHARACTERS = 0x110000
_SURROGATES = range(0xD800, 0xE000)

_BLANK, _APOSTROPHE = np.uint8(0x20), np.uint64(0x27)
_SMALL, _A, _LETTERS, _ZERO_DIGIT, _DIGITS = (np.uint8(n) for n in (0x20, ord("a"), 26, ord("0"), 10))
_TAB, _CONTROLS, _CLOSED = np.uint8(9), np.uint8(5), np.uint8(CLOSED)
"""A tab begins five spaces of one byte; the blank is the sixth."""
_LETTER, _NUMBER, _SPACE, _BORDER = (np.uint8(kind) for kind in (LETTER, NUMBER, SPACE, BORDER))
_EACH = np.uint64(0x0101010101010101)
_TOP_BITS = np.uint64(0x8080808080808080)
_APOSTROPHES = _EACH * _APOSTROPHE


class Scratch(NamedTuple):
    """Room for a stretch of text: of each byte its kind and whether a word starts; where words start."""

    kinds: np.ndarray
    starts: np.ndarray
    cuts: np.ndarray

    @classmethod
    def of(cls, size: int) -> "Scratch":
        """Room for `size` bytes."""
        room = size + PADDING
        return cls(np.empty(room, np.uint8), np.empty(room, np.uint8), np.empty(room, np.uint32))


class Kinds:
    """The kind of each character, as far as it is known."""

    def __init__(self, cut: Callable[[str], list[str]]):
        """`cut` is the reference: words in the byte-level alphabet, where a character is a byte."""
        self._cut = cut
        self.of_characters = np.full(_CHARACTERS, UNKNOWN, np.uint8)

    def learn(self, character: int) -> None:
        """Ask for the kinds of the characters around one."""
        first = max(character // BLOCK * BLOCK, 0x80)
        characters = [chr(c) for c in range(first, first // BLOCK * BLOCK + BLOCK) if c not in _SURROGATES]
        runs = self._runs(characters)
        kinds = np.full(len(runs), SPACE, np.uint8)
        for kind, like in ((LETTER, "a"), (NUMBER, "0"), (OTHER, "!")):
            kinds[self._joins(like, [run[0] for run in runs])] = kind
        of_all = np.repeat(kinds, [len(run) for run in runs])
        self.of_characters[[ord(c) for c in characters]] = of_all

    def _runs(self, characters: list[str]) -> list[str]:
        """The characters in words, so that those of one are of one kind."""
        text = "".join(characters).encode()
        ends = np.cumsum([len(word) for word in self._cut(text.decode())])
        return [part.tobytes().decode() for part in np.split(np.frombuffer(text, np.uint8), ends[:-1])]

    def _joins(self, like: str, characters: list[str]) -> list[bool]:
        """Whether each character stays in one word with the one before it."""
        borders, at = set[int](), 0
        for word in self._cut("".join(f"\n{like}{c}" for c in characters)):
            borders.add(at)
            at += len(word)
        joins, at = list[bool](), 0
        for c in characters:
            joins.append(at + 2 not in borders)
            at += 2 + len(c.encode())
        return joins


@compiled
def cut(
    text: np.ndarray,
    words: np.ndarray,
    size: np.uint64,
    of_characters: np.ndarray,
    scratch: Scratch,
) -> tuple[np.uint64, np.int64]:
    """Write into `scratch.cuts` where the words of `size` bytes start, and after them `size`.

    Gives their number, and a character whose kind must be asked for first, or -1. `words[i]` are the eight
    bytes of the text from i on. What closes a document counts as a word.
    """
    kinds, starts, cuts = scratch
    for i in range(size):
        kinds[i] = _kind(text[i])
    unknown = _wide(text, words, size, of_characters, kinds)
    if unknown >= 0:
        return np.uint64(0), unknown
    kinds[size] = BORDER
    _start(text, size, kinds, starts)
    _except(text, words, size, kinds, starts)
    count = np.uint64(0)
    for i in range(size):
        cuts[count] = i
        count += np.uint64(starts[i])
    cuts[count] = size
    return count, np.int64(-1)


@compiled
def _kind(byte: np.uint8) -> np.uint8:
    """The kind of a character of one byte, and of what closes documents; `OTHER`, 0, of all other bytes.

    Comparisons alone, so that many are made at once.
    """
    letter = np.uint8((byte | _SMALL) - _A) < _LETTERS
    number = np.uint8(byte - _ZERO_DIGIT) < _DIGITS
    space = (byte == _BLANK) | (np.uint8(byte - _TAB) < _CONTROLS)
    return (
        np.uint8(letter) * _LETTER
        | np.uint8(number) * _NUMBER
        | np.uint8(space) * _SPACE
        | np.uint8(byte == _CLOSED) * _BORDER
    )


@compiled
def _wide(
    text: np.ndarray, words: np.ndarray, size: np.uint64, of_characters: np.ndarray, kinds: np.ndarray
) -> np.int64:
    """Write the kinds of characters of several bytes. A character that is not known, or -1."""
    i = np.uint64(0)
    while i < size:
        if words[i] & _TOP_BITS == 0:
            i += _WORD
            continue
        stop = min(i + _WORD, size)
        while i < stop:
            if text[i] < 0x80 or text[i] == CLOSED:
                i += _ONE
                continue
            character, length = _character(text, i)
            kind = of_characters[character]
            if kind == UNKNOWN:
                return np.int64(character)
            kinds[i] = kind
            for k in range(_ONE, length):
                kinds[i + k] = LATER if kind == SPACE else kind
            i += length
    return np.int64(-1)


@compiled
def _character(text: np.ndarray, i: np.uint64) -> tuple[np.uint64, np.uint64]:
    """The character of two to four bytes at i, and how many they are."""
    first = np.uint64(text[i])
    length = np.uint64(2) + np.uint64(first >= 0xE0) + np.uint64(first >= 0xF0)
    character = first & (np.uint64(0x7F) >> length)
    for k in range(_ONE, length):
        character = (character << np.uint64(6)) | np.uint64(text[i + k] & np.uint8(0x3F))
    return character, length


@compiled
def _start(text: np.ndarray, size: np.uint64, kinds: np.ndarray, starts: np.ndarray) -> None:
    """Write where words start by the first two rules. Of wide spaces the second sees only what is before."""
    starts[0] = 1
    for i in range(1, size):
        before, here, after = kinds[i - 1], kinds[i], kinds[i + 1]
        spaces = _is_space(before) & (here == SPACE)
        owned = (text[i - 1] == _BLANK) & (here < SPACE)
        changes = (before != here) & (here != LATER) & ~spaces & ~owned
        starts[i] = np.uint8(changes | (spaces & (after < SPACE)) | (here == BORDER))


@compiled
def _except(
    text: np.ndarray, words: np.ndarray, size: np.uint64, kinds: np.ndarray, starts: np.ndarray
) -> None:
    """Correct the starts at contractions and wide spaces."""
    for i in range(np.uint64(0), size, _WORD):
        others = words[i] ^ _APOSTROPHES
        if ((others - _EACH) & ~others | words[i]) & _TOP_BITS == 0:
            continue
        for k in range(i, min(i + _WORD, size)):
            if text[k] == _APOSTROPHE and starts[k]:
                end = k + _contraction(words[k])
                if end > k:
                    starts[k + _ONE] = 0
                    starts[end] = 1
            elif text[k] >= 0x80 and kinds[k] == SPACE and k > 0 and _is_space(kinds[k - _ONE]):
                end = k + _ONE
                while kinds[end] == LATER:
                    end += _ONE
                starts[k] = kinds[end] < SPACE


@compiled
def _is_space(kind: np.uint8) -> bool:
    return (kind == SPACE) | (kind == LATER)


@compiled
def _contraction(letters: np.uint64) -> np.uint64:
    """How many bytes the contraction has of which these are the first, 0 if it is none."""
    a, b = (letters >> np.uint64(8)) & np.uint64(0xFF), (letters >> np.uint64(16)) & np.uint64(0xFF)
    if a == ord("s") or a == ord("t") or a == ord("m") or a == ord("d"):
        return np.uint64(2)
    if (b == ord("e") and (a == ord("r") or a == ord("v"))) or (a == ord("l") and b == ord("l")):
        return np.uint64(3)
    return np.uint64(0)


# Merging.
#
# Byte-pair encoding of one word (Sennrich et al. 2016, arXiv:1508.07909): of all pairs of neighbors that may
# be merged, the one of least rank is, the leftmost if there are several, until there is none.
#
# A pair's rank is found by two looks into a table (cuckoo hashing, Pagh and Rodler 2004), without a branch:
# most pairs that are looked for can't be merged, and a processor can't guess which. A short word's ranks are
# few and looked through; those of a long one are kept in a heap. Both give the same tokens. A merge waits for
# the one before it in its word, but not for those of other words: short words are merged in step.

MOST_TOKENS = 2**20
"""Ids are below its last: a left part, a right part and a result fit one number of 64 bits."""
SHORT = 63
"""Bytes of a word whose ranks are looked through."""
SLOTS = 16
"""Short words that are merged in step."""
_TRIES = 1000

_ID_BITS, _ID = np.uint64(20), np.uint64(MOST_TOKENS - 1)
_FREE = np.uint64(2**64 - 1)
_PLACE_BITS = np.uint32(6)
"""Bits of a place in a short word."""
_NONE = np.uint32(2**26 - 1)
"""No token, and no rank: the greatest number that leaves room for a place in 32 bits."""
_HASHES = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_PARTS, _RANKS, _RIGHT, _LEFT, _SLOT = (np.uint64(n * (SHORT + 1)) for n in range(5))
"""Where in a slot of a `room` a word's numbers of each sort begin, and the size of a slot."""
_LANES = np.uint64(16)
"""Ranks that are compared at once."""
_STARTS, _SIZES, _PLACES, _COUNTS, _UNDONE = range(5)
"""Rows of `fresh` words: where each begins in the text, how many bytes it has, where its tokens go, and how
many they are; and the slots in which something may still be merged."""


class Merges(NamedTuple):
    """Tables of a vocabulary's merges."""

    of_bytes: np.ndarray
    """The token of each byte. `[256]`"""
    byte_pairs: np.ndarray
    """The rank of each pair of bytes, at first + 256 second, as `_rank` gives it. `[65536]`"""
    pairs: np.ndarray
    """left, right and result of each merge, at one of the two places of its pair. `[2^k]`"""
    shift: np.uint64
    """64 - k."""


def room() -> np.ndarray:
    """What short words in step need: of each part its token, the rank of its pair, and its neighbors."""
    return np.zeros(SLOTS * int(_SLOT), np.uint32)


def fresh_words(most: int) -> np.ndarray:
    """Room for words whose tokens are to be found by merging."""
    return np.zeros((5, most + 1), np.uint64)


def merges_of(
    vocabulary: Mapping[str, int], pairs: Sequence[Sequence[str] | str], byte_characters: Mapping[str, int]
) -> Merges | None:
    """The tables of a byte-level vocabulary, None if it is not one that these can hold.

    It must have a token for each byte and for all parts and results of its merges, no pair twice, and
    results whose ids rise with their rank, as training gives them: a rank is then known by its result.
    """
    try:
        of_bytes = np.zeros(256, np.uint32)
        for character, byte in byte_characters.items():
            of_bytes[byte] = vocabulary[character]
        halves = [pair.split(" ") if isinstance(pair, str) else pair for pair in pairs]
        merged = [(vocabulary[a], vocabulary[b], vocabulary[a + b]) for a, b in halves]
    except (KeyError, ValueError):
        return None
    left, right, made = np.array(merged, np.uint64).reshape(-1, 3).T
    keys = left << _ID_BITS | right
    if (
        max(vocabulary.values()) >= MOST_TOKENS - 1
        or (made[1:] <= made[:-1]).any()
        or len({*keys.tolist()}) < len(keys)
    ):
        return None
    bits = max(len(keys), 4).bit_length() + 1
    while True:
        shift, table = np.uint64(64 - bits), np.full(2**bits, _FREE)
        if _fill(table, shift, keys, made):
            break
        bits += 1
    byte_pairs = np.empty(2**16, np.uint32)
    _rank_bytes(of_bytes, table, shift, byte_pairs)
    return Merges(of_bytes, byte_pairs, table, shift)


@compiled
def _fill(table: np.ndarray, shift: np.uint64, keys: np.ndarray, made: np.ndarray) -> bool:
    """Put each pair at one of its two places, whoever is there moving to its other. False if it won't fit."""
    for rank in range(len(keys)):
        entry = (keys[rank] << _ID_BITS) | made[rank]
        place = (keys[rank] * _HASHES[0]) >> shift
        for _ in range(_TRIES):
            entry, table[place] = table[place], entry
            if entry == _FREE:
                break
            one, other = (
                ((entry >> _ID_BITS) * _HASHES[0]) >> shift,
                ((entry >> _ID_BITS) * _HASHES[1]) >> shift,
            )
            place = other if place == one else one
        else:
            return False
    return True


@partial(compiled, inlined=True)
def _rank(table: np.ndarray, shift: np.uint64, left: np.uint32, right: np.uint32) -> np.uint32:
    """The rank of a pair, `MOST_TOKENS` or more if it can't be merged."""
    key = (np.uint64(left) << _ID_BITS) | np.uint64(right)
    one, other = table[(key * _HASHES[0]) >> shift], table[(key * _HASHES[1]) >> shift]
    wanted = key << _ID_BITS  # of an entry that is the pair's, what differs from this is its result
    return np.uint32(min(one ^ wanted, other ^ wanted, np.uint64(_NONE)))


@compiled
def _rank_bytes(of_bytes: np.ndarray, table: np.ndarray, shift: np.uint64, byte_pairs: np.ndarray) -> None:
    for a in range(256):
        for b in range(256):
            byte_pairs[a + 256 * b] = _rank(table, shift, of_bytes[a], of_bytes[b])


# Arrays are given one by one, a word as the place where it starts in `words`, whose i-th entry are the eight
# bytes of a text from i on: for each array in a tuple, and for each slice, Numba would count references.


@partial(compiled, inlined=True)
def encode_words(
    words: np.ndarray,
    fresh: np.ndarray,
    number: np.uint64,
    of_bytes: np.ndarray,
    byte_pairs: np.ndarray,
    pairs: np.ndarray,
    shift: np.uint64,
    room: np.ndarray,
    ids: np.ndarray,
) -> None:
    """Write the tokens of the first `number` words of `fresh` into `ids`, and how many they are."""
    for first in range(_ZERO, number, np.uint64(SLOTS)):
        beyond = min(first + np.uint64(SLOTS), number)
        filled, longest = _ZERO, _ZERO
        for k in range(first, beyond):
            start, size, at = fresh[_STARTS, k], fresh[_SIZES, k], fresh[_PLACES, k]
            if size > SHORT:
                fresh[_COUNTS, k] = encode_long(words, start, size, of_bytes, pairs, shift, ids, at)
                continue
            slot = (k - first) * _SLOT
            _open(words, start, size, of_bytes, byte_pairs, room, slot)
            fresh[_UNDONE, filled] = slot
            filled, longest = filled + _ONE, max(longest, size)
        _merge_in_step(fresh, filled, longest, pairs, shift, room)
        for k in range(first, beyond):
            if fresh[_SIZES, k] <= SHORT:
                slot = (k - first) * _SLOT
                fresh[_COUNTS, k] = _close(fresh[_SIZES, k], room, slot, ids, fresh[_PLACES, k])


@partial(compiled, inlined=True)
def _merge_in_step(
    fresh: np.ndarray,
    filled: np.uint64,
    longest: np.uint64,
    pairs: np.ndarray,
    shift: np.uint64,
    room: np.ndarray,
) -> None:
    """Merge the words in so many slots, of which the longest has so many bytes."""
    lanes = longest // _LANES * _LANES + _LANES
    while filled > 0:
        left = _ZERO
        for i in range(filled):
            slot = fresh[_UNDONE, i]
            fresh[_UNDONE, left] = slot
            left += np.uint64(_merge(pairs, shift, room, slot, lanes))
        filled = left


@partial(compiled, inlined=True)
def _open(
    words: np.ndarray,
    start: np.uint64,
    size: np.uint64,
    of_bytes: np.ndarray,
    byte_pairs: np.ndarray,
    room: np.ndarray,
    slot: np.uint64,
) -> None:
    """Lay out a short word in a slot, each byte a part.

    Parts stay where they begin. A part's rank is that of its pair with the next, and its place, in one
    number. Behind the last is a part that merges with nothing.
    """
    parts, ranks, right, left = slot + _PARTS, slot + _RANKS, slot + _RIGHT, slot + _LEFT
    for i in range(np.uint64(SHORT + 1)):
        room[ranks + i] = _placed(_NONE, _ZERO)
    for i in range(size):
        two = words[start + i] & _TWO_BYTES
        room[parts + i] = of_bytes[two & _LOW_BYTE]
        room[ranks + i] = _placed(byte_pairs[two], i)
        room[right + i], room[left + i + _ONE] = i + _ONE, i
    room[ranks + size - _ONE] = _placed(_NONE, _ZERO)
    room[parts + size], room[left], room[right + size] = _NONE, size, size


@partial(compiled, inlined=True)
def _merge(pairs: np.ndarray, shift: np.uint64, room: np.ndarray, slot: np.uint64, lanes: np.uint64) -> bool:
    """Merge the pair of least rank, of so many, of the word in a slot. False if there is none."""
    parts, ranks, right, left = slot + _PARTS, slot + _RANKS, slot + _RIGHT, slot + _LEFT
    least = np.uint32(2**32 - 1)
    for i in range(lanes):
        least = min(least, room[ranks + i])
    made, here = least >> _PLACE_BITS, np.uint64(least & np.uint32(SHORT))
    if made >= MOST_TOKENS:
        return False
    gone = np.uint64(room[right + here])
    before, after = np.uint64(room[left + here]), np.uint64(room[right + gone])
    room[parts + here], room[right + here], room[left + after] = made, after, here
    room[ranks + gone] = _placed(_NONE, _ZERO)
    forth = _rank(pairs, shift, made, room[parts + after])
    back = _rank(pairs, shift, room[parts + before], made)
    room[ranks + here], room[ranks + before] = _placed(forth, here), _placed(back, before)
    return True


@partial(compiled, inlined=True)
def _close(size: np.uint64, room: np.ndarray, slot: np.uint64, ids: np.ndarray, at: np.uint64) -> np.uint64:
    """Write the parts of the word in a slot. Their number."""
    parts, right = slot + _PARTS, slot + _RIGHT
    count, i = _ZERO, _ZERO
    while i < size:
        ids[at + count] = room[parts + i]
        count += _ONE
        i = np.uint64(room[right + i])
    return count


@partial(compiled, inlined=True)
def _placed(rank: np.uint32, place: np.uint64) -> np.uint32:
    return (rank << _PLACE_BITS) | np.uint32(place)


@compiled
def encode_long(
    words: np.ndarray,
    start: np.uint64,
    size: np.uint64,
    of_bytes: np.ndarray,
    pairs: np.ndarray,
    shift: np.uint64,
    ids: np.ndarray,
    at: np.uint64,
) -> np.uint64:
    """The same for words of any length.

    Ranks and places wait in a heap. One whose pair is no longer there is left out when it comes up.
    """
    tokens = np.empty(size, np.uint32)
    right, left = np.empty(size, np.int64), np.empty(size, np.int64)
    heap, waiting = np.empty(3 * size, np.uint64), _ZERO
    end = np.int64(size)
    for i in range(end):
        tokens[i] = of_bytes[words[start + np.uint64(i)] & _LOW_BYTE]
        right[i], left[i] = i + 1, i - 1
    for i in range(end - 1):
        waiting = _wait(heap, waiting, _rank(pairs, shift, tokens[i], tokens[i + 1]), i)
    while waiting > 0:
        first = heap[0]
        waiting = _forget(heap, waiting)
        here = np.int64(first & _LOW_HALF)
        gone = right[here]
        if not 0 < gone < end or np.uint64(_rank(pairs, shift, tokens[here], tokens[gone])) != first >> _HALF:
            continue
        tokens[here] = first >> _HALF
        before, after = left[here], right[gone]
        right[here], right[gone] = after, 0
        if after < end:
            left[after] = here
            waiting = _wait(heap, waiting, _rank(pairs, shift, tokens[here], tokens[after]), here)
        if before >= 0:
            waiting = _wait(heap, waiting, _rank(pairs, shift, tokens[before], tokens[here]), before)
    count, i = _ZERO, 0
    while i < end:
        ids[at + count] = tokens[i]
        count += _ONE
        i = right[i]
    return count


@compiled
def _wait(heap: np.ndarray, waiting: np.uint64, rank: np.uint32, place: int) -> np.uint64:
    """Add a pair to the heap, unless it can't be merged. How many wait then."""
    if rank >= MOST_TOKENS:
        return waiting
    entry = (np.uint64(rank) << _HALF) | np.uint64(place)
    i = waiting
    while i > 0:
        above = (i - _ONE) // _TWO
        if heap[above] <= entry:
            break
        heap[i] = heap[above]
        i = above
    heap[i] = entry
    return waiting + _ONE


@compiled
def _forget(heap: np.ndarray, waiting: np.uint64) -> np.uint64:
    """Take the first out of the heap. How many wait then."""
    waiting -= _ONE
    entry, i = heap[waiting], _ZERO
    while _TWO * i + _ONE < waiting:
        below = _TWO * i + _ONE
        if below + _ONE < waiting and heap[below + _ONE] < heap[below]:
            below += _ONE
        if entry <= heap[below]:
            break
        heap[i] = heap[below]
        i = below
    heap[i] = entry
    return waiting


# Remembering.

_STRETCH = np.uint64(2**18)
"""Bytes of documents that are cut at once, so that what is known of them stays in a cache."""
_NEAR, _FAR, _ARENA = 2**19, 2**16, 2**20
"""Words that are remembered with their tokens beside them; the others; numbers of 64 bits for those."""
_BLOCK = np.uint64(256)
"""Words that are looked up together: the more, the more loads from memory are under way at once."""
_LONGEST = np.uint64(256)
"""Bytes of the longest word that is remembered."""
_TOKENS = np.uint64(4)
"""Tokens that lie beside a word in `Memory.near`."""
_SHORT = np.uint64(16)
"""Bytes from which on a word does not fit there."""
_TAG = np.uint64(0xFFF00000)
"""Bits of a hash that stand in `Memory.far` above a place in the arena."""
_COUNT_AT, _SIZE_AT = np.uint64(20), np.uint64(56)
_MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_FIRST = np.array([2 ** (8 * min(n, 8)) - 1 for n in range(16)] + [0], np.uint64)
_SECOND = np.array([2 ** (8 * max(n - 8, 0)) - 1 for n in range(16)] + [0], np.uint64)
"""Masks of a word's first eight bytes and of the next, by its length; nothing of a word that is longer."""


class Memory(NamedTuple):
    """The words that were met.

    Of `near`, four numbers are a row, a word of less than 16 bytes: its first eight, its others and its
    length, and up to four tokens of 32 bits, of which the first also holds their number. A word has a place
    in one of two neighboring rows. Other words lie in `arena` one after the other, each as its length and
    number of tokens, its bytes, its tokens; `far` says where, and the arena's first entry where it is free.
    When it is full, all of it is forgotten.
    """

    near: np.ndarray
    far: np.ndarray
    arena: np.ndarray

    @classmethod
    def new(cls) -> "Memory":
        arena = np.zeros(_ARENA, np.uint64)
        arena[0] = 1
        return cls(_aligned(_NEAR * 4), np.zeros(_FAR, np.uint32), arena)


def _aligned(size: int) -> np.ndarray:
    """Zeros of which every eight, from the first on, are one line of a processor's cache."""
    room = np.zeros(size + 8, np.uint64)
    skip = -(room.ctypes.data // 8) % 8
    return room[skip : skip + size]


class Pieces(NamedTuple):
    """The bytes of tokens, end to end: those of x are from `borders[x]` to `borders[x + 1]`."""

    letters: np.ndarray
    """The eight bytes from each byte on."""
    borders: np.ndarray

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> "Pieces":
        borders, letters = offsets_of([len(piece) for piece in pieces]), b"".join([*pieces, bytes(_WORD)])
        return cls(np.ndarray(borders[-1], "<u8", letters, strides=(1,)), borders.astype(np.uint64))


_FIRST_KEY, _SECOND_KEY, _ROW, _UNKNOWN, _START, _SIZE, _PLACE, _COUNT, _NEW, _SPELLED, _TOUCHED = range(11)
"""Rows of a block, some words that are looked up together.

Of each word its keys in `Memory.near`, and where its row there begins, or would. Of each that is not there
which of the words it is, where it begins in the text, how many bytes it has, where its tokens are, how many
they are, whether it is to be remembered, and whether its tokens spell it. The last is of no use; it is
written so that reading ahead is not left out.
"""


class BytePairs:
    """An encoder of byte-level BPE with GPT-2's words. Threads that share it wait for each other."""

    name = "bytepairs"

    def __init__(self, merges: Merges, pieces: Sequence[bytes], cut: Callable[[str], list[str]]):
        self._merges, self._kinds = merges, Kinds(cut)
        self._pieces, self._memory, self._room = Pieces.of(pieces), Memory.new(), room()
        self._lock, self._scratch = threading.Lock(), Scratch.of(int(_STRETCH))
        self._block, self._fresh = np.zeros((11, int(_BLOCK) + 1), np.uint64), fresh_words(int(_BLOCK))
        self._tokens = np.zeros(int(_STRETCH + _TOKENS), np.uint32)

    @classmethod
    def of(cls, definition: Mapping[str, Any], cut: Callable[[str], list[str]]) -> "BytePairs | None":
        """The encoder of a `tokenizer.json`, None if it is of another kind.

        `cut` gives the words of a text as the reference cuts it, in the byte-level alphabet.
        """
        if not _is_plain(definition):
            return None
        model = definition["model"]
        pieces, merges = (
            pieces_of(definition),
            merges_of(model["vocab"], model["merges"], byte_of_character()),
        )
        return None if pieces is None or merges is None else cls(merges, pieces, cut)

    def proved(self, documents: Sequence[str], utf8: Sequence[bytes]) -> tuple[Encoded, list[int]]:
        """Encode documents, and say which of them their ids do not spell: none, if all is well."""
        return self.encode(utf8)

    def encode(self, texts: Sequence[bytes]) -> tuple[Encoded, list[int]]:
        """The same of UTF-8 alone."""
        with self._lock:
            return self._encoded(texts)

    def _encoded(self, texts: Sequence[bytes]) -> tuple[Encoded, list[int]]:
        ends = offsets_of([len(text) + 1 for text in texts]).astype(np.uint64)
        longest = max((len(text) + 1 for text in texts), default=0)
        if longest > len(self._scratch.kinds) - PADDING:
            self._scratch = Scratch.of(longest)
            self._tokens = np.zeros(longest + int(_TOKENS), np.uint32)
        text = bytes([CLOSED]).join([*texts, bytes(PADDING)])
        size = int(ends[-1])
        batch = Batch(
            text=np.frombuffer(text, np.uint8),
            words=np.ndarray(size + PADDING // 2, "<u8", text, strides=(1,)),
            ends=ends,
            ids=np.empty(size + int(_TOKENS), np.uint32),
            offsets=np.zeros(len(texts) + 1, np.uint64),
            misspelled=np.zeros(len(texts), bool),
        )
        done, kinds = _ZERO, self._kinds
        while done < len(texts):
            done, unknown = _encode(
                batch,
                np.uint64(done),
                kinds.of_characters,
                self._scratch,
                self._merges,
                self._room,
                self._memory,
                self._pieces,
                self._block,
                self._fresh,
                self._tokens,
            )
            if unknown >= 0:
                kinds.learn(unknown)
        offsets = batch.offsets.astype(np.int64)
        return Encoded(batch.ids[: offsets[-1]], offsets), np.flatnonzero(batch.misspelled).tolist()


def _is_plain(definition: Mapping[str, Any]) -> bool:
    """Whether tokens follow from GPT-2's words and the merges alone."""
    model = definition["model"]
    steps = steps_of(definition.get("pre_tokenizer"), "pretokenizers")
    return (
        model.get("type", "BPE") == "BPE"
        and isinstance(model.get("merges"), list)
        and not any(
            model.get(name)
            for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
        )
        and definition.get("normalizer") is None
        and [step["type"] for step in steps] == ["ByteLevel"]
        and steps[0].get("use_regex", True)
        and all(token.get("special") for token in definition.get("added_tokens") or ())
    )


class Batch(NamedTuple):
    """Documents, and what becomes of them."""

    text: np.ndarray
    """Their bytes, each document closed."""
    words: np.ndarray
    """The eight bytes from each byte on."""
    ends: np.ndarray
    """Borders of documents in the text. `[n + 1]`"""
    ids: np.ndarray
    offsets: np.ndarray
    """Borders of documents in the ids. `[n + 1]`"""
    misspelled: np.ndarray
    """`[n]`"""


@compiled
def _encode(
    batch: Batch,
    done: np.uint64,
    of_characters: np.ndarray,
    scratch: Scratch,
    merges: Merges,
    room: np.ndarray,
    memory: Memory,
    pieces: Pieces,
    block: np.ndarray,
    fresh: np.ndarray,
    tokens: np.ndarray,
) -> tuple[np.uint64, np.int64]:
    """Encode documents from `done` on. How many are then done, and a character of unknown kind, or -1."""
    text, words, ends, ids, offsets, misspelled = batch
    near, far, arena = memory
    of_bytes, byte_pairs, pairs, shift = merges
    letters, borders = pieces
    cuts = scratch.cuts
    documents = np.uint64(len(misspelled))
    while done < documents:
        begin, beyond = ends[done], done + _ONE
        while beyond < documents and ends[beyond + _ONE] - begin <= _STRETCH:
            beyond += _ONE
        total, character = cut(text[begin:], words[begin:], ends[beyond] - begin, of_characters, scratch)
        if character >= 0:
            return done, character
        at = offsets[done]
        for first in range(_ZERO, total, _BLOCK):
            count = min(total - first, _BLOCK)
            _find(words, begin, cuts, first, count, near, block)
            missing = _miss(near, block, count)
            number = _recall_all(words, begin, cuts, first, missing, far, arena, block, fresh, tokens)
            encode_words(words, fresh, number, of_bytes, byte_pairs, pairs, shift, room, tokens)
            _check_all(words, missing, letters, borders, block, fresh, tokens)
            start = _ZERO
            for k in range(missing):
                stop = block[_UNKNOWN, k]
                for i in range(start, stop):
                    at += _take(near, block[_ROW, i], ids, at)
                start = stop + _ONE
                place = block[_PLACE, k]
                for i in range(block[_COUNT, k]):
                    ids[at + i] = tokens[place + i]
                at += block[_COUNT, k]
                misspelled[done] |= not block[_SPELLED, k]
                if block[_FIRST_KEY, stop] == CLOSED:
                    done += _ONE
                    offsets[done] = at
            for i in range(start, count):
                at += _take(near, block[_ROW, i], ids, at)
            _learn(words, missing, near, far, arena, block, tokens)
    return done, np.int64(-1)


@partial(compiled, inlined=True)
def _find(
    words: np.ndarray,
    begin: np.uint64,
    cuts: np.ndarray,
    first: np.uint64,
    count: np.uint64,
    near: np.ndarray,
    block: np.ndarray,
) -> None:
    """Say of each word where it is, its keys, and where it would be in `near`; load that into the cache."""
    mask = np.uint64(len(near)) - _FOUR
    start, touched = begin + np.uint64(cuts[first]), _ZERO
    for i in range(count):
        end = begin + np.uint64(cuts[first + i + _ONE])
        size = min(end - start, _SHORT)
        a = words[start] & _FIRST[size]
        b = words[start + _WORD] & _SECOND[size] | size << _SIZE_AT
        block[_FIRST_KEY, i], block[_SECOND_KEY, i], block[_ROW, i] = a, b, _hash(a, b) & mask
        start = end
    for i in range(count):
        touched ^= near[block[_ROW, i]]
    block[_TOUCHED, 0] = touched


@partial(compiled, inlined=True)
def _miss(near: np.ndarray, block: np.ndarray, count: np.uint64) -> np.uint64:
    """Find the rows of words in `near`, and list the words that are not there. Their number."""
    missing = _ZERO
    for i in range(count):
        row, a, b = block[_ROW, i], block[_FIRST_KEY, i], block[_SECOND_KEY, i]
        other = row ^ _FOUR
        here = (near[row] == a) & (near[row + _ONE] == b)
        there = (near[other] == a) & (near[other + _ONE] == b)
        block[_ROW, i] = other if there else row
        block[_UNKNOWN, missing] = i
        missing += np.uint64(not (here | there))
    return missing


@partial(compiled, inlined=True)
def _hash(first: np.uint64, second: np.uint64) -> np.uint64:
    mixed = (first ^ (second * _MIX[0])) * _MIX[1]
    return mixed ^ (mixed >> _HALF)


@partial(compiled, inlined=True)
def _take(near: np.ndarray, row: np.uint64, ids: np.ndarray, at: np.uint64) -> np.uint64:
    """Write the tokens of a row, four in any case. Their number."""
    a, b = near[row + _TWO], near[row + _THREE]
    ids[at] = a & _ID
    ids[at + _ONE] = a >> _HALF
    ids[at + _TWO] = b & _LOW_HALF
    ids[at + _THREE] = b >> _HALF
    return (a & _LOW_HALF) >> _COUNT_AT


@partial(compiled, inlined=True)
def _recall_all(
    words: np.ndarray,
    begin: np.uint64,
    cuts: np.ndarray,
    first: np.uint64,
    missing: np.uint64,
    far: np.ndarray,
    arena: np.ndarray,
    block: np.ndarray,
    fresh: np.ndarray,
    tokens: np.ndarray,
) -> np.uint64:
    """Write the tokens of the words that are in the arena, and list the new words. Their number."""
    place, number = _ZERO, _ZERO
    for k in range(missing):
        i = block[_UNKNOWN, k]
        start = begin + np.uint64(cuts[first + i])
        size = begin + np.uint64(cuts[first + i + _ONE]) - start
        closed, count = block[_FIRST_KEY, i] == CLOSED, _ZERO
        if size < _LONGEST and not closed:
            count = _recall(words, start, size, far, arena, tokens, place)
        new = np.uint64(count == 0 and not closed)
        block[_START, k], block[_SIZE, k], block[_PLACE, k], block[_COUNT, k] = start, size, place, count
        block[_NEW, k], block[_SPELLED, k] = new, _ONE
        fresh[_STARTS, number], fresh[_SIZES, number], fresh[_PLACES, number] = start, size, place
        number += new
        place += size
    return number


@partial(compiled, inlined=True)
def _check_all(
    words: np.ndarray,
    missing: np.uint64,
    letters: np.ndarray,
    borders: np.ndarray,
    block: np.ndarray,
    fresh: np.ndarray,
    tokens: np.ndarray,
) -> None:
    """Say how many tokens the new words have, and whether they spell them."""
    j = _ZERO
    for k in range(missing):
        if block[_NEW, k]:
            start, size, count = fresh[_STARTS, j], fresh[_SIZES, j], fresh[_COUNTS, j]
            block[_COUNT, k], block[_NEW, k] = count, size < _LONGEST
            block[_SPELLED, k] = _spelled(
                words, start, size, letters, borders, tokens, fresh[_PLACES, j], count
            )
            j += _ONE


@partial(compiled, inlined=True)
def _learn(
    words: np.ndarray,
    missing: np.uint64,
    near: np.ndarray,
    far: np.ndarray,
    arena: np.ndarray,
    block: np.ndarray,
    tokens: np.ndarray,
) -> None:
    """Remember the words that were new."""
    for k in range(missing):
        i, count, at = block[_UNKNOWN, k], block[_COUNT, k], block[_PLACE, k]
        start, size, row = block[_START, k], block[_SIZE, k], block[_ROW, i]
        if not (block[_NEW, k] and block[_SPELLED, k]):
            pass
        elif size < _SHORT and count <= _TOKENS:
            for j in range(_FOUR):
                near[(row ^ _FOUR) + j] = near[row + j]
            near[row], near[row + _ONE] = block[_FIRST_KEY, i], block[_SECOND_KEY, i]
            near[row + _TWO] = (
                np.uint64(tokens[at]) | count << _COUNT_AT | np.uint64(tokens[at + _ONE]) << _HALF
            )
            near[row + _THREE] = np.uint64(tokens[at + _TWO]) | np.uint64(tokens[at + _THREE]) << _HALF
        else:
            if arena[0] + _TWO * _LONGEST > len(arena):
                far[:] = 0
                arena[0] = 1
            here, mixed = arena[0], _mixed(words, start, size)
            far[mixed & np.uint64(len(far) - 1)] = mixed & _TAG | here
            arena[here] = size | count << _HALF
            for j in range(_ZERO, size, _WORD):
                here += _ONE
                arena[here] = _part(words, start, j, size)
            for j in range(count):
                here += _ONE
                arena[here] = tokens[at + j]
            arena[0] = here + _ONE


@partial(compiled, inlined=True)
def _recall(
    words: np.ndarray,
    start: np.uint64,
    size: np.uint64,
    far: np.ndarray,
    arena: np.ndarray,
    ids: np.ndarray,
    at: np.uint64,
) -> np.uint64:
    """Write the tokens of a word that is in the arena. Their number, 0 if it is not."""
    mixed = _mixed(words, start, size)
    there = np.uint64(far[mixed & np.uint64(len(far) - 1)])
    here = there & _ID
    if here == 0 or (there ^ mixed) & _TAG != 0 or arena[here] & _LOW_HALF != size:
        return _ZERO
    count = arena[here] >> _HALF
    for k in range(_ZERO, size, _WORD):
        here += _ONE
        if arena[here] != _part(words, start, k, size):
            return _ZERO
    for k in range(count):
        here += _ONE
        ids[at + k] = arena[here]
    return count


@partial(compiled, inlined=True)
def _mixed(words: np.ndarray, start: np.uint64, size: np.uint64) -> np.uint64:
    """A hash of a word."""
    mixed = size
    for k in range(_ZERO, size, _WORD):
        mixed = _hash(mixed, _part(words, start, k, size))
    return mixed


@partial(compiled, inlined=True)
def _part(words: np.ndarray, start: np.uint64, k: np.uint64, size: np.uint64) -> np.uint64:
    """The eight bytes of a word from its k-th on, or what there is."""
    return words[start + k] & _FIRST[min(size - k, _WORD)]


@partial(compiled, inlined=True)
def _spelled(
    words: np.ndarray,
    start: np.uint64,
    size: np.uint64,
    letters: np.ndarray,
    borders: np.ndarray,
    ids: np.ndarray,
    at: np.uint64,
    count: np.uint64,
) -> bool:
    """Whether tokens are the bytes of a word."""
    here, end, differ = start, start + size, _ZERO
    for k in range(at, at + count):
        token = np.uint64(ids[k])
        if token + _ONE >= len(borders):
            return False
        begin = borders[token]
        length = borders[token + _ONE] - begin
        if here + length > end:
            return False
        for i in range(_ZERO, length, _WORD):
            differ |= _part(words, here, i, length) ^ _part(letters, begin, i, length)
        here += length
    return here == end and differ == 0
