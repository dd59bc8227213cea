"""Bytes on a local disk: all of them, whichever way they go."""

import fcntl
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from discdiff.data import disk


@pytest.mark.parametrize("place", ["disk", "memory"])
@pytest.mark.parametrize("size", [0, 1, 4096, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 4097])
@pytest.mark.parametrize("shift", [0, 1, 512])
def test_what_is_written_durably_is_the_data_wherever_it_lay(
    tmp_path: Path, place: str, size: int, shift: int
) -> None:
    folder = tmp_path if place == "disk" else Path("/dev/shm")
    if not folder.is_dir():
        pytest.skip("no file system in memory here")
    data = disk.room(size + shift)[shift:]
    data[:] = np.random.default_rng(size).integers(0, 256, size)
    with tempfile.TemporaryFile(dir=folder) as file:
        disk.write_durably(file.fileno(), memoryview(data))
        file.seek(0)
        assert file.read() == data.tobytes()
        file.write(b"and more")  # the file is left as it was opened
        file.seek(size)
        assert file.read() == b"and more"


def test_large_data_in_whole_pages_goes_past_the_page_cache(tmp_path: Path) -> None:
    data = memoryview(disk.room(2**21)).cast("B")
    with (tmp_path / "file").open("wb") as file:
        if not hasattr(os, "O_DIRECT") or not _takes_direct(file.fileno()):
            pytest.skip("this file system has no direct writing")
        assert disk._directly(file.fileno(), data) == len(data)
        assert disk._directly(file.fileno(), data[1:]) == 0


def _takes_direct(handle: int) -> bool:
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, os.O_DIRECT)
        fcntl.fcntl(handle, fcntl.F_SETFL, 0)
    except OSError:
        return False
    return True


def test_it_goes_on_where_the_file_stands(tmp_path: Path) -> None:
    data = disk.room(2**21)
    data[:] = np.random.default_rng(0).integers(0, 256, 2**21)
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        file.write(b"abc")
        disk.write_durably(file.fileno(), memoryview(data))
        file.seek(0)
        assert file.read() == b"abc" + data.tobytes()


def test_a_full_disk_is_an_error() -> None:
    with open("/dev/full", "wb") as full, pytest.raises(OSError, match="No space left"):
        disk.write_durably(full.fileno(), memoryview(disk.room(2**21)))
