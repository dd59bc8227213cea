"""The manifest of a store: the one file that readers open first, and whose appearance is the commit."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from discdiff.data.folder import Folder
from discdiff.data.retry import GaveUpError, retry
from discdiff.data.shard import CHUNK, Sha256, Shard, dtype_for
from discdiff.types import DiscdiffError, Value

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
TOTALS = ("tokens", "documents", "characters", "bytes")
_PROVENANCE = {"fingerprint", "sources", "checks", "spec_key"}


class Split(Value, frozen=True):
    """The shards of a split, in the order of the token stream, and their totals."""

    tokens: int
    documents: int
    characters: int
    """Unicode characters of the text: bits per character divide by these."""
    bytes: int
    """UTF-8 bytes of the text."""
    shards: tuple[Shard, ...]

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> "Split":
        return cls(shards=tuple(shards), **{name: sum(getattr(s, name) for s in shards) for name in TOTALS})

    @model_validator(mode="after")
    def _totals_add_up(self) -> "Split":
        for name in TOTALS:
            if getattr(self, name) != sum(getattr(shard, name) for shard in self.shards):
                raise ValueError(f"the shards do not add up to the split's {name}")
        return self


class Manifest(Value, frozen=True):
    """What a store holds. `fingerprint` covers all but where the text came from and how it was checked."""

    format: Literal["discdiff token store"] = "discdiff token store"
    version: Literal[1] = 1
    tokenizer: str
    """The tokenizer's own fingerprint: what checkpoints are compared with."""
    tokenizer_sha256: Sha256
    """SHA-256 of the copy in `tokenizer.json`."""
    vocab: Annotated[int, Field(ge=1)]
    dtype: Literal["uint8", "uint16", "uint32"]
    separator: int | None
    """The id that closes each document, or None if nothing does."""
    chunk: Annotated[int, Field(ge=8, multiple_of=8)] = CHUNK
    """Bytes of a shard that each of its chunk checksums covers."""
    splits: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], Split]
    sources: tuple[JsonValue, ...] = ()
    checks: dict[str, JsonValue] = Field(default_factory=dict)
    """What was checked of the encoding engine against the reference, and the result."""
    spec_key: str = ""
    """Key of the specification that made the store."""
    fingerprint: Sha256

    @classmethod
    def of(
        cls,
        *,
        tokenizer: str,
        tokenizer_json: str,
        vocab: int,
        separator: int | None,
        splits: Mapping[str, Sequence[Shard]],
        sources: Sequence[Any] = (),
        checks: Mapping[str, Any] | None = None,
        spec_key: str = "",
    ) -> "Manifest":
        """The manifest of these shards, with its totals and its fingerprint worked out."""
        draft = cls.model_construct(
            tokenizer=tokenizer,
            tokenizer_sha256=hashlib.sha256(tokenizer_json.encode()).hexdigest(),
            vocab=vocab,
            dtype=dtype_for(vocab).name,  # type: ignore[arg-type]
            separator=separator,
            splits={name: Split.of(shards) for name, shards in splits.items()},
            sources=tuple(sources),
            checks=dict(checks or {}),
            spec_key=spec_key,
        )
        return cls.model_validate(draft.model_dump(mode="json") | {"fingerprint": _fingerprint(draft)})

    @model_validator(mode="after")
    def _fingerprint_holds(self) -> "Manifest":
        if self.fingerprint != _fingerprint(self):
            raise ValueError("the fingerprint is not that of the content")
        return self

    @model_validator(mode="after")
    def _shards_agree(self) -> "Manifest":
        if self.dtype != dtype_for(self.vocab).name:
            raise ValueError(f"{self.dtype} does not store a vocabulary of {self.vocab}")
        for name, split in self.splits.items():
            for shard in split.shards:
                if shard.path != f"{name}/{shard.sha256}.arrow" or shard.largest >= self.vocab:
                    raise ValueError(f"shard {shard.path} does not belong to split {name}")
                if len(shard.chunks) != 16 * -(-shard.size // self.chunk):
                    raise ValueError(f"shard {shard.path} does not have a checksum for each chunk")
        return self


def commit(folder: Folder, manifest: Manifest, tokenizer_json: str) -> None:
    """Make a store visible: its shards must lie in the folder; the manifest is put last."""
    if hashlib.sha256(tokenizer_json.encode()).hexdigest() != manifest.tokenizer_sha256:
        raise DiscdiffError("the tokenizer to copy is not the one that the manifest names")
    for split in manifest.splits.values():
        for shard in split.shards:
            if folder.size(shard.path) != shard.size:
                raise DiscdiffError(f"shard {folder.uri}/{shard.path} is not there in full; write it again")
    folder.sweep()
    folder.put(TOKENIZER, tokenizer_json.encode())
    folder.put(MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())


def read_manifest(folder: Folder, *, attempts: int = 1, pause: float = 0.0) -> Manifest:
    """The manifest of the store in a folder, complete and unaltered."""
    where = f"{folder.uri}/{MANIFEST}"
    try:
        text = retry(lambda: folder.read(MANIFEST), attempts=attempts, pause=pause)
    except GaveUpError as error:
        raise DiscdiffError(f"{where} cannot be reached: {error}; check the endpoint") from error
    except FileNotFoundError as error:
        message = f"{folder.uri} holds no store: there is no {MANIFEST}; tokenize a corpus into it first"
        raise DiscdiffError(message) from error
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = f"{where} is not a manifest that can be trusted: {place} {first['msg']}; tokenize again"
        raise DiscdiffError(message) from error


def _fingerprint(manifest: Manifest) -> str:
    content = manifest.model_dump(mode="json", exclude=_PROVENANCE)
    for split in content["splits"].values():
        for shard in split["shards"]:
            del shard["source"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
