"""A corpus made into a token store: plan the parts, prepare each, commit.

Parts are planned from the inputs alone and shards are named by their content, so the store is the same,
byte for byte, however many workers made it and however often they were killed. A part is noted when its
shards are durable; the manifest comes last and makes the store visible.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from discdiff.data.bookkeeping import UNPACKED, Each, Notes, here, tidy
from discdiff.data.characters import Characters, alphabet_of
from discdiff.data.dedup import without_duplicates
from discdiff.data.encoding import Tokenizer
from discdiff.data.folder import Folder
from discdiff.data.leakage import leakage
from discdiff.data.manifest import MANIFEST, Manifest, commit, read_manifest
from discdiff.data.preparation import Part, Preparation
from discdiff.data.pretrained import Audit, PretrainedTokenizer
from discdiff.data.published import Archived
from discdiff.data.shard import Shard
from discdiff.data.spans import Span
from discdiff.data.specification import Tokenize
from discdiff.data.splits import SPLITS
from discdiff.types import DiscdiffError, UnreachableError

Progress = Callable[[int, int], None]
"""Told how many bytes of input are done, of how many."""


def build(
    spec: Tokenize, uri: str, *, key: str = "", each: Each = here, progress: Progress | None = None
) -> Manifest:
    """Make the store of a specification in a folder: a path or an fsspec URL.

    A build that was interrupted goes on where it was; a finished one is returned. `key` names the
    specification in the manifest. Raises DiscdiffError for a mistake in the specification or its inputs,
    and then leaves nothing; UnreachableError for inputs that can't be read now or a full disk, and
    keeps what is done.
    """
    folder, key = Folder.at(uri), key or _key(spec)
    finished = _finished(folder, key)
    if finished is not None:
        tidy(folder, finished)
        return finished
    try:
        manifest, tokenizer_json = _made(_Build(spec, folder, key, each, progress or _silent))
    except DiscdiffError as error:
        if not isinstance(error, UnreachableError) or not Notes(folder).has_results():
            tidy(folder, None)
        raise
    commit(folder, manifest, tokenizer_json)
    tidy(folder, manifest)
    return manifest


@dataclass(frozen=True)
class _Build:
    spec: Tokenize
    folder: Folder
    key: str
    each: Each
    progress: Progress


def _made(work: _Build) -> tuple[Manifest, str]:
    spec, folder = work.spec, work.folder
    Notes(folder).start(work.key)
    spec = _fetched(spec, folder)
    spans = spec.corpus.plan(spec.part)
    work = replace(work, spec=spec)
    tokenizer = _tokenizer(work, spans)
    parts = _parts(work, spans, tokenizer)
    splits = {name: [shard for part in parts for shard in part.shards.get(name, ())] for name in SPLITS}
    found = sum(shard.documents for shards in splits.values() for shard in shards)
    if spec.duplicates == "drop":
        splits = {
            name: without_duplicates(folder, name, shards, work.each) for name, shards in splits.items()
        }
    splits = {name: shards for name, shards in splits.items() if shards}
    _require(spec, spans, splits)
    left = sum(shard.documents for shards in splits.values() for shard in shards)
    checks: dict[str, Any] = _checks(parts, tokenizer) | {"duplicates": found - left}
    if spec.leakage is not None:
        checks["leakage"] = leakage(folder, splits, spec.leakage, tokenizer.separator, work.each)
    text = tokenizer.to_json()
    manifest = Manifest.of(
        tokenizer=tokenizer.fingerprint,
        tokenizer_json=text,
        vocab=tokenizer.size,
        separator=tokenizer.separator,
        splits=splits,
        sources=_sources(spans),
        checks=checks,
        spec_key=work.key,
    )
    return manifest, text


def _finished(folder: Folder, key: str) -> Manifest | None:
    try:
        if folder.size(MANIFEST) is None:
            return None
    except Exception as error:  # file systems raise what their clients do
        message = f"{folder.uri} cannot be written: {error}; give a folder that you may write to"
        raise DiscdiffError(message) from error
    manifest = read_manifest(folder)
    if manifest.spec_key != key:
        raise DiscdiffError(f"{folder.uri} holds the store of another specification; give an empty folder")
    return manifest


def _fetched(spec: Tokenize, folder: Folder) -> Tokenize:
    """The specification with its corpus unpacked, if that is an archive."""
    if not isinstance(spec.corpus, Archived):
        return spec
    corpus = spec.corpus.unpacked(Folder(folder.fs, folder.path(UNPACKED)))
    return spec.model_copy(update={"corpus": corpus})


def _tokenizer(work: _Build, spans: Sequence[Span]) -> Tokenizer:
    """The tokenizer, its alphabet taken from all of the corpus if it has none."""
    wanted = work.spec.tokenizer
    if not isinstance(wanted, Characters) or wanted.alphabet is not None:
        return wanted.open()
    notes = Notes(work.folder)
    name = _name("alphabet", work.spec, *spans)
    known = notes.get(name)
    if known is None:
        found = (alphabet for _, alphabet in work.each(partial(_alphabet, work.spec), spans))
        known = alphabet_of(found).encode()
        notes.put(name, known)
    if not known:
        raise _nothing(work.spec)
    return Characters(alphabet=known.decode()).open()


def _alphabet(spec: Tokenize, span: Span) -> str:
    return alphabet_of(spec.clean(span))


def _parts(work: _Build, spans: Sequence[Span], tokenizer: Tokenizer) -> list[Part]:
    """The records of all parts, in order: those that are noted, and the others made now."""
    notes = Notes(work.folder)
    names = [_name("part", work.spec, span, tokenizer.fingerprint) for span in spans]
    known = [notes.get(name) for name in names]
    parts = [None if data is None else Part.model_validate_json(data) for data in known]
    sizes = [sum(piece.size for piece in span.pieces) for span in spans]
    todo = [index for index, part in enumerate(parts) if part is None]
    todo.sort(key=lambda index: -sizes[index])  # the last are small: workers end together
    done = sum(sizes) - sum(sizes[index] for index in todo)
    work.progress(done, sum(sizes))
    prepare = Preparation(work.spec, tokenizer.to_json(), work.folder.uri)
    for position, part in work.each(prepare, [spans[index] for index in todo]):
        index = todo[position]
        notes.put(names[index], part.model_dump_json().encode())
        parts[index] = part
        done += sizes[index]
        work.progress(done, sum(sizes))
    return [part for part in parts if part is not None]


def _name(what: str, spec: Tokenize, *of: Span | str) -> str:
    """The name of a note: another input, rule or tokenizer has another."""
    text = json.dumps(
        [spec.model_dump_json(), *(each if isinstance(each, str) else asdict(each) for each in of)]
    )
    return f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _require(spec: Tokenize, spans: Sequence[Span], splits: dict[str, list[Shard]]) -> None:
    """Raise for a corpus without documents and for splits that were wanted but got none."""
    if not splits:
        raise _nothing(spec)
    wanted = {name for span in spans for name in ((span.split,) if span.split else spec.splits.wanted)}
    missing = sorted(wanted - set(splits))
    if missing:
        count = sum(shard.documents for shards in splits.values() for shard in shards)
        raise DiscdiffError(
            f"the {' and the '.join(missing)} split got none of the corpus's {count} documents; "
            "cut text files into documents with separator, set the split's fraction to 0, or give more text"
        )


def _nothing(spec: Tokenize) -> DiscdiffError:
    return DiscdiffError(
        f"the corpus {spec.corpus.model_dump_json()} is empty: it has no document to keep; "
        "give other files or bounds on their length"
    )


def _checks(parts: Sequence[Part], tokenizer: Tokenizer) -> dict[str, Any]:
    """What was left out, and how exact the encoding is known to be."""
    counts = {name: sum(getattr(part, name) for part in parts) for name in ("read", "empty", "short", "long")}
    if not isinstance(tokenizer, PretrainedTokenizer):
        return counts
    audit = sum((part.audit for part in parts), Audit())
    engines = ", ".join(sorted({part.engine for part in parts} - {""}))
    return counts | {"engine": engines, **asdict(audit)}


def _sources(spans: Sequence[Span]) -> list[dict[str, Any]]:
    """The inputs, each once, with what tells them from later versions."""
    found = {piece.path: piece.version for span in spans for piece in span.pieces}
    return [{"path": path, "version": version} for path, version in found.items()]


def _key(spec: Tokenize) -> str:
    return f"tokenize-{hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:16]}"


def _silent(done: int, total: int) -> None:
    pass
