"""Data sets on a hub, `hf://datasets/owner/name`: read as from a disk, by range, or a clear error.

The hub is one of our own, and what reads it a process of its own: where the hub is, Hugging Face's library
reads from the environment when it is imported.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, free_ports, served

from discdiff.data.build import build
from discdiff.data.files import Files
from discdiff.data.specification import Tokenize
from discdiff.data.tokenizers import Bytes

REPOSITORY = "hf://datasets/owner/name"
MiB = 2**20


@dataclass(frozen=True)
class Hub:
    repository: Path
    """The folder with the files of `REPOSITORY`."""
    endpoint: str
    log: Path

    @property
    def asked(self) -> list[str]:
        """Each request for the bytes of a file: its name and the range."""
        return self.log.read_text().splitlines()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    repository = tmp_path / "hub" / "owner" / "name"
    repository.mkdir(parents=True)
    (port,) = free_ports(1)
    endpoint, log = f"http://127.0.0.1:{port}", tmp_path / "hub.log"
    command = [sys.executable, Path(__file__).with_name("hub_server.py"), tmp_path / "hub", str(port)]
    with served(command, f"{endpoint}/api/datasets/owner/name", {}, log):
        yield Hub(repository, endpoint, log)


@pytest.fixture
def away() -> str:
    """The address of a hub that is not there."""
    return f"http://127.0.0.1:{free_ports(1)[0]}"


def in_child(program: str, endpoint: str, home: Path, *arguments: object) -> list[str]:
    """The lines that a program prints, if it ends well and has nothing to complain of."""
    environment = {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def write(folder: Path, texts: list[str]) -> None:
    """A file for each text and, in a folder below, one that no glob of this folder matches."""
    (folder / "below").mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        lines = [json.dumps({"text": f"{text} {line}"}) + "\n" for line in range(300)]
        (folder / f"{number}.jsonl").write_text("".join(lines))
    (folder / "below" / "other.jsonl").write_text('{"text": "other"}\n')


BUILD_TWICE = """
import json, shutil, sys
from discdiff.data.build import build
from discdiff.data.files import Files
from discdiff.data.specification import Tokenize
from discdiff.data.tokenizers import Bytes

url, out, later, repository = sys.argv[1:]
spec = Tokenize(corpus=Files(url=url), tokenizer=Bytes(), part=3000)
for name in ("before", "after"):
    manifest = build(spec, f"{out}/{name}-far")
    print(manifest.fingerprint)
    print(json.dumps({source["path"]: source["version"] for source in manifest.sources}))
    shutil.copytree(later, repository, dirs_exist_ok=True)
"""


@pytest.mark.parametrize(("pattern", "files"), [("*.jsonl", 2), ("**/*.jsonl", 3), ("1.jsonl", 1), ("", 3)])
def test_a_hub_gives_the_store_of_a_disk_and_of_what_lies_there_now(
    hub: Hub, tmp_path: Path, pattern: str, files: int
) -> None:
    """Also when files are replaced, by one of the same size and a longer one; their versions tell."""
    near: list[str] = []
    for name, texts in {"before": ["one", "two"], "after": ["six", "three"]}.items():
        write(tmp_path / name, texts)
        spec = Tokenize(corpus=Files(url=f"{tmp_path / name}/{pattern}"), tokenizer=Bytes(), part=3000)
        near.append(build(spec, str(tmp_path / f"{name}-near")).fingerprint)
    write(hub.repository, ["one", "two"])
    arguments = (f"{REPOSITORY}/{pattern}", tmp_path, tmp_path / "after", hub.repository)
    before, versions, after, others = in_child(BUILD_TWICE, hub.endpoint, tmp_path, *arguments)
    assert [before, after] == near
    assert near[0] != near[1]
    first, second = json.loads(versions), json.loads(others)
    assert len(first) == len(second) == files
    for path in first:
        old, new = (
            Path(tmp_path / name, path.removeprefix(f"{REPOSITORY}/")) for name in ("before", "after")
        )
        assert (first[path] == second[path]) == (old.read_bytes() == new.read_bytes())


READ_SPAN = """
import json, sys
from discdiff.data.files import Files

url, size, index = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
corpus = Files(url=url)
spans = corpus.plan(size)
print(len(spans))
print(json.dumps(list(corpus.documents(spans[index]))))
"""


def test_a_parquet_file_is_read_by_row_group(hub: Hub, tmp_path: Path) -> None:
    """Reading one asks for no byte of the others: a request begins in it or where the file's footer is."""
    random = np.random.default_rng(0)
    groups = [[random.bytes(6 * MiB // 8).hex() for _ in range(4)] for _ in range(3)]
    path = hub.repository / "a.parquet"
    texts = pa.table({"text": [text for group in groups for text in group]})
    pq.write_table(texts, path, row_group_size=4, compression="none", use_dictionary=False)
    footer, index = path.stat().st_size - 2**16, 1
    column = pq.ParquetFile(path).metadata.row_group(index).column(0)
    begin, end = column.data_page_offset, column.data_page_offset + column.total_compressed_size
    count, found = in_child(READ_SPAN, hub.endpoint, tmp_path, f"{REPOSITORY}/a.parquet", MiB, index)
    assert int(count) == len(groups)
    assert json.loads(found) == groups[index]
    starts = [int(line.removeprefix("a.parquet bytes=").split("-")[0]) for line in hub.asked]
    assert all(begin <= start < end or start >= footer for start in starts)
    assert any(begin <= start < end for start in starts)


FAIL = """
import json, sys
from pathlib import Path
from discdiff.data.build import build
from discdiff.data.files import Files
from discdiff.data.pretrained import Pretrained
from discdiff.data.specification import Tokenize
from discdiff.data.tokenizers import Bytes
from discdiff.types import DiscdiffError

corpus, tokenizer, out = sys.argv[1:]
encoder = Pretrained(path=tokenizer) if tokenizer else Bytes()
try:
    build(Tokenize(corpus=Files(url=corpus), tokenizer=encoder), out)
except DiscdiffError as error:
    print(type(error).__name__, error)
print([str(path) for path in Path(out).rglob("*") if path.is_file()])
"""


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("hf://datasets/owner/nobody/x.jsonl", "can't be read: there is no .*repository not found"),
        ("hf://datasets/owner/nobody/*.jsonl", "can't be read: there is no .*repository not found"),
        (f"{REPOSITORY}@v2/0.jsonl", "can't be read: there is no .*revision not found"),
        (f"{REPOSITORY}/x.jsonl", "can't be read: there is no .*x.jsonl"),
        (f"{REPOSITORY}/*.txt", "matches no file"),
    ],
)
def test_what_is_not_on_the_hub_is_said(hub: Hub, tmp_path: Path, url: str, reason: str) -> None:
    write(hub.repository, ["one"])
    said, left = in_child(FAIL, hub.endpoint, tmp_path, url, "", tmp_path / "out")
    assert re.fullmatch(rf"DiscdiffError {re.escape(url)} {reason}.*; give a path, a glob or .*", said)
    assert left == "[]"


@pytest.mark.parametrize("url", [f"{REPOSITORY}/0.jsonl", f"{REPOSITORY}/*.jsonl"])
def test_a_hub_that_is_away_is_said(away: str, tmp_path: Path, url: str) -> None:
    said, left = in_child(FAIL, away, tmp_path, url, "", tmp_path / "out")
    assert re.fullmatch(rf"UnreachableError {re.escape(url)} can't be read: .*refused; see that .*", said)
    assert left == "[]"


def test_a_hub_that_is_away_has_no_tokenizer_and_takes_no_store(away: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    tokenizer = f"{REPOSITORY}/tokenizer.json"
    said, left = in_child(FAIL, away, tmp_path, tmp_path / "a.jsonl", tokenizer, tmp_path / "out")
    assert said.startswith(f"UnreachableError {tokenizer} can't be read: ")
    assert left == "[]"
    said, _ = in_child(FAIL, away, tmp_path, tmp_path / "a.jsonl", "", f"{REPOSITORY}/store")
    assert said.startswith(f"DiscdiffError {REPOSITORY}/store cannot be written: ")
