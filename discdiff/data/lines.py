"""Documents out of text and JSON lines, in pieces that several tasks can share.

A record that begins in a piece belongs to it, so uncompressed files are cut anywhere and read from the first
record that begins there. A text file without a separator is one document; if it is longer than a piece, it is
cut at line borders into several.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import orjson

from discdiff.data.inputs import Input, blocks, codec_of, decompressed, opened
from discdiff.data.spans import SPAN, Piece, cut
from discdiff.types import DiscdiffError


def text_pieces(file: Input, suffix: str, separator: str | None, size: int = SPAN) -> list[Piece]:
    """A file in pieces of about `size` bytes where its format allows."""
    whole = Piece(file.url, suffix, size=file.size or 0, version=file.version, stamp=file.stamp)
    if file.size is None or file.size <= size or codec_of(suffix) or _overlaps(separator or "\n"):
        return [whole]
    ranges = cut(file.size, size)
    return [replace(whole, start=a, stop=b, size=b - a) for a, b in ranges]


def texts(piece: Piece, separator: str | None) -> Iterator[str]:
    """The documents of a piece of text: what stands between separators, or all of it as one."""
    if separator is None:
        yield _whole(piece)
    else:
        for at, record in _records(piece, separator.encode()):
            yield _text(piece, at, record)


def _overlaps(separator: str) -> bool:
    """Whether separators can share characters, so that where records begin depends on what went before."""
    return any(separator.startswith(separator[i:]) for i in range(1, len(separator)))


def _records(piece: Piece, separator: bytes) -> Iterator[tuple[int, bytes]]:
    """The records that begin in a piece, and where each does in the (decompressed) file."""
    codec = codec_of(piece.suffix)
    begin = max(0, piece.start - len(separator))
    data = decompressed(piece.url, codec) if codec else blocks(piece.url, begin, piece.stop)
    for place, record in split(data, separator):
        at = begin + place
        if piece.stop is not None and at >= piece.stop:
            return
        if at >= piece.start:
            yield at, record


def split(data: Iterable[bytes], separator: bytes) -> Iterator[tuple[int, bytes]]:
    """Records and where they begin; what follows the last separator is a record unless it is empty."""
    rest, at = b"", 0
    for block in data:
        text, start = rest + block, 0
        while (end := text.find(separator, start)) >= 0:  # bytes.split seeks one letter byte by byte
            yield at + start, text[start:end]
            start = end + len(separator)
        rest, at = text[start:], at + start
    if rest:
        yield at, rest


def _whole(piece: Piece) -> str:
    """A text file as one document; a piece of a long one as the lines that begin in it."""
    codec = codec_of(piece.suffix)
    if codec:
        return _text(piece, 0, b"".join(decompressed(piece.url, codec)))
    start, stop = _line(piece, piece.start), None if piece.stop is None else _line(piece, piece.stop)
    with opened(piece.url) as file:
        if start:
            file.seek(start)
        return _text(piece, start, file.read() if stop is None else file.read(stop - start))


def _line(piece: Piece, position: int) -> int:
    """Where the first line begins at or after a position."""
    if position == 0:
        return 0
    at = position - 1
    for block in blocks(piece.url, at, at):
        found = block.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(block)
    return at


def _text(piece: Piece, at: int, record: bytes) -> str:
    try:
        text = record.decode()
    except UnicodeDecodeError as error:
        raise DiscdiffError(
            f"{piece.path} is not UTF-8: byte 0x{record[error.start]:02X} at offset {at + error.start} "
            f"({error.reason}); convert it, for example with iconv"
        ) from error
    return text.removeprefix("\ufeff") if at == 0 else text


def json_texts(piece: Piece, field: str) -> Iterator[str]:
    """The documents of a piece of JSON lines, each in the given field; null is an empty document."""
    for at, record in _records(piece, b"\n"):
        if not record or record.isspace():
            continue
        where = f"{piece.path}: the record at byte {at}"
        value, is_unicode = _parsed(piece, at, record)
        if not isinstance(value, dict) or field not in value:
            has = f"its fields are {', '.join(value)}" if isinstance(value, dict) else "it is no object"
            raise DiscdiffError(f"{where} has no field {field!r}: {has}; name the text's field: field='...'")
        text = string(value[field], f"{where}, field {field!r},")
        if not is_unicode and not _is_unicode(text):
            raise DiscdiffError(f"{where} holds half of a surrogate pair, which is no text; repair it")
        yield text


def _parsed(piece: Piece, at: int, record: bytes) -> tuple[Any, bool]:
    """The value of a record, and whether its text is known to be Unicode.

    What the fast parser refuses, halves of surrogate pairs too, Python reads or names the mistake in.
    """
    try:
        return orjson.loads(record), True
    except ValueError:
        pass
    try:
        return json.loads(_text(piece, at, record)), False
    except json.JSONDecodeError as error:
        where = f"{piece.path}: the record at byte {at}"
        raise DiscdiffError(f"{where} is not JSON: {error.msg}; give one object a line") from error


def string(value: object, where: str) -> str:
    """A document; a missing one is empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DiscdiffError(f"{where} is {type(value).__name__}, not text; name another field")
    return value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
