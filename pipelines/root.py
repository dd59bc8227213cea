"""Where artifacts lie when nobody says, and where a remote root keeps what must be on this machine."""

import getpass
import hashlib
import os
import tempfile
from pathlib import Path

from discdiff.types import DiscdiffError
from pipelines.place import Place

ROOT = "DISCDIFF_ROOT"
RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for what `ray job submit` runs."""


def root_or_default(given: str | None) -> Place:
    """The root that was given, else DISCDIFF_ROOT, else `runs` here.

    A Ray job runs in a copy of its working directory that goes away with it: there the default is in the home
    folder, and a relative root raises DiscdiffError.
    """
    named = given or os.environ.get(ROOT)
    if RAY_JOB not in os.environ:
        return Place.at(named or "runs")
    if named is None:
        return Place.at(str(Path.home() / "discdiff" / "runs"))
    if "://" not in named and not Path(named).is_absolute():
        raise DiscdiffError(
            f"the root {named!r} is relative, but a Ray job's working directory goes away with the job; "
            "give an absolute path that all nodes share, or a URI such as s3://bucket/runs."
        )
    return Place.at(named)


def local_state(root: Place) -> Path:
    """A folder on this machine that belongs to a root and outlives a process; the root itself if local."""
    if root.local is not None:
        return root.local
    name = hashlib.sha256(root.uri.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"discdiff-{getpass.getuser()}" / name
