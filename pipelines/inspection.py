"""What lies in a folder of ours, in words."""

import json
from collections.abc import Iterator

from discdiff.data.inspect_store import inspect
from discdiff.data.manifest import MANIFEST
from discdiff.types import DiscdiffError
from pipelines.key import flatten
from pipelines.place import Place
from pipelines.record import RECORD, Record


def describe(uri: str) -> Iterator[str]:
    """Lines about the artifact or the token store at a URI.

    Raises DiscdiffError where there is neither.
    """
    place = Place.at(uri)
    record = Record.read(place)
    stored = place.read(MANIFEST) is not None
    if record is None and not stored:
        raise DiscdiffError(
            f"{place.uri} holds no finished artifact and no token store: it lacks {RECORD} and {MANIFEST}; "
            "give the folder of one."
        )
    if record is not None:
        yield from _recorded(record)
        yield "files: " + ", ".join(place.names())
    if stored:
        yield inspect(place.uri)


def _recorded(record: Record) -> Iterator[str]:
    yield f"{record.key}: {record.artifact.get('kind')} made by {record.stage} (version {record.version})"
    made_with = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    yield f"created {record.created} in {record.seconds:.0f} s with {made_with}"
    for title, tree in (("specification", record.spec), ("result", record.artifact)):
        yield f"{title}:"
        for name, value in flatten(tree).items():
            yield f"  {name} = {json.dumps(value, ensure_ascii=False)}"
