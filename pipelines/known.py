"""Stores whose text was drawn from a known law, recognized by the specification that made them."""

from pydantic import TypeAdapter

from discdiff.data.corpora import AnyCorpus
from discdiff.data.laws import AnyLaw, Law
from discdiff.data.packing import AnyPacking
from pipelines.artifacts import Tokens
from pipelines.place import Place
from pipelines.record import Record


def law_of(tokens: Tokens, packing: AnyPacking) -> AnyLaw | None:
    """The law of a store's rows, None where it isn't known: rows must be its documents, whole, as it wrote
    them.
    """
    record = Record.read(Place.at(tokens.uri))
    spec = {} if record is None else record.spec
    if spec.get("corpus", {}).get("kind") != "law" or spec.get("tokenizer", {}).get("kind") != "symbols":
        return None
    corpus = TypeAdapter[AnyCorpus](AnyCorpus).validate_python(spec["corpus"])
    return corpus.law if isinstance(corpus, Law) and corpus.length == packing.length else None
