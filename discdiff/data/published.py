"""Corpora with published splits, as published: text8, LM1B, OpenWebText, WikiText.

Each is read from where its authors put it, or from a copy of the same form at any path or fsspec URL.
What is an archive is unpacked first, into the folder of the store, and read from there.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from discdiff.data.archives import is_archive, unpack
from discdiff.data.files import Files
from discdiff.data.folder import Folder
from discdiff.data.inputs import Input, find, opened
from discdiff.data.lines import text_pieces
from discdiff.data.spans import SPAN, Piece, Span, cut, grouped
from discdiff.data.tables import table_pieces
from discdiff.types import DiscdiffError, Value

SPLIT_NAMES = {"train": "train", "valid": "validation", "validation": "validation", "test": "test"}

Count = Annotated[int, Field(ge=0)]


class Archived(Value, frozen=True):
    """A corpus at a URL that may be that of an archive."""

    url: str

    def unpacked(self, folder: Folder) -> "Archived":
        """The corpus, read from the archive's files in a folder, where they are put if need be."""
        if not is_archive(self.url):
            return self
        if folder.size("unpacked") is None:
            names = unpack(self.url, folder, lambda name: self.split_of(name) is not None)
            folder.put("unpacked", "\n".join(names).encode())
        return self.model_copy(update={"url": folder.uri})

    @staticmethod
    def split_of(name: str) -> str | None:
        """The split of a file by its name, None if it is not the corpus's."""
        raise NotImplementedError

    def files(self) -> list[tuple[str, Input]]:
        """The corpus's files with their splits, by name."""
        found = [(self.split_of(file.url.rsplit("/", 1)[-1]), file) for file in find(self.url, ("",))]
        files = [(split, file) for split, file in found if split is not None]
        if not files:
            raise DiscdiffError(f"{self.url} holds none of this corpus's files; give it as it was published")
        return files


class Text8Corpus(Archived, frozen=True):
    """text8: 90 million characters of cleaned Wikipedia to train, 5 million to validate, 5 million to test.

    It is one document of 27 symbols: use the tokenizer `Text8()`.
    """

    kind: Literal["text8"] = "text8"
    url: str = "http://mattmahoney.net/dc/text8.zip"
    train: Count = 90_000_000
    validation: Count = 5_000_000
    test: Count = 5_000_000

    @staticmethod
    def split_of(name: str) -> str | None:
        return "all" if name == "text8" else None

    def plan(self, size: int = SPAN) -> list[Span]:
        """Ranges of characters, split by split.

        Raises DiscdiffError if the file is of another length than the splits together.
        """
        ((_, file),) = self.files()
        counts = {"train": self.train, "validation": self.validation, "test": self.test}
        if file.size != sum(counts.values()):
            raise DiscdiffError(
                f"{self.url} has {file.size} characters, but its splits take {sum(counts.values())}; "
                "give the published file, or the splits of your own"
            )
        (whole,) = _portable([Piece(file.url, "", version=file.version, stamp=file.stamp)])
        spans: list[Span] = []
        at = 0
        for split, count in counts.items():
            for a, b in cut(count, size) if count else ():
                spans.append(Span((replace(whole, start=at + a, stop=at + b, size=b - a),), split))
            at += count
        return spans

    def documents(self, span: Span) -> Iterator[str]:
        """The characters of a range."""
        for piece in span.pieces:
            with opened(piece.url) as file:
                file.seek(piece.start)
                yield file.read(piece.size).decode("ascii", "replace")


class Lm1b(Archived, frozen=True):
    """LM1B, the One Billion Word Benchmark (Chelba et al. 2013, arXiv:1312.3005): a sentence a document.

    The 99 training files train; test is all of the held-out set, as in the TensorFlow and Hugging Face
    editions (306,688 sentences) by which diffusion papers report. Packed or unpacked is the loader's
    choice, `Wrap(128)` or `PerDocument(128)`. The text is spaced by words: `Tokenize(detokenizer="lm1b")`
    undoes that.
    """

    kind: Literal["lm1b"] = "lm1b"
    url: str = (
        "https://www.statmt.org/lm-benchmark/1-billion-word-language-modeling-benchmark-r13output.tar.gz"
    )

    @staticmethod
    def split_of(name: str) -> str | None:
        if re.fullmatch(r"news\.en-\d+-of-\d+", name):
            return "train"
        return "test" if re.fullmatch(r"news\.en\.heldout-\d+-of-\d+", name) else None

    def plan(self, size: int = SPAN) -> list[Span]:
        """The training files, then the held-out ones, in pieces."""
        spans: list[Span] = []
        for split in ("train", "test"):
            files = [file for its, file in self.files() if its == split]
            pieces = [piece for file in files for piece in text_pieces(file, ".txt", "\n", size)]
            spans += grouped(_portable(pieces), split, size)
        return spans

    def documents(self, span: Span) -> Iterator[str]:
        return Files(url=self.url, separator="\n").documents(span)


class Wikitext(Archived, frozen=True):
    """WikiText (Merity et al. 2016, arXiv:1609.07843): an article a document, with its own three splits.

    Reads the Parquet edition (a row a line) and the original archive (`wiki.train.raw`). An article
    begins at a heading of one equals sign; one that crosses two Parquet files is two documents.
    `Tokenize(detokenizer="wikitext")` undoes the spacing.
    """

    kind: Literal["wikitext"] = "wikitext"
    url: str = "hf://datasets/Salesforce/wikitext/wikitext-103-raw-v1"

    @staticmethod
    def split_of(name: str) -> str | None:
        match = re.fullmatch(
            r"(?:wiki\.)?(train|validation|valid|test)(?:-[^.]*)?\.(?:raw|tokens|parquet)", name
        )
        return SPLIT_NAMES[match[1]] if match else None

    def plan(self, size: int = SPAN) -> list[Span]:
        """A file a part: articles are not cut."""
        whole = 2**62
        spans: list[Span] = []
        for split, file in self.files():
            if file.url.endswith(".parquet"):
                pieces = table_pieces(file, ".parquet", whole)
            else:
                pieces = text_pieces(file, ".txt", "\n", whole)
            spans.append(Span(tuple(_portable(pieces)), split))
        return spans

    def documents(self, span: Span) -> Iterator[str]:
        """The articles of a part; lines before the first heading are one too."""
        article: list[str] = []
        for line in Files(url=self.url, separator="\n").documents(span):
            line = line.rstrip("\n")
            if re.fullmatch(r" = [^=].* = ?", line) and any(line.strip() for line in article):
                yield "\n".join([*article, ""])
                article = []
            article.append(line)
        if any(line.strip() for line in article):
            yield "\n".join([*article, ""])


class OpenWebText(Value, frozen=True):
    """OpenWebText (Gokaslan and Cohen 2019): the last 100,000 documents validate, the others train.

    That is the split by which diffusion papers report. Documents are counted in the order of the files'
    names; the Parquet edition gives the counts in its footers, other formats are read once more to count
    them.
    """

    kind: Literal["openwebtext"] = "openwebtext"
    url: str = "hf://datasets/Skylion007/openwebtext/**/*.parquet"
    validation: Annotated[int, Field(ge=1)] = 100_000

    def plan(self, size: int = SPAN) -> list[Span]:
        """All but the last documents, then those. Raises DiscdiffError if there are no more than validate."""
        files = Files(url=self.url)
        pieces = files.pieces(size)
        counts = [files.count(piece) for piece in pieces]
        border = sum(counts) - self.validation
        if border <= 0:
            raise DiscdiffError(
                f"{self.url} has {sum(counts)} documents, of which the last {self.validation} validate; "
                "give the whole corpus, or a smaller validation"
            )
        train: list[Piece] = []
        validation: list[Piece] = []
        for piece, count in zip(pieces, counts, strict=True):
            if border >= count:
                train.append(piece)
            elif border <= 0:
                validation.append(piece)
            else:
                train.append(replace(piece, last=border))
                validation.append(replace(piece, first=border))
            border -= count
        return grouped(train, "train", size) + grouped(validation, "validation", size)

    def documents(self, span: Span) -> Iterator[str]:
        return Files(url=self.url).documents(span)


def _portable(pieces: list[Piece]) -> list[Piece]:
    """The same pieces, known by the names of their files and not by where those lie."""
    parts = [piece.path.rpartition("/") for piece in pieces]
    return [
        replace(piece, path=name, base=folder + slash)
        for piece, (folder, slash, name) in zip(pieces, parts, strict=True)
    ]
