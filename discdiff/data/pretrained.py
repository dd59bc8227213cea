"""Any Hugging Face `tokenizer.json`: fast, and token for token what the reference gives.

`bytepairs` encodes byte-level BPE with GPT-2's words, fastokens other vocabularies. Hugging Face `tokenizers`
is the reference, and stands guard in three ways:

1. When a tokenizer is opened, the engine and the reference encode a fixed set of ugly strings. If the engine
   can't read it, or one id differs, the next takes its place, the reference in the end.
2. For byte-level tokenizers every document is proved to be spelled by its ids (`spelling`, `bytepairs`). One
   that isn't is encoded by the reference.
3. About one of 1,024 documents of at most 16 KiB, chosen by their content, is encoded by both. If it differs,
   the whole batch is encoded by the reference.

What remains unproven: that documents outside the sample are cut into tokens as the reference cuts them.
"""

import gc
import hashlib
import json
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import fastokens
import fsspec
import numpy as np
import orjson
import tokenizers
import xxhash
from numpy.typing import ArrayLike

from discdiff.data.encoding import Encoded, checked_ids, fingerprint, offsets_of
from discdiff.data.inputs import NOT_THERE, reaching
from discdiff.data.probes import PROBES
from discdiff.data.spelling import Speller, pieces_of
from discdiff.types import DiscdiffError, UnreachableError, Value

SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
"""Names under which vocabularies keep the end of a document, in the order in which they are looked for."""
_SAMPLED_OF = 1024
_LONGEST_SAMPLE = 1 << 14


@dataclass(frozen=True)
class Audit:
    """What was checked of an encoding. Counts of documents; audits add up."""

    documents: int = 0
    spelled: int = 0
    """Proved to decode to their text."""
    sampled: int = 0
    """Encoded by the reference too."""
    differed: int = 0
    """Found to differ from the reference, whose encoding was taken."""
    reference: int = 0
    """Encoded by the reference, for whatever reason."""

    def __add__(self, other: "Audit") -> "Audit":
        return Audit(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@runtime_checkable
class Engine(Protocol):
    """Encodes documents as they are: special tokens are not recognized in text, none are added."""

    name: str

    def proved(self, documents: Sequence[str], utf8: Sequence[bytes]) -> tuple[Encoded, Sequence[int] | None]:
        """Encode documents, and say which of them their ids do not spell, None if that can't be told."""
        ...


class Reference:
    """Hugging Face tokenizers."""

    name = f"tokenizers {tokenizers.__version__}"

    def __init__(self, definition: str):
        self.tokenizer = tokenizers.Tokenizer.from_str(definition)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True

    def encode(self, documents: Sequence[str]) -> Encoded:
        found = [e.ids for e in self.tokenizer.encode_batch_fast(list(documents), add_special_tokens=False)]
        ids = np.fromiter((index for one in found for index in one), np.uint32)
        return Encoded(ids, offsets_of([len(one) for one in found]))

    def proved(self, documents: Sequence[str], utf8: Sequence[bytes]) -> tuple[Encoded, None]:
        return self.encode(documents), None

    def words(self, text: str) -> list[str]:
        """A text cut as it is before it is merged."""
        return [word for word, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str(text)]


class Fast:
    """fastokens. `pieces` are the bytes of tokens, if those are fixed."""

    name = "fastokens"

    def __init__(self, definition: str, pieces: Sequence[bytes] | None = None):
        self._speller = None if pieces is None else Speller(pieces)
        self.tokenizer = fastokens.Tokenizer.from_json_str(definition)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def encode(self, documents: Sequence[str]) -> Encoded:
        ids, offsets = self.tokenizer.encode_batch_flat(list(documents), split_special_tokens=True)
        return Encoded(np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64).astype(np.int64))

    def proved(self, documents: Sequence[str], utf8: Sequence[bytes]) -> tuple[Encoded, Sequence[int] | None]:
        encoded = self.encode(documents)
        return encoded, self._speller.misspelled(*encoded, utf8) if self._speller else None


class PretrainedTokenizer:
    """A `tokenizer.json` with the id that closes documents."""

    def __init__(self, definition: str, separator: str | None = None):
        with _uncollected():
            self._definition, self._separator = _sealed(definition, separator)
            try:
                self._reference = Reference(self.definition)
            except Exception as error:  # tokenizers raises bare Exception
                raise DiscdiffError(
                    f"the tokenizer.json can't be read: {error}; give one as Hugging Face saves it"
                ) from error
        vocabulary = self._reference.tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values()) + 1
        self.separator = vocabulary[self._separator]
        self._fingerprint = fingerprint(self.to_json())

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def to_json(self) -> str:
        return Definition(tokenizer=self.definition, separator=self._separator).model_dump_json()

    @cached_property
    def definition(self) -> str:
        """The tokenizer.json, with its separator marked special."""
        return json.dumps(self._definition, ensure_ascii=False, separators=(",", ":"))

    @property
    def engine(self) -> str:
        """What encodes: bytepairs, fastokens, or the reference and its version."""
        return self._engine.name

    @cached_property
    def _engine(self) -> Engine:
        with _uncollected():
            probes = [probe.encode() for probe in PROBES]
            right = self._reference.encode(PROBES)
            for opened in (self._byte_pairs, self._fast):
                try:
                    engine = opened()
                    if engine is not None and _equal(engine.proved(PROBES, probes)[0], right):
                        return engine
                except (ValueError, RuntimeError):  # fastokens, for what it does not support
                    continue
            return self._reference

    def _byte_pairs(self) -> Engine | None:
        from discdiff.data.bytepairs import BytePairs  # with Numba, for which only who encodes should wait

        return BytePairs.of(self._definition, self._reference.words)

    def _fast(self) -> Engine:
        return Fast(self.definition, pieces_of(self._definition))

    def encode_batch(self, documents: Sequence[str]) -> Encoded:
        return self.encode_audited(documents)[0]

    def encode_audited(
        self, documents: Sequence[str], utf8: Sequence[bytes] | None = None
    ) -> tuple[Encoded, Audit]:
        """Encode, and say what was checked of it. `utf8` are the documents' bytes, if they are known."""
        count = len(documents)
        if self._engine is self._reference:
            return self._reference.encode(documents), Audit(documents=count, reference=count)
        texts = [document.encode() for document in documents] if utf8 is None else utf8
        encoded, wrong = self._engine.proved(documents, texts)
        sampled = [i for i, text in enumerate(texts) if _is_sampled(text)]
        if sampled and not _equal(
            _pick(encoded, sampled), self._reference.encode([documents[i] for i in sampled])
        ):
            exact = self._reference.encode(documents)
            differed = sum(not _equal(_pick(encoded, [i]), _pick(exact, [i])) for i in range(count))
            return exact, Audit(count, 0, len(sampled), differed, reference=count)
        spelled = 0 if wrong is None else count - len(wrong)
        encoded, differed = self._repaired(encoded, wrong or (), documents)
        return encoded, Audit(count, spelled, len(sampled), differed, reference=len(wrong or ()))

    def _repaired(
        self, encoded: Encoded, wrong: Sequence[int], documents: Sequence[str]
    ) -> tuple[Encoded, int]:
        """The encoding with these documents by the reference, and how many of them that changed."""
        if not wrong:
            return encoded, 0
        exact = self._reference.encode([documents[i] for i in wrong])
        parts = np.split(encoded.ids, encoded.offsets[1:-1])
        differed = 0
        for place, part in zip(wrong, np.split(exact.ids, exact.offsets[1:-1]), strict=True):
            differed += not np.array_equal(parts[place], part)
            parts[place] = part
        return Encoded(np.concatenate(parts), offsets_of([len(part) for part in parts])), differed

    def decode(self, ids: ArrayLike) -> str:
        return self._reference.tokenizer.decode(
            checked_ids(ids, self.size).tolist(), skip_special_tokens=False
        )


class Definition(Value, frozen=True):
    """A tokenizer.json by its content: what a store keeps of a `Pretrained` tokenizer."""

    kind: Literal["definition"] = "definition"
    tokenizer: str
    separator: str

    def open(self) -> PretrainedTokenizer:
        return PretrainedTokenizer(self.tokenizer, self.separator)


class Pretrained(Value, frozen=True):
    """The `tokenizer.json` at a path or fsspec URL (`hf://`, `https://`, `s3://`): V is its largest id + 1.

    `separator` is the token that closes documents; without it the end of text is found by its usual names.
    """

    kind: Literal["pretrained"] = "pretrained"
    path: str
    separator: str | None = None

    def open(self) -> PretrainedTokenizer:
        """Read it. Raises DiscdiffError if it is not there or is no tokenizer, UnreachableError if nobody
        can tell.
        """
        try:
            definition = self._read().decode()
        except UnreachableError:
            raise
        except NOT_THERE as error:
            message = f"no tokenizer at {self.path}: {error}; give the path or URL of a tokenizer.json"
            raise DiscdiffError(message) from error
        return PretrainedTokenizer(definition, self.separator)

    def identity(self) -> dict[str, str | None]:
        """How it counts in a stage's key: by what the file holds, or by its path while it can't be read."""
        try:
            content = {"sha256": hashlib.sha256(self._read()).hexdigest()}
        except NOT_THERE:
            content = {"path": self.path}
        return {"kind": self.kind, "separator": self.separator} | content

    def _read(self) -> bytes:
        path = os.path.join(self.path, "tokenizer.json") if os.path.isdir(self.path) else self.path
        with reaching(path):
            fs, path = fsspec.url_to_fs(path)
            return fs.cat_file(path)


@contextmanager
def _uncollected() -> Generator[None]:
    """Without garbage collection, which goes through all objects of a process again and again while a
    vocabulary makes many of them, none garbage.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _sealed(definition: str, separator: str | None) -> tuple[dict[str, Any], str]:
    """The definition with its separator marked special, so that no text can become it."""
    try:
        parsed: dict[str, Any] = orjson.loads(definition)
        names = [token["content"] for token in parsed.get("added_tokens") or ()]
        known = {*names, *(parsed["model"]["vocab"] if isinstance(parsed["model"]["vocab"], dict) else ())}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DiscdiffError(
            f"this is not a tokenizer.json: {error!r}; give one as Hugging Face saves it"
        ) from error
    if not known:
        raise DiscdiffError("V = 0: the tokenizer.json has an empty vocabulary; train it on some text first")
    found = [name for name in ([separator] if separator else SEPARATORS) if name in names]
    if not found:
        raise DiscdiffError(
            f"the tokenizer has no token {separator or ' or '.join(SEPARATORS)} to close documents with; "
            f"name one of its added tokens as separator: {', '.join(names[:20]) or 'it has none'}"
        )
    for token in parsed["added_tokens"]:
        if token["content"] == found[0]:
            token["special"] = True
    return parsed, found[0]


def _is_sampled(text: bytes) -> bool:
    return len(text) <= _LONGEST_SAMPLE and xxhash.xxh3_64_intdigest(text) % _SAMPLED_OF == 0


def _pick(encoded: Encoded, documents: list[int]) -> Encoded:
    parts = [encoded.ids[encoded.offsets[i] : encoded.offsets[i + 1]] for i in documents]
    return Encoded(np.concatenate(parts), offsets_of([len(part) for part in parts]))


def _equal(a: Encoded, b: Encoded) -> bool:
    return np.array_equal(a.ids, b.ids) and np.array_equal(a.offsets, b.offsets)
