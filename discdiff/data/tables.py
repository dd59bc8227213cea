"""Documents out of Parquet and Arrow, in pieces of row groups or record batches."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from discdiff.data.inputs import Input, opened
from discdiff.data.spans import SPAN, Piece
from discdiff.types import DiscdiffError

_ROWS = 1024


class _Groups:
    """A file of row groups: how many, how heavy, how long, and their rows."""

    def __init__(self, reader: Any):
        self.schema: pa.Schema = reader.schema_arrow if isinstance(reader, pq.ParquetFile) else reader.schema
        self._reader: Any = reader

    def sizes(self, size: int) -> list[int]:
        """Bytes of each group, as far as they are known; a stream is one."""
        if isinstance(self._reader, pq.ParquetFile):
            meta = self._reader.metadata
            return [meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)]
        count = getattr(self._reader, "num_record_batches", 1)
        return [size // max(count, 1)] * count

    def rows(self, start: int, stop: int) -> int:
        if isinstance(self._reader, pq.ParquetFile):
            return sum(self._reader.metadata.row_group(i).num_rows for i in range(start, stop))
        return sum(len(batch) for batch in self._batches(start, stop))

    def column(self, start: int, stop: int, field: str) -> Iterator[pa.Array]:
        if isinstance(self._reader, pq.ParquetFile):
            groups = list(range(start, stop))
            for batch in self._reader.iter_batches(
                _ROWS, row_groups=groups, columns=[field], use_threads=False
            ):
                yield batch.column(0)
        else:
            for batch in self._batches(start, stop):
                yield batch.column(self.schema.get_field_index(field))

    def _batches(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        if isinstance(self._reader, pa.ipc.RecordBatchFileReader):
            return (self._reader.get_batch(i) for i in range(start, stop))
        return iter(self._reader)


def table_pieces(file: Input, suffix: str, size: int = SPAN) -> list[Piece]:
    """A table in pieces of row groups, of about `size` bytes."""
    with _opened(file.url, suffix) as groups:
        sizes = groups.sizes(file.size or 0)
    pieces: list[Piece] = []
    start = total = 0
    for index, weight in enumerate(sizes):
        if total and total + weight > size:
            pieces.append(Piece(file.url, suffix, start, index, total, file.version, file.stamp))
            start, total = index, 0
        total += weight
    return [*pieces, Piece(file.url, suffix, start, len(sizes), total, file.version, file.stamp)]


def rows_of(piece: Piece) -> int:
    """How many documents a piece has."""
    with _opened(piece.url, piece.suffix) as groups:
        return groups.rows(piece.start, piece.stop or 0)


def table_texts(piece: Piece, field: str) -> Iterator[str]:
    """The documents of a piece, each in the given column; null is an empty document."""
    with _opened(piece.url, piece.suffix) as groups:
        _check_field(groups.schema, field, piece.path)
        row = 0
        for column in groups.column(piece.start, piece.stop or 0, field):
            for text in _strings(column, piece.path, row):
                yield text or ""
            row += len(column)


def _strings(column: pa.Array, path: str, row: int) -> list[str | None]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError as error:
        for index in range(len(column)):
            try:
                column[index].as_py()
            except UnicodeDecodeError as first:
                where = f"row {row + index} of the piece, byte {first.start} of its text"
                raise DiscdiffError(f"{path} is not UTF-8: {where}; convert it") from error
        raise


def _check_field(schema: pa.Schema, field: str, path: str) -> None:
    if field not in schema.names:
        names = ", ".join(schema.names)
        raise DiscdiffError(f"{path} has no field {field!r}; its fields are {names}: name the text's")
    kind = schema.field(field).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
        raise DiscdiffError(f"field {field!r} of {path} is {kind}, not text; name another field")


@contextmanager
def _opened(path: str, suffix: str) -> Generator[_Groups]:
    """A Parquet file, an Arrow file or, under the same suffix, an Arrow stream."""
    with opened(path) as file:
        try:
            yield _Groups(pq.ParquetFile(file) if suffix == ".parquet" else _arrow(file))
        except pa.ArrowInvalid as error:
            what = " ".join(str(error).split())
            raise DiscdiffError(
                f"{path} is no whole {suffix} file: {what}; write or fetch it again"
            ) from error


def _arrow(file: Any) -> Any:
    try:
        return pa.ipc.open_file(file)
    except pa.ArrowInvalid:
        file.seek(0)
        return pa.ipc.open_stream(file)
