"""What stages make: values that name their content by a key and know where it lies.

An artifact's identity is its key alone. Its `uri` says where the content is now, is bound when the artifact
is opened and is never written down, so a store that was moved holds the same artifacts. In a specification
file an artifact is written as the URI of its folder.
"""

from typing import Any, Literal, Self

from pydantic import model_validator

from discdiff.types import DiscdiffError, Value
from pipelines.place import Place
from pipelines.record import RECORD, Record


class Artifact(Value, frozen=True, ser_json_inf_nan="strings"):
    """The committed result of a stage; a body returns it with `key=work.key, uri=work.uri`."""

    key: str
    uri: str
    label: str = ""
    """What the specification was called; for people, like `uri` no part of what the artifact is."""

    @model_validator(mode="before")
    @classmethod
    def _opened(cls, data: Any) -> Any:
        return cls._fields_at(Place.at(data)) if isinstance(data, str) else data

    @classmethod
    def open(cls, uri: str) -> Self:
        """The artifact whose folder is at `uri`.

        Raises DiscdiffError where no stage has committed one, or one of another kind.
        """
        return cls.model_validate(cls._fields_at(Place.at(uri)))

    @classmethod
    def _fields_at(cls, place: Place) -> dict[str, Any]:
        record = Record.read(place)
        if record is None:
            raise DiscdiffError(
                f"{place.uri} holds no finished artifact ({RECORD} is missing); give the folder of one."
            )
        kind = cls.model_fields["kind"].default
        if record.artifact.get("kind") != kind:
            raise DiscdiffError(
                f"{place.uri} holds {record.artifact.get('kind')}, but {kind} is needed here."
            )
        return {**record.artifact, "key": record.key, "uri": place.uri, "label": record.label}

    def identity(self) -> str:
        """How the artifact counts in the key of what is made from it."""
        return self.key

    def content(self) -> dict[str, Any]:
        """The fields that the record keeps: all but identity, location and label."""
        return self.model_dump(mode="json", exclude={"key", "uri", "label"})

    def file(self, name: str) -> str:
        """The URI of one of the artifact's files."""
        return f"{self.uri}/{name}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Artifact) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class Tokens(Artifact, frozen=True):
    """A token store: `Store.open(tokens.uri, split)`."""

    kind: Literal["tokens"] = "tokens"
    fingerprint: str
    vocab: int
    documents: int
    tokens: int


class Checkpoint(Artifact, frozen=True):
    """A trained network with its method, backbone and tokenizer: `training.load(checkpoint.uri)`."""

    kind: Literal["checkpoint"] = "checkpoint"
    method: str
    step: int
    length: int
    """Positions of the rows it was trained on."""
    parameters: int


class Trials(Artifact, frozen=True):
    """A finished search: every trial in `trials.json`, the best one's method here."""

    kind: Literal["trials"] = "trials"
    best: dict[str, Any]
    trials: int


class Samples(Artifact, frozen=True):
    """Samples as Parquet shards `samples-*.parquet`, ordered by row: ids, text, seed, row, nfe."""

    kind: Literal["samples"] = "samples"
    count: int
    length: int


class Scores(Artifact, frozen=True):
    """What was measured on one checkpoint and its samples: all in `scores.json`, the headline here."""

    kind: Literal["scores"] = "scores"
    metrics: dict[str, float]


class Report(Artifact, frozen=True):
    """One page that needs nothing else, and the same as data."""

    kind: Literal["report"] = "report"
    page: str = "report.html"
    data: str = "report.json"
