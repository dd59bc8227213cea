"""Stores made from corpora: complete, exact, the same however they were made, and never half-made."""

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import ROOT, Cluster
from fsspec.implementations.memory import MemoryFileSystem
from tokenizers import Tokenizer as HuggingFace
from tokenizers import normalizers

from discdiff.data.bookkeeping import here
from discdiff.data.bpe import Bpe, train_bpe
from discdiff.data.build import build
from discdiff.data.corpora import Files, Law, Lm1b, PythonDocs
from discdiff.data.encoding import Encoded, offsets_of
from discdiff.data.laws import MarkovChain
from discdiff.data.leakage import ngrams
from discdiff.data.manifest import Manifest
from discdiff.data.pool import Pool
from discdiff.data.preparation import opened
from discdiff.data.pretrained import Fast
from discdiff.data.probes import PROBES
from discdiff.data.specification import Tokenize
from discdiff.data.splits import ByHash
from discdiff.data.store import Store
from discdiff.data.tokenizers import Bytes, Characters, Definition, Pretrained, Symbols
from discdiff.noise import Noise
from discdiff.types import DiscdiffError, UnreachableError


def write_corpus(folder: Path, documents: Sequence[str]) -> Files:
    """Documents as JSON lines in three files."""
    folder.mkdir(parents=True)
    for part in range(3):
        own = documents[len(documents) * part // 3 : len(documents) * (part + 1) // 3]
        lines = [json.dumps({"text": text}) + "\n" for text in own]
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    return Files(url=str(folder))


def sentences(count: int, seed: int = 0) -> list[str]:
    words = ["alpha", "beta", "gamma", "delta", "ε", "<|endoftext|>", "zeta\n", "  eta"]
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, k=draw.randint(1, 30))) for _ in range(count)]


def content(uri: str | Path) -> dict[str, bytes]:
    """All files of a store by name."""
    fs, root = fsspec.url_to_fs(str(uri), use_listings_cache=False)
    return {str(path)[len(root) :]: fs.cat_file(path) for path in fs.find(root)}


def documents_of(uri: str | Path, split: str) -> list[list[int]]:
    """The documents of a split as plain pyarrow reads them."""
    manifest = Manifest.model_validate_json((Path(uri) / "manifest.json").read_text())
    found: list[list[int]] = []
    for shard in manifest.splits[split].shards:
        found += pa.ipc.open_file(str(Path(uri) / shard.path)).read_all()["tokens"].to_pylist()
    return found


def backwards(function: Callable, items: Sequence) -> Iterator[tuple[int, object]]:
    return ((index, function(items[index])) for index in reversed(range(len(items))))


def test_every_document_is_in_its_split_once_and_in_order(tmp_path: Path) -> None:
    texts = sentences(400)
    corpus = write_corpus(tmp_path / "in", texts)
    spec = Tokenize(corpus=corpus, tokenizer=Bytes(), part=2000, shard=1500)
    manifest = build(spec, str(tmp_path / "out"))
    assert sum(len(split.shards) for split in manifest.splits.values()) > 20
    for name, split in manifest.splits.items():
        own = [text for text in texts if spec.splits.of(text.encode()) == name]
        assert documents_of(tmp_path / "out", name) == [[*text.encode(), 255] for text in own]
        assert (split.documents, split.characters) == (len(own), sum(map(len, own)))
        assert split.bytes == split.tokens - len(own) == sum(len(text.encode()) for text in own)
    assert set(manifest.splits) == {"train", "validation", "test"}
    assert manifest.checks == {"read": 400, "empty": 0, "short": 0, "long": 0, "duplicates": 0}


def test_the_order_of_the_work_and_the_place_of_the_store_change_nothing(tmp_path: Path, bucket: str) -> None:
    corpus = write_corpus(tmp_path / "in", sentences(90))
    spec = Tokenize(corpus=corpus, part=2500, duplicates="drop", leakage=3)
    build(spec, str(tmp_path / "a"))
    build(spec, str(tmp_path / "b"), each=backwards)
    build(spec, str(tmp_path / "c"), each=Pool(2))
    build(spec, f"{bucket}/store")
    assert content(tmp_path / "a") == content(tmp_path / "b") == content(tmp_path / "c")
    assert content(tmp_path / "a") == content(f"{bucket}/store")
    assert not any("_build" in name for name in content(tmp_path / "a"))


def test_a_build_that_broke_off_does_the_rest_only(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in", sentences(200))
    spec = Tokenize(corpus=corpus, tokenizer=Bytes(), part=1000)
    build(spec, str(tmp_path / "whole"))
    done: list[int] = []

    def breaking(function: Callable, items: Sequence) -> Iterator[tuple[int, object]]:
        for index, item in enumerate(items):
            if index == 5:
                raise ConnectionError("the network is gone")
            yield index, function(item)

    def counting(function: Callable, items: Sequence) -> Iterator[tuple[int, object]]:
        done.append(len(items))
        return backwards(function, items)

    for _ in range(2):
        with pytest.raises(ConnectionError):
            build(spec, str(tmp_path / "out"), each=breaking)
        assert not (tmp_path / "out" / "manifest.json").exists()
    build(spec, str(tmp_path / "out"), each=counting)
    assert done == [len(corpus.plan(1000)) - 10]
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Switches a file system, `memory://`, on and off; it raises what no other does."""

    class RefusedError(Exception):
        pass

    def refuse(*_: object, **__: object) -> None:
        raise RefusedError("refused")

    def switch(on: bool) -> None:
        if on:
            monkeypatch.undo()
        else:
            for name in ("info", "ls", "_open"):
                monkeypatch.setattr(MemoryFileSystem, name, refuse)

    yield switch
    switch(True)
    fsspec.filesystem("memory").rm("/in", recursive=True)


def test_a_build_whose_input_can_not_be_reached_keeps_what_it_has(
    tmp_path: Path, network: Callable[[bool], None]
) -> None:
    write_corpus(tmp_path / "in", sentences(200))
    fsspec.filesystem("memory").put(str(tmp_path / "in"), "/in", recursive=True)
    spec = Tokenize(corpus=Files(url="memory://in"), tokenizer=Bytes(), part=1000)
    build(spec, str(tmp_path / "whole"))
    done: list[int] = []

    def breaking(function: Callable, items: Sequence) -> Iterator[tuple[int, object]]:
        for index, item in enumerate(items):
            if index == 5:
                network(False)
            yield index, function(item)

    def counting(function: Callable, items: Sequence) -> Iterator[tuple[int, object]]:
        done.append(len(items))
        return backwards(function, items)

    away = pytest.raises(UnreachableError, match=r"memory://.*in.* can't be read: refused; see that")
    with away:
        build(spec, str(tmp_path / "out"), each=breaking)
    with away:
        build(spec, str(tmp_path / "out"))
    with away:
        build(spec, str(tmp_path / "fresh"))
    assert content(tmp_path / "fresh") == {}
    network(True)
    build(spec, str(tmp_path / "out"), each=counting)
    assert done == [len(spec.corpus.plan(1000)) - 5]
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_disk_that_is_full_loses_nothing(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in", [*sentences(100), "x" * 2**17])
    spec = Tokenize(corpus=corpus, tokenizer=Bytes(), splits=ByHash(validation=0, test=0), part=1000)
    build(spec, str(tmp_path / "whole"))
    asked: list[int] = []

    def counting(function: Callable, items: Sequence) -> Iterator[tuple[int, object]]:
        asked.append(len(items))
        return here(function, items)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(UnreachableError, match="cannot be written"):
            build(spec, str(tmp_path / "out"), each=counting)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    build(spec, str(tmp_path / "out"), each=counting)
    first, then = asked
    assert 0 < then < first
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_changed_inputs_are_read_again_after_a_break(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in", ["abc", "def", "aab"])
    spec = Tokenize(corpus=corpus, splits=ByHash(validation=0, test=0), part=1)

    def breaking(function: Callable, items: Sequence) -> Iterator[tuple[int, object]]:
        yield 0, function(items[0])
        raise ConnectionError

    with pytest.raises(ConnectionError):
        build(spec, str(tmp_path / "out"), each=breaking)
    (tmp_path / "in" / "0.jsonl").write_text('{"text": "xyz"}\n')
    manifest = build(spec, str(tmp_path / "out"))
    with Store.open(tmp_path / "out") as store:
        assert store.tokenizer.decode(store.read(np.array([0]), 3)[0]) == "xyz"
    assert manifest.vocab == len(set("xyzdefaab")) + 1


def test_an_alphabet_covers_all_splits(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in", [f"{chr(0x400 + i)}" for i in range(200)])
    manifest = build(Tokenize(corpus=corpus, part=500), str(tmp_path / "out"))
    assert manifest.vocab == 201
    assert manifest.separator == 200


def test_duplicates_go_and_the_first_stays(tmp_path: Path) -> None:
    texts = sentences(150, seed=1)
    texts += [*texts[20:120], *texts[:5], *sentences(50, seed=2)]
    corpus = write_corpus(tmp_path / "in", texts)
    spec = Tokenize(corpus=corpus, tokenizer=Bytes(), duplicates="drop", part=1500)
    manifest = build(spec, str(tmp_path / "out"))
    distinct = list(dict.fromkeys(texts))
    for name, split in manifest.splits.items():
        own = [text for text in distinct if spec.splits.of(text.encode()) == name]
        assert documents_of(tmp_path / "out", name) == [[*text.encode(), 255] for text in own]
        assert (split.characters, split.bytes) == (sum(map(len, own)), sum(len(t.encode()) for t in own))
    assert manifest.checks["duplicates"] == len(texts) - len(distinct) >= 105
    listed = {shard.path for split in manifest.splits.values() for shard in split.shards}
    assert {name.lstrip("/") for name in content(tmp_path / "out") if name.endswith(".arrow")} == listed


def test_filters_count_what_they_leave_out(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in", ["", "a", "bb", "ccc", "dddd", "eeeee", ""])
    spec = Tokenize(corpus=corpus, shortest=2, longest=4, splits=ByHash(validation=0, test=0))
    manifest = build(spec, str(tmp_path / "out"))
    assert manifest.checks == {"read": 7, "empty": 2, "short": 1, "long": 1, "duplicates": 0}
    assert manifest.splits["train"].characters == 9


@pytest.mark.parametrize("tokenizer", [Bytes(), Symbols(size=26)])
def test_leakage_is_what_counting_finds(tmp_path: Path, tokenizer) -> None:
    draw = random.Random(3)
    texts = ["".join(draw.choices("abc", k=draw.randint(1, 14))) for _ in range(120)]
    corpus = write_corpus(tmp_path / "in", texts)
    spec = Tokenize(
        corpus=corpus, tokenizer=tokenizer, leakage=5, splits=ByHash(validation=0.2, test=0.2), part=400
    )
    manifest = build(spec, str(tmp_path / "out"))
    own = {name: [t for t in texts if spec.splits.of(t.encode()) == name] for name in manifest.splits}
    grams = {name: [[t[i : i + 5] for i in range(len(t) - 4)] for t in split] for name, split in own.items()}
    seen = {gram for document in grams["train"] for gram in document}
    found = manifest.checks["leakage"]
    assert isinstance(found, dict)
    assert found.pop("n") == 5
    for name, counts in found.items():
        assert counts == {
            "ngrams": sum(map(len, grams[name])),
            "leaked": sum(gram in seen for document in grams[name] for gram in document),
            "documents": sum(bool(document) for document in grams[name]),
            "leaked_documents": sum(any(gram in seen for gram in document) for document in grams[name]),
        }
        assert 0 < counts["leaked"] < counts["ngrams"]
    assert set(found) == {"validation", "test"}


def test_ngrams_do_not_cross_documents_and_differ_by_order() -> None:
    ids = np.array([1, 2, 3, 1, 2, 3, 3, 2, 1])
    grams = ngrams(ids, np.array([0, 3, 3, 6, 9]), 3)
    assert grams.documents.tolist() == [0, 2, 3]
    assert grams.hashes[0] == grams.hashes[1] != grams.hashes[2]
    assert Counter(ngrams(ids, np.array([0, 9]), 1).hashes.tolist()).most_common(1)[0][1] == 3
    assert len(ngrams(ids[:2], np.array([0, 2]), 3).hashes) == 0


def test_samples_of_a_law_are_stored_as_drawn(tmp_path: Path) -> None:
    chain = MarkovChain.random(5, seed=1)
    corpus = Law(law=chain, length=12, train=40, validation=3)
    manifest = build(Tokenize(corpus=corpus, tokenizer=Symbols(size=5), part=100), str(tmp_path / "out"))
    rows = chain.sample(Noise(0, rows=torch.arange(40)), 12)
    assert documents_of(tmp_path / "out", "train") == rows.tolist()
    assert (manifest.vocab, manifest.separator, set(manifest.splits)) == (5, None, {"train", "validation"})


def test_a_pretrained_tokenizer_is_checked_and_kept(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(train_bpe(Bpe(size=400)))
    corpus = write_corpus(tmp_path / "in", sentences(60))
    spec = Tokenize(corpus=corpus, tokenizer=Pretrained(path=str(tmp_path / "tokenizer.json")), part=2000)
    manifest = build(spec, str(tmp_path / "out"))
    checks = manifest.checks
    assert (checks["engine"], checks["documents"], checks["spelled"], checks["differed"]) == (
        "bytepairs",
        60,
        60,
        0,
    )
    (tmp_path / "tokenizer.json").unlink()
    with Store.open(tmp_path / "out") as store:
        text = store.tokenizer.decode(store.read(np.array([0]), store.tokens)[0])
        first = next(t for t in sentences(60) if spec.splits.of(t.encode()) == "train")
        assert text.startswith(first + "<|endoftext|>")
        assert Definition.model_validate_json(store.tokenizer.to_json()).separator == "<|endoftext|>"


def test_documents_that_the_fast_encoder_gets_wrong_are_the_references_and_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fast encoder that drops a token of each document with an ε: the store is as if it did not."""
    tokenizer = HuggingFace.from_str(train_bpe(Bpe(size=400)))
    tokenizer.normalizer = normalizers.NFC()  # what fastokens encodes
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = sentences(120)
    corpus = write_corpus(tmp_path / "in", texts)
    spec = Tokenize(corpus=corpus, tokenizer=Pretrained(path=str(tmp_path / "tokenizer.json")), part=2000)
    right = build(spec, str(tmp_path / "right"))
    encode = Fast.encode

    def lossy(self: Fast, documents: Sequence[str]) -> Encoded:
        encoded = [encode(self, [text]).ids[int("ε" in text and text not in PROBES) :] for text in documents]
        return Encoded(np.concatenate(encoded), offsets_of([len(ids) for ids in encoded]))

    monkeypatch.setattr(Fast, "encode", lossy)
    opened.cache_clear()
    wrong = build(spec, str(tmp_path / "wrong"))
    opened.cache_clear()
    bad = sum("ε" in text for text in texts)
    assert wrong.splits == right.splits
    assert (wrong.checks["differed"], wrong.checks["reference"], wrong.checks["spelled"]) == (
        bad,
        bad,
        120 - bad,
    )
    assert 0 < bad < 120


def test_an_archive_is_unpacked_beside_the_store_and_named_by_its_files(tmp_path: Path, http_folder) -> None:
    from test_corpora import LM1B, tarred

    (http_folder.path / "lm1b.tar.gz").write_bytes(tarred(LM1B))
    spec = Tokenize(corpus=Lm1b(url=f"{http_folder.url}/lm1b.tar.gz"), tokenizer=Bytes(), detokenizer="lm1b")
    manifest = build(spec, str(tmp_path / "a"))
    build(spec, str(tmp_path / "b"))
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert [bytes(ids[:-1]) for ids in documents_of(tmp_path / "a", "test")] == [
        b"news.en.heldout-00000-of-00050 says, hi.",
        b"and  more",
    ]
    assert {source["path"] for source in manifest.sources} == {name.rsplit("/", 1)[-1] for name in LM1B} - {
        "README"
    }
    assert not any("_build" in name for name in content(tmp_path / "a"))


def with_bad_file(tmp_path: Path) -> Tokenize:
    corpus = write_corpus(tmp_path / "in", sentences(60))
    (tmp_path / "in" / "3.txt").write_bytes(b"fine so far \xff")
    return Tokenize(corpus=corpus, tokenizer=Bytes(), part=500)


def empty(tmp_path: Path) -> Tokenize:
    return Tokenize(corpus=write_corpus(tmp_path / "in", ["", "", ""]))


def one_document(tmp_path: Path) -> Tokenize:
    (tmp_path / "a.txt").write_text("only one document")
    return Tokenize(corpus=Files(url=str(tmp_path / "a.txt")))


def foreign_character(tmp_path: Path) -> Tokenize:
    return Tokenize(
        corpus=write_corpus(tmp_path / "in", ["abc", "abd", "abz"]), tokenizer=Characters(alphabet="abcd")
    )


def no_vocabulary(tmp_path: Path) -> Tokenize:
    return Tokenize(corpus=write_corpus(tmp_path / "in", ["a"]), tokenizer=Characters(alphabet=""))


MISTAKES = {
    with_bad_file: r"3\.txt is not UTF-8: byte 0xFF at offset 12",
    empty: "is empty: it has no document to keep",
    one_document: r"split got none of the corpus's 1 documents; cut text files into documents with separator",
    foreign_character: r"'z' \(U\+007A\)",
    no_vocabulary: "V = 0",
}


@pytest.mark.parametrize("make", MISTAKES, ids=lambda make: make.__name__)
def test_a_mistake_is_told_and_leaves_nothing(make: Callable[[Path], Tokenize], tmp_path: Path) -> None:
    with pytest.raises(DiscdiffError, match=MISTAKES[make]):
        build(make(tmp_path), str(tmp_path / "out"))
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiscdiffError, match="cannot be written"):
        build(Tokenize(), str(tmp_path / "file" / "store"))


def test_a_folder_with_another_store_is_not_touched(tmp_path: Path) -> None:
    build(Tokenize(tokenizer=Bytes()), str(tmp_path / "out"))
    before = content(tmp_path / "out")
    with pytest.raises(DiscdiffError, match="another specification"):
        build(Tokenize(tokenizer=Bytes(), longest=10_000), str(tmp_path / "out"))
    build(Tokenize(tokenizer=Bytes()), str(tmp_path / "out"))
    assert content(tmp_path / "out") == before


def build_in_group(spec: Tokenize, uri: str, workers: int) -> None:
    """In a process group of its own, so that all of it can be killed at once, as a power cut does."""
    os.setsid()

    def each(function: Callable, items: Sequence) -> Iterator[tuple[int, object]]:
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            yield from pool.imap_unordered(partial(_numbered, function), enumerate(items))

    build(spec, uri, key="key", each=each if workers else here)


def _numbered(function: Callable, item: tuple[int, object]) -> tuple[int, object]:
    return item[0], function(item[1])


def killed_when(child, folder: Path, parts: int) -> None:
    """SIGKILL a process and its workers once so many parts are noted."""
    while len(list(folder.glob("_build/part-*"))) < parts:
        assert child.is_alive(), "the build ended before it was killed"
        time.sleep(0.001)
    os.killpg(child.pid, signal.SIGKILL)
    child.join()


def test_killed_nine_times_under_changing_workers_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in", sentences(3000))
    spec = Tokenize(corpus=corpus, tokenizer=Bytes(), duplicates="drop", part=1500)
    total = len(corpus.plan(1500))
    folder = tmp_path / "out"
    noted: dict[str, int] = {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["discdiff.data.build"])
    for kill in range(9):
        child = context.Process(target=build_in_group, args=(spec, str(folder), kill % 3))
        child.start()
        killed_when(child, folder, len(noted) + 1 + kill)
        assert not (folder / "manifest.json").exists()
        for path in folder.glob("_build/part-*"):
            assert noted.setdefault(path.name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
    assert 45 <= len(noted) < total
    build(spec, str(folder), key="key")
    build(spec, str(tmp_path / "whole"), key="key")
    assert content(folder) == content(tmp_path / "whole")


CHILD = """
import ray, sys
from discdiff.data.bookkeeping import here
from discdiff.data.build import build
from discdiff.data.pool import Pool
from discdiff.data.preparation import opened
from discdiff.data.pretrained import Fast
from discdiff.data.probes import PROBES
from discdiff.data.specification import Tokenize
from pipelines.tokenize import Spread

ray.init(address=sys.argv[3], log_to_driver=False)
build(Tokenize.model_validate_json(sys.argv[1]), sys.argv[2], key="key", each=Spread(memory=2**20))
"""


def test_a_killed_ray_driver_is_followed_by_one_that_does_the_rest(
    tmp_path: Path, ray_driver: Cluster
) -> None:
    from pipelines.tokenize import Spread

    corpus = write_corpus(tmp_path / "in", sentences(3000))
    spec = Tokenize(corpus=corpus, tokenizer=Bytes(), part=1500)
    folder = tmp_path / "out"
    environment = {**os.environ, **ray_driver.environment, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD, spec.model_dump_json(), str(folder), ray_driver.address]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        while len(list(folder.glob("_build/part-*"))) < 20 and child.poll() is None:
            time.sleep(0.001)
        child.kill()
    assert child.returncode == -signal.SIGKILL, "the build ended before it was killed"
    noted = {path.name: path.stat().st_mtime_ns for path in folder.glob("_build/part-*")}
    done: list[int] = []
    build(spec, str(folder), key="key", each=Spread(memory=2**20), progress=lambda at, total: done.append(at))
    build(spec, str(tmp_path / "whole"), key="key")
    assert content(folder) == content(tmp_path / "whole")
    assert 20 <= len(noted) < len(corpus.plan(1500))
    assert done[0] >= 20 * 1000
    assert len(done) == len(corpus.plan(1500)) - len(noted) + 1


def kill_own_process_once(folder: str, item: int) -> int:
    marker = Path(folder, str(item))
    if item % 3 == 0 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def test_tasks_outlive_their_workers_and_come_with_their_index(tmp_path: Path, ray_driver: Cluster) -> None:
    from ray import cloudpickle

    from pipelines.tokenize import Spread

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    found = dict(Spread(memory=2**20)(partial(kill_own_process_once, str(tmp_path)), range(8)))
    assert found == {index: index * index for index in range(8)}
    assert len(list(tmp_path.iterdir())) == 3


def test_the_stage_runs_once_and_tells_mistakes(tmp_path: Path, ray_driver: Cluster) -> None:
    from pipelines.runner import Runner
    from pipelines.tokenize import tokenize
    from pipelines.vocabulary import vocabulary

    with Runner(str(tmp_path / "root")) as run:
        trained = run(vocabulary, Bpe(size=300))
        spec = Tokenize(corpus=PythonDocs(), tokenizer=trained.tokenizer)
        tokens = run(tokenize, spec)
        assert run(tokenize, spec) == tokens
        with Store.open(tokens.uri, "test") as store:
            assert (store.vocab, store.manifest.fingerprint) == (300, tokens.fingerprint)
            assert store.manifest.spec_key == tokens.key
        with pytest.raises(DiscdiffError, match="not UTF-8"):
            run(tokenize, with_bad_file(tmp_path))
        kept = {path.name for path in (tmp_path / "root").iterdir() if path.name.startswith("tokenize")}
        assert kept == {tokens.key}
