"""A corpus of files: paths, globs, folders and fsspec URLs of text, JSON lines, Parquet and Arrow."""

from collections.abc import Iterator
from itertools import islice
from typing import Literal

from discdiff.data.inputs import CODECS, find
from discdiff.data.lines import json_texts, text_pieces, texts
from discdiff.data.spans import SPAN, Piece, Span, grouped
from discdiff.data.tables import rows_of, table_pieces, table_texts
from discdiff.types import DiscdiffError, Value

TEXT = (".txt", ".text", ".md")
LINES = (".jsonl", ".ndjson", ".json")
TABLES = (".parquet", ".arrow")
SUFFIXES = (*(kind + codec for kind in (*TEXT, *LINES) for codec in ("", *CODECS)), *TABLES)


class Files(Value, frozen=True):
    """Documents in files, in the order of their names.

    `url` is a path, a glob, a folder (all files of known suffix under it) or an fsspec URL (`s3://`,
    `gs://`, `https://`, `hf://`), or several. `field` names the text in JSON lines and tables. `separator`
    stands between the documents of a text file, "\\n" for one a line; without it each text file is one
    document. `suffix` reads every file as if its name ended so. What counts in a stage's key is the URL,
    not what lies there.
    """

    kind: Literal["files"] = "files"
    url: str | tuple[str, ...]
    field: str = "text"
    separator: str | None = None
    suffix: str | None = None

    def plan(self, size: int = SPAN) -> list[Span]:
        """The parts that tasks read.

        Raises DiscdiffError if there are no files, or for a suffix that is not known.
        """
        return grouped(self.pieces(size), size=size)

    def pieces(self, size: int = SPAN) -> list[Piece]:
        """The files in pieces of about `size` bytes where their format allows, in order."""
        urls = (self.url,) if isinstance(self.url, str) else self.url
        files = [file for url in urls for file in find(url, SUFFIXES)]
        pieces: list[Piece] = []
        for file in files:
            suffix = suffix_of(self.suffix or file.url)
            if suffix in TABLES:
                pieces += table_pieces(file, suffix, size)
            else:
                border = "\n" if suffix.startswith(LINES) else self.separator
                pieces += text_pieces(file, suffix, border, size)
        return pieces

    def documents(self, span: Span) -> Iterator[str]:
        """The documents of a part, in order."""
        for piece in span.pieces:
            yield from islice(self._read(piece), piece.first, piece.last)

    def count(self, piece: Piece) -> int:
        """How many documents a piece has: from the footer where there is one, else by reading."""
        return rows_of(piece) if piece.suffix in TABLES else sum(1 for _ in self._read(piece))

    def _read(self, piece: Piece) -> Iterator[str]:
        if piece.suffix in TABLES:
            return table_texts(piece, self.field)
        if piece.suffix.startswith(LINES):
            return json_texts(piece, self.field)
        return texts(piece, self.separator)


def suffix_of(path: str) -> str:
    """The suffix by which a file is read. Raises DiscdiffError for one that is not known."""
    name = path.split("::")[0].split("?")[0].lower()
    found = [suffix for suffix in SUFFIXES if name.endswith(suffix)]
    if not found:
        raise DiscdiffError(
            f"{path} has no known suffix; {', '.join((*TEXT, *LINES, *TABLES))} are read, text and JSON "
            f"lines also with {', '.join(CODECS)}; rename it or say how to read it, suffix='.txt'"
        )
    return max(found, key=len)
