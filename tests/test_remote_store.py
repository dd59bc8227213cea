"""Stores on object stores and behind HTTP: the same rows, through a bounded cache, or a clear error."""

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Folder as Served
from text_stores import SEPARATOR, TOKENIZER, draw, make, manifest, stream, write

from discdiff.data.audit import audit
from discdiff.data.build import build
from discdiff.data.files import Files
from discdiff.data.folder import Folder
from discdiff.data.loader import Loader
from discdiff.data.manifest import commit, read_manifest
from discdiff.data.order import Shuffled
from discdiff.data.packing import Isolated, PerDocument, Wrap
from discdiff.data.remote import Remote, RemoteChunks
from discdiff.data.resident import BadShardError
from discdiff.data.shard import CHUNK
from discdiff.data.specification import Tokenize
from discdiff.data.store import Store
from discdiff.types import DiscdiffError

LARGE = np.random.default_rng(0).integers(0, SEPARATOR, (14, 200_000)).tolist()
"""Documents of 5.6 MB in all: eleven chunks of two shards."""
SMALL = draw(30, longest=40)


def remote(tmp_path: Path, **changes: object) -> Remote:
    return Remote(**({"cache": tmp_path / "cache", "attempts": 3, "pause": 0.01} | changes))  # type: ignore[arg-type]


def downloaded(store: Store) -> int:
    assert isinstance(store._resident, RemoteChunks)
    return store._resident.downloaded


def held(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in Path(tmp_path, "cache").glob("*/*"))


def whole(store: Store) -> list[int]:
    return store.read(np.array([0]), store.tokens)[0].tolist()


# aiohttp says so of the megabytes that gcsfs puts at once.
large_uploads = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")


@large_uploads
@pytest.mark.parametrize("where", ["bucket", "google_bucket"])
def test_an_object_store_gives_the_rows_of_a_disk(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bucket = request.getfixturevalue(where)
    make(f"{bucket}/some/where", train=LARGE, test=SMALL)
    local = make(tmp_path / "local", train=LARGE, test=SMALL)
    with Store.open(local) as near, Store.open(f"{bucket}/some/where", remote=remote(tmp_path)) as far:
        assert near.fingerprint == far.fingerprint
        assert far.tokenizer.fingerprint == near.tokenizer.fingerprint == TOKENIZER.fingerprint
        for packing in (Wrap(length=1000), Isolated(length=70_001), PerDocument(length=300_000)):
            one, other = Loader(near, packing, seed=1), Loader(far, packing, seed=1)
            for start in (0, 10**6):
                assert torch.equal(one.read(start, 6).tokens, other.read(start, 6).tokens)
        assert 0 < held(tmp_path) == downloaded(far) <= sum(shard.size for shard in far.shards)
    assert audit(f"{bucket}/some/where") == []


def test_a_store_is_built_in_a_bucket_as_on_a_disk_and_appears_at_the_end(
    google_bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("".join(f"line {number}\n" for number in range(3000)))
    spec = Tokenize(corpus=Files(url=str(tmp_path / "in.txt"), separator="\n"), part=9000, shard=4000)
    built = build(spec, f"{google_bucket}/store")
    assert built == build(spec, str(tmp_path / "out"))
    place = Folder.at(f"{google_bucket}/store", use_listings_cache=False)
    objects = place.fs.find(place.root, detail=True)
    shards = {place.path(shard.path) for split in built.splits.values() for shard in split.shards}
    assert set(objects) == shards | {place.path("manifest.json"), place.path("tokenizer.json")}
    assert max(objects, key=lambda name: int(objects[name]["generation"])) == place.path("manifest.json")
    for split in ("train", "validation", "test"):
        with (
            Store.open(tmp_path / "out", split) as near,
            Store.open(f"{google_bucket}/store", split, remote=remote(tmp_path)) as far,
        ):
            one, other = (Loader(store, Wrap(length=32), seed=1) for store in (near, far))
            count = one.rows_per_epoch
            assert torch.equal(one.read(0, count).tokens, other.read(0, count).tokens)


def test_a_second_process_reads_from_the_cache(http_folder: Served, tmp_path: Path) -> None:
    make(http_folder.path / "store", train=LARGE)
    for expected in (True, False):
        with Store.open(f"{http_folder.url}/store", remote=remote(tmp_path)) as store:
            assert whole(store) == stream(LARGE).tolist()
            assert (downloaded(store) > 0) == expected


def test_a_touch_fetches_a_chunk_and_no_more(http_folder: Served, tmp_path: Path) -> None:
    make(http_folder.path / "store", train=LARGE)
    with Store.open(f"{http_folder.url}/store", remote=remote(tmp_path)) as store:
        assert store.read(np.array([700_000]), 50)[0].tolist() == stream(LARGE)[700_000:700_050].tolist()
        assert downloaded(store) == CHUNK


def test_what_is_wrong_in_the_cache_is_fetched_again(http_folder: Served, tmp_path: Path) -> None:
    make(http_folder.path / "store", train=LARGE)
    with Store.open(f"{http_folder.url}/store", remote=remote(tmp_path)) as store:
        whole(store)
    files = sorted(Path(tmp_path, "cache").glob("*/*"))
    spoiled = bytearray(files[0].read_bytes())
    spoiled[1000] ^= 4
    files[0].write_bytes(spoiled)
    files[1].write_bytes(files[1].read_bytes()[:-1])
    files[2].unlink()
    with Store.open(f"{http_folder.url}/store", remote=remote(tmp_path)) as store:
        assert whole(store) == stream(LARGE).tolist()
        assert downloaded(store) == held(tmp_path) - sum(path.stat().st_size for path in files[3:])


def test_the_cache_stays_below_its_limit(http_folder: Served, tmp_path: Path) -> None:
    """Also with two readers at once, and while every row read is right."""
    make(http_folder.path / "store", train=LARGE)
    few, plain = remote(tmp_path, limit=3 * CHUNK), stream(LARGE)
    with (
        Store.open(f"{http_folder.url}/store", remote=few) as store,
        Store.open(f"{http_folder.url}/store", remote=few) as other,
    ):
        for start in range(0, store.tokens - 100_000, 100_000):
            for reader in (store, other):
                assert np.array_equal(
                    reader.read(np.array([start]), 100_000)[0], plain[start : start + 100_000]
                )
                assert held(tmp_path) <= few.limit


def test_a_corrupt_object_is_named_with_the_attempts(bucket: str, tmp_path: Path) -> None:
    make(bucket, train=SMALL)
    folder = Folder.at(bucket)
    shard = read_manifest(folder).splits["train"].shards[1]
    folder.put(shard.path, folder.read(shard.path)[::-1])
    for _ in range(2):
        message = f"{shard.path} is corrupt: 3 attempts in .* s; the last failed"
        with (
            Store.open(bucket, remote=remote(tmp_path)) as store,
            pytest.raises(BadShardError, match=message),
        ):
            whole(store)
    folder.fs.rm_file(folder.path(shard.path))
    missing = pytest.raises(BadShardError, match=f"{shard.path} is missing")
    with Store.open(bucket, remote=remote(tmp_path)) as store, missing:
        whole(store)
    with Store.open(bucket, skip=[shard.path], remote=remote(tmp_path)) as store:
        assert whole(store) == stream(SMALL[:7] + SMALL[14:]).tolist()


@pytest.mark.parametrize("where", ["bucket", "google_bucket"])
def test_an_upload_that_stops_midway_is_never_visible(where: str, request: pytest.FixtureRequest) -> None:
    """All shards but the last, then the end: there is no store, and a commit without the last is refused."""
    bucket = request.getfixturevalue(where)
    folder = Folder.at(bucket)
    shards = write(folder, "train", SMALL, 7)
    folder.fs.rm_file(folder.path(shards[-1].path))
    with pytest.raises(DiscdiffError, match="holds no store"):
        Store.open(bucket)
    with pytest.raises(DiscdiffError, match="is not there in full"):
        commit(folder, manifest({"train": shards}), TOKENIZER.to_json())
    with pytest.raises(DiscdiffError, match="holds no store"):
        Store.open(bucket)


# An endpoint that misbehaves


class Flaky(http.server.SimpleHTTPRequestHandler):
    """Serves files, with or without ranges, after as many refusals as it is told, or never in time."""

    refusals: dict[str, int]
    ranges = True
    delay = 0.0
    asked: list[str]
    together: list[int]
    """At each request, how many were being answered."""
    answering: set[object]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.answering.add(self)
        self.together.append(len(self.answering))
        time.sleep(self.delay)
        self.answering.discard(self)
        if self.path.endswith(".arrow") and self.refusals["left"]:
            self.refusals["left"] -= 1
            self.send_error(503)
            return
        try:
            data = Path(self.translate_path(self.path)).read_bytes()
        except OSError:
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        if wanted and self.ranges:
            start, stop = wanted.removeprefix("bytes=").split("-")
            data = data[int(start) : int(stop) + 1]
        self.send_response(206 if wanted and self.ranges else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Endpoint:
    def __init__(self, root: Path):
        changes = {"refusals": {"left": 0}, "asked": [], "together": [], "answering": set()}
        self.handler = type("Handler", (Flaky,), changes)
        serve = lambda *given: self.handler(*given, directory=str(root))  # noqa: E731
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    make(tmp_path / "served", per_shard=1000, train=SMALL)
    opened = Endpoint(tmp_path / "served")
    yield opened
    opened.close()


def test_refusals_are_tried_again(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.handler.refusals["left"] = 2
    with Store.open(endpoint.url, remote=remote(tmp_path)) as store:
        assert whole(store) == stream(SMALL).tolist()
    assert endpoint.handler.refusals["left"] == 0


def test_attempts_are_counted_and_no_more_are_made(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.handler.refusals["left"] = 3
    with Store.open(endpoint.url, remote=remote(tmp_path)) as store:
        with pytest.raises(
            BadShardError, match=r"\.arrow cannot be reached: 3 attempts in .* s; the last failed"
        ):
            whole(store)
        assert endpoint.handler.refusals["left"] == 0
        assert whole(store) == stream(SMALL).tolist()


def test_a_dead_endpoint_is_named_with_the_shard_and_the_attempts(endpoint: Endpoint, tmp_path: Path) -> None:
    with Store.open(endpoint.url, remote=remote(tmp_path)) as store:
        endpoint.close()
        shard = store.shards[0].path
        with pytest.raises(BadShardError, match=f"{endpoint.url}/{shard} cannot be reached: 3 attempts"):
            Loader(store, Wrap(length=8)).read(0, 4)
        reads = Loader(store, Wrap(length=8)).stream(0, 4)
        with reads, pytest.raises(BadShardError, match="cannot be reached: 3 attempts"):
            next(reads)
    with pytest.raises(DiscdiffError, match=r"manifest\.json cannot be reached: 3 attempts"):
        Store.open(endpoint.url, remote=remote(tmp_path))


def test_an_endpoint_without_ranges_will_do(endpoint: Endpoint, tmp_path: Path) -> None:
    make(tmp_path / "served", per_shard=1000, train=LARGE)
    endpoint.handler.ranges = False
    with Store.open(endpoint.url, remote=remote(tmp_path)) as store:
        assert whole(store) == stream(LARGE).tolist()


def test_chunks_are_fetched_side_by_side(endpoint: Endpoint, tmp_path: Path) -> None:
    make(tmp_path / "served", per_shard=1000, train=LARGE)
    with Store.open(endpoint.url, remote=remote(tmp_path, connections=8)) as store:
        endpoint.handler.delay = 0.3
        assert whole(store) == stream(LARGE).tolist()
        assert 1 < max(endpoint.handler.together) <= 8


def test_a_shuffled_pass_fetches_each_chunk_once(endpoint: Endpoint, tmp_path: Path) -> None:
    make(tmp_path / "served", per_shard=1000, train=LARGE)
    with Store.open(endpoint.url, remote=remote(tmp_path)) as store:
        loader = Loader(store, Wrap(length=512), seed=2)
        plain = stream(LARGE)
        order = Shuffled(loader.rows_per_epoch, seed=2).at(np.arange(loader.rows_per_epoch))
        with loader.stream(0, 64) as reads:
            for step in range(loader.rows_per_epoch // 64):
                rows = order[64 * step : 64 * step + 64]
                expected = plain[rows[:, None] * 512 + np.arange(512)]
                assert np.array_equal(next(reads).tokens, expected)
        assert downloaded(store) <= sum(shard.size for shard in store.shards)
