"""Prompts: the part of a sample that is given, as text with holes or as tokens, for each row its own.

A prompt opens, with a tokenizer and a length, into the canvases that samplers fill: text is context, holes
are free, and what is left of the length behind the last part is free too. Sample r continues prompt r mod n
of n, whatever it is batched with. Each text is encoded by itself, so no token reaches across a hole's border.
"""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field, model_validator

from discdiff.data.encoding import Tokenizer
from discdiff.types import Canvas, DiscdiffError, Value


@dataclass(frozen=True)
class Row:
    """One prompt on its positions: ids `[L]`, which are free `[L]`, and the ids that spans of them may be."""

    tokens: np.ndarray
    free: np.ndarray
    allowed: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    """(from, to, ids) of each restricted span."""


class Hole(Value, frozen=True):
    """Free positions: `length` of them, or all that the other parts leave.

    Only the tokens `allowed` may be written there, given as ids or as texts of one token each; any if there
    are none.
    """

    length: int | None = Field(default=None, ge=1)
    allowed: tuple[int | str, ...] = ()


class Blank(Value, frozen=True):
    """Nothing is given."""

    kind: Literal["none"] = "none"

    def rows(self, tokenizer: Tokenizer, length: int) -> list[Row]:
        """One row, all free."""
        return [laid_out((), tokenizer, length)]


class Prefix(Value, frozen=True):
    """Text that the sample begins with."""

    kind: Literal["prefix"] = "prefix"
    text: str

    def rows(self, tokenizer: Tokenizer, length: int) -> list[Row]:
        """One row that begins with the text."""
        return [laid_out((self.text,), tokenizer, length)]


class Template(Value, frozen=True):
    """Text with holes, part by part: a text is given, a number is so many free positions, and a `Hole` says
    more.

        parts = ["The ", 8, " was born in ", {length = 4, allowed = ["0", "1", "2"]}, "."]

    A hole without a length is the rest: `[{}, " The end."]` is a suffix.
    """

    kind: Literal["template"] = "template"
    parts: tuple[str | Annotated[int, Field(ge=1)] | Hole, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_of_one_length(self) -> "Template":
        if sum(isinstance(part, Hole) and part.length is None for part in self.parts) > 1:
            raise DiscdiffError(
                "several holes have no length and can't share the rest: give all but one a length"
            )
        return self

    def rows(self, tokenizer: Tokenizer, length: int) -> list[Row]:
        """One row, its parts from left to right."""
        return [laid_out(self.parts, tokenizer, length)]


class Several(Value, frozen=True):
    """Prompts in turn."""

    kind: Literal["several"] = "several"
    prompts: tuple[Annotated[Blank | Prefix | Template, Field(discriminator="kind")], ...] = Field(
        min_length=1
    )

    def rows(self, tokenizer: Tokenizer, length: int) -> list[Row]:
        """A row for each."""
        return [row for prompt in self.prompts for row in prompt.rows(tokenizer, length)]


class Canvases(Value, frozen=True):
    """A Parquet file of prompts, one a row: `tokens` (ids, anything where free), `free` (which are to be
    drawn), and perhaps `allowed` (for each position the ids it may have, any if there are none).

    `digest` is the sha256 of the file, so that the specification says which prompts these are; where they lie
    does not count.
    """

    kind: Literal["canvases"] = "canvases"
    url: str
    digest: str

    def identity(self) -> dict[str, str]:
        """Its kind and its content."""
        return {"kind": self.kind, "digest": self.digest}

    def rows(self, tokenizer: Tokenizer, length: int) -> list[Row]:
        """A row for each of the table's. Raises DiscdiffError for another file, or one that is not such a
        table.
        """
        table = self._table()
        missing = {"tokens", "free"} - set(table.column_names)
        if missing or not table.num_rows:
            raise DiscdiffError(
                f"{self.url} has {table.num_rows} rows of {', '.join(table.column_names)}: "
                "give rows with the columns tokens and free, lists of one length"
            )
        return [self._row(number, each, tokenizer, length) for number, each in enumerate(table.to_pylist())]

    def _table(self) -> pa.Table:
        try:
            with fsspec.open(self.url, "rb") as file:
                content = bytes(file.read())  # pyright: ignore[reportAttributeAccessIssue]
            found = hashlib.sha256(content).hexdigest()
            if found != self.digest:
                raise DiscdiffError(
                    f"{self.url} has sha256 {found}, not {self.digest}: these are other prompts"
                )
            return pq.read_table(io.BytesIO(content))
        except (OSError, pa.ArrowInvalid) as error:
            raise DiscdiffError(
                f"the prompts {self.url} can't be read: {error}; give a Parquet file"
            ) from error

    def _row(self, number: int, given: dict[str, Any], tokenizer: Tokenizer, length: int) -> Row:
        tokens, free, allowed = (given.get(name) or [] for name in ("tokens", "free", "allowed"))
        where = f"{self.url}: row {number}"
        if len(tokens) != len(free) or len(allowed) not in (0, len(tokens)):
            raise DiscdiffError(
                f"{where} has {len(tokens)} tokens and {len(free)} free: give lists of one length"
            )
        spans = tuple((at, at + 1, tuple(ids)) for at, ids in enumerate(allowed) if ids)
        context = [token for token, open_ in zip(tokens, free, strict=True) if not open_]
        outside = [
            i for i in (*context, *(i for _, _, ids in spans for i in ids)) if not 0 <= i < tokenizer.size
        ]
        if outside:
            raise DiscdiffError(
                f"{where}: id {outside[0]} is not in the vocabulary of {tokenizer.size} tokens"
            )
        tokens = [0 if open_ else token for token, open_ in zip(tokens, free, strict=True)]
        return _fitted(np.array(tokens, np.int64), np.array(free, bool), spans, length, where)


AnyPrompt = Annotated[Blank | Prefix | Template | Several | Canvases, Field(discriminator="kind")]


def laid_out(parts: Iterable[str | int | Hole], tokenizer: Tokenizer, length: int) -> Row:
    """Parts from left to right on `length` positions.

    Raises DiscdiffError for text outside the vocabulary, and for more than fits.
    """
    pieces = [_encoded(part, tokenizer) if isinstance(part, str) else _hole(part) for part in parts]
    taken = sum(len(piece) if isinstance(piece, np.ndarray) else piece.length or 0 for piece in pieces)
    tokens, free, spans = list[np.ndarray](), list[np.ndarray](), list[tuple[int, int, tuple[int, ...]]]()
    at = 0
    for piece in pieces:
        if isinstance(piece, np.ndarray):
            ids = piece
        else:
            ids = np.zeros(max(length - taken, 0) if piece.length is None else piece.length, np.int64)
            if piece.allowed and len(ids):
                spans.append((at, at + len(ids), _ids(piece.allowed, tokenizer)))
        tokens.append(ids)
        free.append(np.full(len(ids), isinstance(piece, Hole)))
        at += len(ids)
    nothing = np.zeros(0, np.int64)
    return _fitted(
        np.concatenate([nothing, *tokens]),
        np.concatenate([nothing > 0, *free]),
        tuple(spans),
        length,
        "the prompt",
    )


def _hole(part: int | Hole) -> Hole:
    return part if isinstance(part, Hole) else Hole(length=part)


def _encoded(text: str, tokenizer: Tokenizer) -> np.ndarray:
    return tokenizer.encode_batch([text]).ids.astype(np.int64)


def _ids(allowed: Iterable[int | str], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens by id or by text. Raises DiscdiffError for what is no token of the vocabulary."""
    found: list[int] = []
    for each in allowed:
        ids = [each] if isinstance(each, int) else _encoded(each, tokenizer).tolist()
        if len(ids) != 1 or not 0 <= ids[0] < tokenizer.size:
            reason = (
                f"it is {len(ids)} tokens" if isinstance(each, str) else f"ids are 0 to {tokenizer.size - 1}"
            )
            raise DiscdiffError(
                f"allowed = {each!r} is no token of this vocabulary: {reason}; give single tokens"
            )
        found += ids
    return tuple(dict.fromkeys(found))


def _fitted(
    tokens: np.ndarray,
    free: np.ndarray,
    allowed: tuple[tuple[int, int, tuple[int, ...]], ...],
    length: int,
    where: str,
) -> Row:
    """A row of exactly `length`: what is left behind the parts is free."""
    if len(tokens) > length:
        raise DiscdiffError(
            f"{where} takes {len(tokens)} positions and samples have {length}: shorten it, or set length"
        )
    rest = length - len(tokens)
    if rest == 0 and not free.any():
        raise DiscdiffError(f"{where} fills all {length} positions, so nothing is left to draw: shorten it")
    return Row(
        np.concatenate([tokens, np.zeros(rest, np.int64)]),
        np.concatenate([free, np.ones(rest, bool)]),
        allowed,
    )


class Prompts:
    """Prompts on their positions: the canvas of any samples, by their numbers."""

    def __init__(self, prompt: AnyPrompt, tokenizer: Tokenizer, length: int) -> None:
        rows = prompt.rows(tokenizer, length)
        self.vocab = tokenizer.size
        self.tokens = torch.from_numpy(np.stack([row.tokens for row in rows]))
        self.free = torch.from_numpy(np.stack([row.free for row in rows]))
        self.allowed = [row.allowed for row in rows]

    def __len__(self) -> int:
        return len(self.tokens)

    def canvas(self, start: int, stop: int) -> Canvas:
        """Samples `start` to `stop`, on the CPU."""
        rows = torch.arange(start, stop)
        which = rows % len(self)
        return Canvas(self.tokens[which], self.free[which], rows, allowed=self._allowed(which))

    def _allowed(self, which: torch.Tensor) -> torch.Tensor | None:
        """`[B, L, V]`, None where nothing is restricted; of prompts that are all one, a view of one."""
        kinds, places = which.unique(return_inverse=True)
        if not any(self.allowed[int(kind)] for kind in kinds):
            return None
        table = torch.ones(len(kinds), self.tokens.shape[1], self.vocab, dtype=torch.bool)
        for row, kind in zip(table, kinds, strict=True):
            for first, last, ids in self.allowed[int(kind)]:
                row[first:last] = False
                row[first:last, list(ids)] = True
        return table.expand(len(which), -1, -1) if len(kinds) == 1 else table[places]
