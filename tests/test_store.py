"""The store: what is written is read, by us and by pyarrow; what is not whole is refused by name."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_stores import SEPARATOR, TOKENIZER, VOCAB, draw, make, manifest, stream, write

from discdiff.data.audit import audit
from discdiff.data.folder import Folder
from discdiff.data.inspect_store import inspect
from discdiff.data.manifest import Manifest, commit, read_manifest
from discdiff.data.memory import sparse
from discdiff.data.resident import BadShardError
from discdiff.data.shard import CHUNK, ShardBuilder, dtype_for
from discdiff.data.store import Store
from discdiff.types import DiscdiffError

DOCUMENTS = draw(40, longest=60)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make(tmp_path / "store", train=DOCUMENTS, test=draw(5, longest=9, seed=1))


def shard_of(uri: str, number: int, split: str = "train") -> Path:
    return Path(uri, read_manifest(Folder.at(uri)).splits[split].shards[number].path)


def everything(uri: str, split: str = "train", **options: object) -> np.ndarray:
    with Store.open(uri, split, **options) as opened:  # type: ignore[arg-type]
        return opened.read(np.array([0]), opened.tokens)[0].astype(np.int64)


def test_pyarrow_alone_reads_a_store(store: str) -> None:
    """What the page on the format tells to do."""
    listed = json.loads(Path(store, "manifest.json").read_text())["splits"]["train"]["shards"]
    tables = [pa.ipc.open_file(pa.memory_map(f"{store}/{shard['path']}")).read_all() for shard in listed]
    documents = pa.concat_tables(tables)["tokens"].to_pylist()
    assert documents == [[*document, SEPARATOR] for document in DOCUMENTS]
    assert tables[0].schema.field("tokens").type.value_type == pa.uint16()
    for shard, table in zip(listed, tables, strict=True):
        raw = Path(store, shard["path"]).read_bytes()
        values = np.frombuffer(raw, "<u2", shard["tokens"], shard["values_at"])
        offsets = np.frombuffer(raw, "<i4", shard["documents"] + 1, shard["offsets_at"])
        assert values.tolist() == table["tokens"].combine_chunks().flatten().to_pylist()
        assert np.diff(offsets).tolist() == [len(document) for document in table["tokens"].to_pylist()]


@given(
    documents=st.lists(st.lists(st.integers(0, SEPARATOR - 1), max_size=12), min_size=1, max_size=30),
    per_shard=st.integers(1, 9),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_any_part_of_the_stream_is_read(
    documents: list[list[int]], per_shard: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    uri = make(tmp_path_factory.mktemp("part"), per_shard, train=documents)
    tokens = stream(documents)
    begin = np.array(data.draw(st.lists(st.integers(0, len(tokens) - 1), min_size=1, max_size=6)))
    width = data.draw(st.integers(1, len(tokens)))
    padded = np.append(tokens, np.zeros(width, np.int64))
    with Store.open(uri) as opened:
        assert np.array_equal(opened.read(begin, width), [padded[b : b + width] for b in begin])
        starts, sizes = opened.borders(np.arange(len(documents)))
        assert sizes.tolist() == [len(document) + 1 for document in documents]
        assert starts.tolist() == np.cumsum([0, *sizes[:-1]]).tolist()
        low, high = sorted(data.draw(st.tuples(*[st.integers(0, len(tokens))] * 2)))
        assert opened.starts(low, high).tolist() == [start for start in starts if low <= start < high]


def test_rows_pass_from_chunk_to_chunk(tmp_path: Path) -> None:
    long = np.random.default_rng(0).integers(0, SEPARATOR, 2 * CHUNK).tolist()
    uri = make(tmp_path, per_shard=2, train=[long, [1, 2], long[:9]])
    tokens = stream([long, [1, 2], long[:9]])
    with Store.open(uri) as opened:
        for width in (3, 1000, CHUNK + 1):
            begin = np.arange(0, len(tokens) - width, 99_991)
            assert np.array_equal(opened.read(begin, width), [tokens[b : b + width] for b in begin])


def test_the_manifest_counts(store: str) -> None:
    with Store.open(store) as opened:
        assert opened.documents == len(DOCUMENTS)
        assert opened.tokens == len(stream(DOCUMENTS))
        assert opened.totals.characters == sum(map(len, DOCUMENTS))
        assert opened.totals.bytes == 2 * opened.totals.characters
        assert (opened.vocab, opened.separator) == (VOCAB, SEPARATOR)
        assert max(shard.largest for shard in opened.shards) == SEPARATOR
        assert min(shard.smallest for shard in opened.shards) == min(map(min, filter(None, DOCUMENTS)))
        assert opened.tokenizer.decode([72, 105]) == "Hi"


def test_types_are_as_narrow_as_the_vocabulary_allows() -> None:
    widths = {27: "uint8", 256: "uint8", 257: "uint16", 65_536: "uint16", 65_537: "uint32", 2**32: "uint32"}
    assert {vocab: dtype_for(vocab).name for vocab in widths} == widths
    for vocab in (0, -1, 2**32 + 1):
        with pytest.raises(DiscdiffError, match="cannot be stored"):
            dtype_for(vocab)


@pytest.mark.parametrize("vocab", [27, 70_000])
def test_other_widths_and_no_separator(tmp_path: Path, vocab: int) -> None:
    ids = np.random.default_rng(1).integers(0, vocab, 5000)
    folder, builder = Folder.at(tmp_path), ShardBuilder(vocab, separator=None)
    builder.add(ids, np.array([0, 1200, 1200, 5000]), characters=5000, bytes=5000)
    shard = builder.write(folder, "train")
    commit(folder, manifest({"train": [shard]}, vocab=vocab, separator=None), TOKENIZER.to_json())
    assert np.array_equal(everything(str(tmp_path)), ids)


def test_a_builder_refuses_what_makes_no_sense() -> None:
    builder = ShardBuilder(VOCAB, SEPARATOR)
    for wrong in (300, -1):
        with pytest.raises(DiscdiffError, match=f"id {wrong} is outside the vocabulary of 300"):
            builder.add(np.array([7, wrong]), np.array([0, 2]), characters=1, bytes=1)
    for offsets in ([0, 2], [1, 3], [0, 2, 1, 3]):
        with pytest.raises(DiscdiffError, match="offsets must rise from 0 to the 3 ids"):
            builder.add(np.array([1, 2, 3]), np.array(offsets), characters=3, bytes=3)


def test_writing_is_deterministic(store: str, tmp_path: Path) -> None:
    again = make(tmp_path / "again", train=DOCUMENTS, test=draw(5, longest=9, seed=1))
    assert Path(again, "manifest.json").read_bytes() == Path(store, "manifest.json").read_bytes()


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    shards = {"train": write(Folder.at(tmp_path), "train", DOCUMENTS, 7)}
    plain = manifest(shards).fingerprint
    elsewhere = {"train": [shard.model_copy(update={"source": "moved"}) for shard in shards["train"]]}
    assert manifest(elsewhere, sources=["s3://x"], checks={"checked": 3}, spec_key="k").fingerprint == plain
    assert manifest({"train": shards["train"][::-1]}).fingerprint != plain
    assert manifest({"test": []} | shards).fingerprint != plain
    assert manifest(shards, separator=None).fingerprint != plain
    assert manifest(shards, tokenizer="another").fingerprint != plain


# What is not whole and unaltered


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_every_flipped_bit_of_the_tokens_is_found(store: str) -> None:
    path, shard = shard_of(store, 2), read_manifest(Folder.at(store)).splits["train"].shards[2]
    good = path.read_bytes()
    for at in range(shard.values_at, shard.values_at + 2 * shard.tokens, 7):
        flip(path, at)
        with pytest.raises(BadShardError, match=f"{path.name} is corrupt"):
            everything(store)
        path.write_bytes(good)
    everything(store)


READ = """
import sys
import numpy as np
from discdiff.data.store import Store
from discdiff.types import DiscdiffError
try:
    with Store.open(sys.argv[1]) as store:
        store.read(np.array([0]), store.tokens)
except DiscdiffError as error:
    sys.exit(f"refused: {error}")
"""


def test_a_corrupt_shard_raises_again_after_a_restart(store: str) -> None:
    path = shard_of(store, 1)
    flip(path, path.stat().st_size // 2)
    with Store.open(store) as opened:
        for _ in range(2):
            with pytest.raises(BadShardError, match=path.name):
                opened.read(np.array([0]), opened.tokens)
    done = subprocess.run([sys.executable, "-c", READ, store], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"{path.name} is corrupt" in done.stderr


def test_only_what_is_touched_is_checked(store: str) -> None:
    path = shard_of(store, 4)
    path.unlink()
    with Store.open(store) as opened:
        assert np.array_equal(opened.read(np.array([0]), 20)[0], stream(DOCUMENTS)[:20])


def test_truncated_missing_swapped_and_longer_shards_are_named(store: str) -> None:
    path = shard_of(store, 3)
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    for verify in ("checksum", "size"):
        with pytest.raises(
            BadShardError, match=f"{path.name} has {len(good) - 1} bytes where the manifest says"
        ):
            everything(store, verify=verify)
    path.write_bytes(good + b"\0")
    with pytest.raises(BadShardError, match=f"{path.name} has {len(good) + 1} bytes"):
        everything(store)
    path.unlink()
    with pytest.raises(BadShardError, match=f"{path.name} is missing"):
        everything(store)


def test_swapped_shards_are_found(tmp_path: Path) -> None:
    same = [[1, 2, 3], [4, 5, 6]]
    uri = make(tmp_path, per_shard=1, train=same)
    one, other = shard_of(uri, 0), shard_of(uri, 1)
    swapped = other.read_bytes(), one.read_bytes()
    one.write_bytes(swapped[0])
    other.write_bytes(swapped[1])
    with pytest.raises(BadShardError, match=f"{one.name} is corrupt"):
        everything(uri)
    assert everything(uri, verify="size").tolist() == stream(same[::-1]).tolist()


def test_bad_shards_may_be_skipped_by_all_alike(store: str) -> None:
    corrupt, missing = shard_of(store, 1), shard_of(store, 3)
    flip(corrupt, corrupt.stat().st_size // 2)
    missing.unlink()
    bad = audit(store)
    assert [Path(error.shard.path).name for error in bad] == [corrupt.name, missing.name]
    skip = [error.shard.path for error in bad]
    kept = DOCUMENTS[:7] + DOCUMENTS[14:21] + DOCUMENTS[28:]
    assert everything(store, skip=skip).tolist() == stream(kept).tolist()
    with Store.open(store, skip=skip) as one, Store.open(store, skip=skip[::-1]) as other:
        assert one.fingerprint == other.fingerprint != read_manifest(Folder.at(store)).fingerprint
        assert len(one.skipped.shards) == 2
        assert one.skipped.documents == 14
        assert one.tokens + one.skipped.tokens == len(stream(DOCUMENTS))
    with pytest.raises(DiscdiffError, match=r"has no shard train/none\.arrow to skip"):
        Store.open(store, skip=["train/none.arrow"])


def test_an_audit_of_a_good_store_finds_nothing(store: str) -> None:
    assert audit(store) == []


def edit(uri: str, old: str, new: str) -> None:
    path = Path(uri, "manifest.json")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"documents": 40', '"documents": 41'),
        ('"separator": 299', '"separator": 298'),
        ('"path": "train/', '"path": "../train/'),
        ('"path": "train/', '"path": "/etc/'),
        ('"path": "train/', '"path": "test/'),
        ('"path": "train/', '"path": "train/../train/'),
        ('"version": 1', '"version": 2'),
        ('"vocab": 300', '"vocab": 200'),
        ('"dtype": "uint16"', '"dtype": "uint32"'),
        ('"chunks": "', '"chunks": "0000000000000000'),
        ('"fingerprint": "', '"finger": "'),
        (
            "{",
            "",
        ),
    ],
)
def test_an_altered_manifest_is_refused(store: str, old: str, new: str) -> None:
    edit(store, old, new)
    with pytest.raises(DiscdiffError, match=r"manifest\.json is not a manifest that can be trusted"):
        Store.open(store)


def test_an_altered_copy_of_the_tokenizer_is_refused(store: str) -> None:
    Path(store, "tokenizer.json").write_text("{}")
    with Store.open(store) as opened, pytest.raises(DiscdiffError, match=r"tokenizer\.json has been altered"):
        _ = opened.tokenizer


def test_another_tokenizer_is_refused(store: str) -> None:
    Store.open(store, tokenizer=TOKENIZER.fingerprint).close()
    with pytest.raises(DiscdiffError, match="made with another tokenizer"):
        Store.open(store, tokenizer="0" * 64)


def test_what_is_not_there_is_said(store: str, tmp_path: Path) -> None:
    with pytest.raises(DiscdiffError, match=r"holds no store: there is no manifest\.json"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(DiscdiffError, match="no split 'dev'; it has train, test"):
        Store.open(store, "dev")
    with pytest.raises(DiscdiffError, match="not a place that can be opened"):
        Store.open("nosuchscheme://x")
    empty = make(tmp_path / "empty", train=DOCUMENTS, validation=[])
    with pytest.raises(DiscdiffError, match=r"'validation' of .* has no tokens to read"):
        Store.open(empty, "validation")


# Nothing is visible before it is whole


def test_a_commit_needs_all_its_shards(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    shards = write(folder, "train", DOCUMENTS, 7)
    complete = manifest({"train": shards})
    path = Path(tmp_path, shards[2].path)
    good = path.read_bytes()
    for spoil in (path.unlink, lambda: path.write_bytes(good[:-8])):
        spoil()
        with pytest.raises(DiscdiffError, match=f"{path.name} is not there in full"):
            commit(folder, complete, TOKENIZER.to_json())
        assert not Path(tmp_path, "manifest.json").exists()
    path.write_bytes(good)
    with pytest.raises(DiscdiffError, match="tokenizer to copy is not the one"):
        commit(folder, complete, "{}")
    commit(folder, complete, TOKENIZER.to_json())
    assert everything(str(tmp_path)).tolist() == stream(DOCUMENTS).tolist()


WRITE = """
import sys
import numpy as np
from discdiff.data.folder import Folder
from discdiff.data.shard import ShardBuilder
folder = Folder.at(sys.argv[1])
print("begun", flush=True)
for seed in range(10**6):
    builder = ShardBuilder(300, 299)
    ids = np.random.default_rng(seed).integers(0, 299, 200_000)
    builder.add(ids, np.array([0, len(ids)]), characters=0, bytes=0)
    builder.write(folder, "train")
"""


def test_a_killed_writer_leaves_only_whole_shards(tmp_path: Path) -> None:
    """Killed at once and again: every visible file has the bytes of its name, and no store is visible."""
    for pause in (0.05, 0.11):
        writer = subprocess.Popen([sys.executable, "-c", WRITE, tmp_path], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        with writer, writer.stdout:
            assert writer.stdout.readline() == b"begun\n"
            time.sleep(pause)
            writer.send_signal(signal.SIGKILL)
    files = list(Path(tmp_path).glob("train/*.arrow"))
    assert files
    for path in files:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    with pytest.raises(DiscdiffError, match="holds no store"):
        Store.open(tmp_path)
    Path(tmp_path, "train", ".left.arrow.0011.part").write_bytes(b"half")
    make(tmp_path, train=DOCUMENTS)
    assert not list(Path(tmp_path).glob("**/.*"))
    assert everything(str(tmp_path)).tolist() == stream(DOCUMENTS).tolist()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    Path(tmp_path, "file").write_text("in the way")
    with pytest.raises(DiscdiffError, match="cannot be written"):
        make(tmp_path / "file" / "store", train=DOCUMENTS)


def test_a_store_may_be_moved(store: str, tmp_path: Path) -> None:
    moved = shutil.copytree(store, tmp_path / "moved")
    with Store.open(store) as one, Store.open(moved) as other:
        assert one.fingerprint == other.fingerprint
    assert everything(str(moved)).tolist() == everything(store).tolist()


def test_inspection_tells_what_is_inside(tmp_path: Path) -> None:
    documents = ["Hello, world.", "abba", "x" * 500]
    folder, builder = Folder.at(tmp_path), ShardBuilder(TOKENIZER.size, TOKENIZER.separator)
    encoded = TOKENIZER.encode_batch(documents)
    builder.add(encoded.ids, encoded.offsets, characters=517, bytes=517)
    shards = {"train": [builder.write(folder, "train")]}
    made = manifest(shards, vocab=TOKENIZER.size, separator=TOKENIZER.separator, checks={"compared": 3})
    commit(folder, made, TOKENIZER.to_json())
    text = inspect(str(tmp_path))
    for expected in (
        "train",
        "517",
        "520",
        made.fingerprint[:12],
        "Hello, world.",
        "'x'",
        "compared",
        "uint8",
    ):
        assert expected in text
    flip(Path(tmp_path, shards["train"][0].path), shards["train"][0].values_at)
    assert "is corrupt" in inspect(str(tmp_path))


def test_manifest_survives_json() -> None:
    made = manifest({"train": []})
    assert Manifest.model_validate_json(made.model_dump_json()) == made


def test_addresses_take_memory_where_they_are_written_only() -> None:
    """A gigabyte of zeros, touched in 64 places: with pages of 2 MiB that would take 128 MiB."""
    held = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")  # noqa: E731
    before, addresses = held(), sparse(2**27)
    addresses[:: 2**21] = 1
    assert addresses[:: 2**21].tolist() == [1] * 64
    assert held() - before < 16 * 2**20


def test_rows_outlive_the_mapping_they_were_found_in(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that wait to be copied keep their memory, whatever the store maps or lets go after them."""
    monkeypatch.setattr("discdiff.data.resident.MOST_MAPS", 1)
    tokens, width = stream(DOCUMENTS), 9
    begin = np.arange(len(tokens) - width)
    opened = Store.open(store)
    waiting = [opened.rows(part, width) for part in np.array_split(begin, 5)]
    opened.close()
    found = np.concatenate([rows.array() for rows in waiting])
    assert np.array_equal(found, tokens[begin[:, None] + np.arange(width)])
