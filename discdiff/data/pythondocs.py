"""The documentation topics that come with Python itself: real English, no download."""

import platform
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from discdiff.data.spans import SPAN, Piece, Span
from discdiff.types import DiscdiffError, Value

_PATH = "pydoc_data.topics"


class PythonDocs(Value, frozen=True):
    """The topics of Python's `help()`, some 80 documents and half a megabyte, by name.

    `python` is the version that they come with: it counts in a stage's key, since versions differ.
    """

    kind: Literal["python-docs"] = "python-docs"
    python: str = Field(default_factory=platform.python_version)

    def plan(self, size: int = SPAN) -> list[Span]:
        """One part. Raises DiscdiffError if this Python is another than the one asked for."""
        if self.python != platform.python_version():
            raise DiscdiffError(
                f"the topics of Python {self.python} were asked for, but this is Python "
                f"{platform.python_version()}; run that one, or leave python out"
            )
        total = sum(len(text.encode()) for text in _topics().values())
        return [Span((Piece(_PATH, "", size=total, version=self.python),))]

    def documents(self, span: Span) -> Iterator[str]:
        topics = _topics()
        return (topics[name] for name in sorted(topics))


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics  # half a megabyte that only this corpus needs

    return topics
