"""What a token store is made of: a corpus, a tokenizer, and what happens to documents in between."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from discdiff.data.characters import Characters
from discdiff.data.corpora import AnyCorpus
from discdiff.data.detokenize import Detokenizer, detokenize
from discdiff.data.pythondocs import PythonDocs
from discdiff.data.spans import SPAN, Span
from discdiff.data.splits import ByHash
from discdiff.data.tokenizers import AnyTokenizer
from discdiff.types import Value


class Tokenize(Value, frozen=True):
    """A token store: `build(spec, uri)` makes it."""

    corpus: AnyCorpus = PythonDocs()
    tokenizer: AnyTokenizer = Characters()
    splits: ByHash = ByHash()
    """Where the corpus has no splits of its own."""
    detokenizer: Detokenizer | None = None
    """Undo the spacing of a corpus that was published in tokens."""
    shortest: Annotated[int, Field(ge=1)] = 1
    """Characters of the shortest document that is kept."""
    longest: Annotated[int, Field(ge=1)] | None = None
    """Characters of the longest document that is kept."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Dropped is a document whose text (128-bit XXH3) came before in its split."""
    leakage: Annotated[int, Field(ge=1, le=64)] | None = None
    """Count the n-grams of this many tokens that evaluation splits share with the training split."""
    part: Annotated[int, Field(ge=1)] = SPAN
    """Bytes of input that one task reads, nearly."""
    shard: Annotated[int, Field(ge=1, le=2**30)] = 64 * 2**20
    """Bytes at which a shard is full."""

    @property
    def label(self) -> str:
        return f"{self.corpus.kind} {self.tokenizer.kind}"

    def clean(self, span: Span) -> Iterator[str]:
        """The documents of a part as they are tokenized."""
        documents = self.corpus.documents(span)
        if self.detokenizer is None:
            return documents
        undo = detokenize(self.detokenizer)
        return (undo(text) for text in documents)
