"""How fast text becomes a committed store, beside other tools in the same run.

    python tests/benchmarks/tokenization.py --megabytes 500 --peers-python .venv/bin/python

Real text of this machine (`support/corpus.py`) as JSON lines, with a BPE-32k that the project's own stage
trains on a part of it, in two processes. Ours end with hashed, fsynced and committed shards; they and the
bare fastokens take turns, and the best round counts. Printed are MB/s and how many times faster ours is
through Ray tasks. The peers (`support/tokenization_peers.py`) run once, `--peer-files` of 16 if time is dear,
plainly, and some again with their encoder tuned; they are left out where they are not installed
(`pip install discdiff[bench]`). `--exact` compares every id with the reference's instead.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
from support.corpus import FILES, ugly_texts, write_corpus

from discdiff.data.bookkeeping import Each
from discdiff.data.bpe import Bpe, train_bpe
from discdiff.data.build import build
from discdiff.data.corpora import Files
from discdiff.data.pool import settle
from discdiff.data.pretrained import Fast, Pretrained, Reference
from discdiff.data.probes import PROBES
from discdiff.data.specification import Tokenize

T = TypeVar("T")
R = TypeVar("R")

PROCESSES = 2
ENGINE_BATCH = 4 * 2**20
"""Characters."""
PEERS = (
    *("tiktoken", "datatrove", "litdata", "streaming", "datasets"),
    *("litdata-tuned", "streaming-tuned", "datasets-tuned"),
)


# Those who tokenize it


def ours(spec: Tokenize, out: Path, each: Each) -> float:
    """Seconds to a committed store, whose checks must all have passed."""
    start = time.perf_counter()
    manifest = build(spec, str(out), each=each)
    seconds = time.perf_counter() - start
    print(f"    {manifest.checks}", file=sys.stderr)
    return seconds


@contextmanager
def ray_tasks() -> Generator[Each]:
    """Ray with a worker for each process: its libraries are loaded, but it has seen no tokenizer and no text.

    Words that an engine met before are cheaper, so each round has workers of its own.
    """
    import ray

    from pipelines.tokenize import Spread

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=PROCESSES, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False
    )
    try:
        each = Spread(memory=2**20)
        dict(each(warm, range(PROCESSES)))
        yield each
    finally:
        ray.shutdown()


@contextmanager
def process_tasks() -> Generator[Each]:
    """The same in a plain process pool."""
    with ProcessPoolExecutor(PROCESSES, get_context("forkserver"), settle) as pool:
        list(pool.map(warm, range(PROCESSES)))

        def each(function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
            flying = {pool.submit(function, item): index for index, item in enumerate(items)}
            for ready in as_completed(flying):
                yield flying[ready], ready.result()

        yield each


def warm(index: int) -> None:
    """Load all code, with a vocabulary of the 256 bytes."""
    import discdiff.data.preparation  # noqa: F401
    from discdiff.data.bytepairs import BytePairs, merges_of
    from discdiff.data.spelling import byte_of_character

    merges = merges_of(byte_of_character(), [], byte_of_character())
    assert merges is not None
    BytePairs(merges, [bytes([byte]) for byte in range(256)], lambda text: [text]).encode([b"a"])
    time.sleep(2)


def loaded(path: Path) -> list[str]:
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def encode_share(vocabulary: str, corpus: str, share: int) -> float:
    """Seconds of fastokens alone on a share of the text that lies in memory, some MB at a time."""
    texts = [text for path in sorted(Path(corpus).glob("*.jsonl"))[share::PROCESSES] for text in loaded(path)]
    ends = np.cumsum([len(text) for text in texts]) // ENGINE_BATCH
    batches = [[texts[i] for i in np.flatnonzero(ends == batch)] for batch in range(ends[-1] + 1)]
    engine = Fast(Path(vocabulary).read_text("utf-8"))
    start = time.perf_counter()
    for batch in batches:
        engine.encode(batch)
    return time.perf_counter() - start


def bare_engine(vocabulary: Path, corpus: Path) -> float:
    with ProcessPoolExecutor(PROCESSES, get_context("forkserver"), settle) as pool:
        shares = [pool.submit(encode_share, str(vocabulary), str(corpus), i) for i in range(PROCESSES)]
        return max(share.result() for share in shares)


def peer(python: str, name: str, corpus: Path, vocabulary: Path, out: Path) -> float | str:
    """Seconds of a peer, or why there are none."""
    script = Path(__file__).parent / "support" / "tokenization_peers.py"
    command = [python, str(script), name, str(corpus), str(vocabulary), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    shutil.rmtree(out, ignore_errors=True)
    if done.returncode:
        return f"failed: {(done.stderr.strip() or f'exit code {done.returncode}').splitlines()[-1]}"
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return answer.get("seconds", f"not installed: {answer.get('missing')}")


def compare_with_reference(vocabulary: Path, corpus: Path) -> None:
    """Every id that the engines give beside the reference's: of the corpus, and of text that is only ugly."""
    tokenizer = Pretrained(path=str(vocabulary)).open()
    reference, engines = Reference(tokenizer.definition), [tokenizer._engine, Fast(tokenizer.definition)]
    ugly = list(ugly_texts(4000, list(PROBES)))
    for name, batches in (
        ("of the corpus", map(loaded, sorted(corpus.glob("*.jsonl")))),
        ("of random Unicode", [ugly]),
    ):
        count = size = 0
        differing = dict.fromkeys((engine.name for engine in engines), 0)
        for batch in batches:
            exact, utf8 = reference.encode(batch), [text.encode() for text in batch]
            for engine in engines:
                found, _ = engine.proved(batch, utf8)
                for i in range(len(batch)):
                    rows = (x.ids[x.offsets[i] : x.offsets[i + 1]] for x in (found, exact))
                    differing[engine.name] += not np.array_equal(*rows)
            count, size = count + len(batch), size + sum(map(len, utf8))
        counts = ", ".join(f"{name} {number}" for name, number in differing.items())
        print(f"of {count:,} documents {name}, {size / 1e6:.0f} MB, differ from the reference: {counts}")


# The figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers-python", default=sys.executable, help="an interpreter that has the peers")
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    parser.add_argument("--peer-files", type=int, default=FILES, help="how many of the files they tokenize")
    parser.add_argument("--exact", action="store_true", help="only compare the engines with the reference")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="discdiff-tokenize-", dir=arguments.folder))
    try:
        run(arguments, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(arguments: argparse.Namespace, folder: Path) -> None:
    corpus, vocabulary = folder / "corpus", folder / "vocabulary.json"
    sizes = write_corpus(corpus, arguments.megabytes)
    size = sizes.total()
    parts = ", ".join(f"{suffix} {part / size:.0%}" for suffix, part in sizes.most_common(8))
    print(f"{size / 1e6:.0f} MB of text ({parts}) in {FILES} files of JSON lines; {os.cpu_count()} cores")
    vocabulary.write_text(train_bpe(Bpe(corpus=Files(url=str(corpus)), size=32_000, characters=20_000_000)))
    if arguments.exact:
        compare_with_reference(vocabulary, corpus)
        return
    rates = own_rates(corpus, vocabulary, folder, arguments.rounds, size)
    print(f"{'':22}{'MB/s':>8}  ours through Ray is")
    for name, measured in rates.items():
        show(name, max(measured), max(rates["ours, Ray tasks"]))
    share = some_of(corpus, arguments.peer_files, folder / "share")
    for name in arguments.peers:
        took = peer(arguments.peers_python, name, folder / "share", vocabulary, folder / name)
        show(name, took if isinstance(took, str) else share / took / 1e6, max(rates["ours, Ray tasks"]))


def own_rates(corpus: Path, vocabulary: Path, folder: Path, rounds: int, size: int) -> dict[str, list[float]]:
    """MB/s of ours through Ray and through processes, and of bare fastokens, round by round."""
    spec = Tokenize(corpus=Files(url=str(corpus)), tokenizer=Pretrained(path=str(vocabulary)))
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, workers in (("ours, Ray tasks", ray_tasks), ("ours, process pool", process_tasks)):
            with workers() as each:
                rates.setdefault(name, []).append(size / ours(spec, folder / "ours", each) / 1e6)
            shutil.rmtree(folder / "ours")
        rates.setdefault("bare fastokens", []).append(size / bare_engine(vocabulary, corpus) / 1e6)
    return rates


def some_of(corpus: Path, count: int, folder: Path) -> int:
    """The first files in a folder of their own; bytes of text in them."""
    folder.mkdir()
    chosen = sorted(corpus.glob("*.jsonl"))[:count]
    for path in chosen:
        os.link(path, folder / path.name)
    return sum(len(text.encode()) for path in chosen for text in loaded(path))


def show(name: str, rate: float | str, own: float) -> None:
    print(f"{name:22}{rate if isinstance(rate, str) else f'{rate:8.1f}  {own / rate:8.2f} x'}", flush=True)


if __name__ == "__main__":
    main()
