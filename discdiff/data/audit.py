"""Read every byte of a store and tell which shards are bad."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from discdiff.data.folder import Folder
from discdiff.data.manifest import read_manifest
from discdiff.data.resident import BadShardError
from discdiff.data.shard import Shard

THREADS = 4


def audit(uri: str | Path, splits: Sequence[str] | None = None, **options: Any) -> list[BadShardError]:
    """The shards that are missing, truncated or altered, by SHA-256 of the whole file.

    `[bad.shard.path for bad in audit(uri)]` is a `skip` list for `Store.open`: give all processes the same.
    """
    folder = Folder.at(uri, **options)
    manifest = read_manifest(folder)
    shards = [
        shard
        for name, split in manifest.splits.items()
        if splits is None or name in splits
        for shard in split.shards
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        return [bad for bad in pool.map(lambda shard: _examine(folder, shard), shards) if bad is not None]


def _examine(folder: Folder, shard: Shard) -> BadShardError | None:
    try:
        data = folder.read(shard.path)
    except FileNotFoundError:
        return BadShardError(folder.uri, shard, "is missing")
    except Exception as error:  # file systems raise what their clients do
        return BadShardError(folder.uri, shard, f"cannot be read: {error}")
    if len(data) != shard.size:
        return BadShardError(folder.uri, shard, f"has {len(data)} bytes where the manifest says {shard.size}")
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        return BadShardError(folder.uri, shard, "is corrupt: its SHA-256 is not that of the manifest")
    return None
