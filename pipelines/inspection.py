"""What lies in an artifact's folder, in words."""

import json
from collections.abc import Iterator

from discdiff.types import DiscdiffError
from pipelines.key import flatten
from pipelines.place import Place
from pipelines.record import RECORD, Record


def describe(uri: str) -> Iterator[str]:
    """Lines about the artifact at a URI.

    Raises DiscdiffError where there is none.
    """
    place = Place.at(uri)
    record = Record.read(place)
    if record is None:
        raise DiscdiffError(
            f"{place.uri} holds no finished artifact ({RECORD} is missing); give the folder of one."
        )
    yield f"{record.key}: {record.artifact.get('kind')} made by {record.stage} (version {record.version})"
    yield f"created {record.created}, in {record.seconds:.0f} s, with " + ", ".join(
        f"{name} {version}" for name, version in record.versions.items()
    )
    for title, tree in (("specification", record.spec), ("result", record.artifact)):
        yield f"{title}:"
        for name, value in flatten(tree).items():
            yield f"  {name} = {json.dumps(value, ensure_ascii=False)}"
    yield "files: " + ", ".join(place.names())
