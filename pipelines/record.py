"""The record of an artifact, `artifact.json`, whose presence is what makes it one."""

import contextlib
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel, ValidationError

from discdiff.types import DiscdiffError
from pipelines.place import Place

RECORD = "artifact.json"
PACKAGES = ("discdiff", "torch", "ray", "pyarrow")


class Record(BaseModel, frozen=True, ser_json_inf_nan="strings"):
    """What ran, from which specification, and what came out."""

    format: int = 1
    stage: str
    version: int
    key: str
    label: str
    spec: dict[str, Any]
    """The specification as it counts in the key: upstream artifacts stand in it as their keys."""
    artifact: dict[str, Any]
    created: str
    seconds: float
    versions: dict[str, str]

    @classmethod
    def read(cls, place: Place) -> "Record | None":
        """The record in a place, None if there is none.

        Raises DiscdiffError if it is not one of ours.
        """
        data = place.read(RECORD)
        try:
            return None if data is None else cls.model_validate_json(data)
        except ValidationError as error:
            raise DiscdiffError(
                f"{place.uri}/{RECORD} is not a record of discdiff; remove the folder to have it made again."
            ) from error


def versions() -> dict[str, str]:
    """What the stage ran with."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
