"""Archives as corpora are published: unpacked once, member by member, where a store is built."""

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO, RawIOBase

from discdiff.data.folder import Folder
from discdiff.data.inputs import decompressed, find, opened
from discdiff.types import DiscdiffError

ARCHIVES = (".tar.gz", ".tgz", ".zip")


def is_archive(url: str) -> bool:
    """Whether a URL names an archive by its suffix."""
    return url.split("?")[0].endswith(ARCHIVES)


def unpack(url: str, folder: Folder, wanted: Callable[[str], bool]) -> list[str]:
    """Put the wanted files of an archive into a folder, each whole or not at all; their names.

    The archive is read from front to back and never lies on a disk. Raises DiscdiffError if it is damaged or
    holds no wanted file.
    """
    find(url, ARCHIVES)
    take = _unzip if url.split("?")[0].endswith(".zip") else _untar
    try:
        names = take(url, folder, wanted)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        message = f"{url} is no whole archive: {' '.join(str(error).split())}; fetch it again"
        raise DiscdiffError(message) from error
    if not names:
        raise DiscdiffError(f"{url} holds none of this corpus's files; give the archive as it was published")
    return names


def _untar(url: str, folder: Folder, wanted: Callable[[str], bool]) -> list[str]:
    names: list[str] = []
    blocks = decompressed(url, "gzip")
    with tarfile.open(fileobj=_Stream(blocks), mode="r|") as archive:
        for member in archive:
            name = _plain(member.name)
            content = archive.extractfile(member) if member.isfile() and wanted(name) else None
            if content is not None:
                folder.put(name, content.read())
                names.append(name)
    # tarfile takes the end of its input for the end of the archive: reading on finds out whether gzip agrees.
    for _ in blocks:
        pass
    return names


class _Stream(RawIOBase):
    """Blocks of bytes as a file that is read from front to back."""

    def __init__(self, blocks: Iterator[bytes]):
        self._blocks, self._rest = blocks, b""

    def read(self, size: int = -1) -> bytes:
        while len(self._rest) < size and (block := next(self._blocks, b"")):
            self._rest += block
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def _unzip(url: str, folder: Folder, wanted: Callable[[str], bool]) -> list[str]:
    names: list[str] = []
    with opened(url) as file, zipfile.ZipFile(BytesIO(file.read())) as archive:
        for member in archive.infolist():
            name = _plain(member.filename)
            if not member.is_dir() and wanted(name):
                folder.put(name, archive.read(member))
                names.append(name)
    return names


def _plain(name: str) -> str:
    """A member's own name: nothing in an archive says where it is put."""
    return name.rstrip("/").rsplit("/", 1)[-1]
