"""How fast text becomes a committed store, beside other tools in the same run.

    python tests/benchmarks/tokenization.py --megabytes 500 --peers-python .venv/bin/python

Real files of this environment (sources and documentation of every installed package) as JSON lines; the
first pass as they are, further ones with their lines shuffled, so that no document comes twice. All
tokenize with the same BPE-32k trained on a part of it, in two processes. Ours end with hashed, fsynced
and committed shards. Printed are MB/s and ratios: ours through a process pool and through Ray tasks, the
bare engine, and the peers, which are left out where they are not installed (`pip install
discdiff[bench]`). `--exact` compares every id with the reference's.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from discdiff.data.bookkeeping import Each
from discdiff.data.bpe import Bpe, train_bpe
from discdiff.data.build import build
from discdiff.data.corpora import Files
from discdiff.data.pool import Pool, single_threaded
from discdiff.data.pretrained import Fast, Pretrained, Reference
from discdiff.data.specification import Tokenize

PROCESSES = 2
PEERS = ("datatrove", "datasets", "streaming", "litdata", "tiktoken")
SUFFIXES = (
    ".py",
    ".pyi",
    ".md",
    ".rst",
    ".txt",
    ".html",
    ".js",
    ".json",
    ".h",
    ".hpp",
    ".c",
    ".cpp",
    ".css",
    ".yaml",
)
FILES = 16


# The text


def real_texts() -> Iterator[str]:
    """Text files of the environment and of the system's documentation, and the system's translations."""
    roots = [sysconfig.get_paths()[name] for name in ("purelib", "stdlib")]
    for root in (*roots, "/usr/share/doc"):
        for path in sorted(Path(root).rglob("*")):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if path.is_file() and path.suffix in SUFFIXES and path.stat().st_size < 2**21:
                    yield path.read_text("utf-8")
    for path in sorted(Path("/usr/share/locale").rglob("*.mo")):
        strings = (part.decode("utf-8", "ignore") for part in path.read_bytes().split(b"\0"))
        yield "\n".join(text for text in strings if len(text) > 3)


def texts(megabytes: int) -> Iterator[str]:
    """So much text: the real files, then again with their lines shuffled."""
    left = megabytes * 10**6
    draw = random.Random(0)
    for again in range(10**6):
        for text in real_texts():
            lines = text.splitlines(keepends=True)
            if again:
                draw.shuffle(lines)
            text = "".join(lines)
            yield text
            left -= len(text.encode())
            if left <= 0:
                return


def write_corpus(folder: Path, megabytes: int) -> int:
    """The text as JSON lines, dealt out to files; bytes of text."""
    folder.mkdir()
    total = 0
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(open(folder / f"{i:02}.jsonl", "w", encoding="utf-8")) for i in range(FILES)
        ]
        for index, text in enumerate(texts(megabytes)):
            total += len(text.encode())
            files[index % FILES].write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return total


# Those who tokenize it


def ours(spec: Tokenize, out: Path, each: Each) -> float:
    """Seconds to a committed store, whose checks must all have passed."""
    start = time.perf_counter()
    manifest = build(spec, str(out), each=each)
    seconds = time.perf_counter() - start
    print(f"    {manifest.checks}", file=sys.stderr)
    return seconds


def through_ray(spec: Tokenize, out: Path) -> float:
    import ray

    from pipelines.tokenize import Spread

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=PROCESSES, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False
    )
    try:
        each = Spread(memory=2**20)
        dict(each(warm, range(PROCESSES)))
        return ours(spec, out, each)
    finally:
        ray.shutdown()


def warm(index: int) -> None:
    import discdiff.data.preparation  # noqa: F401

    time.sleep(2)


def in_pool(spec: Tokenize, out: Path) -> float:
    return ours(spec, out, Pool(PROCESSES))


def loaded(path: Path) -> list[str]:
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def encode_share(vocabulary: str, corpus: str, share: int) -> float:
    """Seconds of the engine alone on a share of the text that lies in memory."""
    files = sorted(Path(corpus).glob("*.jsonl"))[share::PROCESSES]
    batches = [loaded(path) for path in files]
    engine = Fast(Path(vocabulary).read_text("utf-8"))
    start = time.perf_counter()
    for batch in batches:
        engine.encode(batch)
    return time.perf_counter() - start


def bare_engine(vocabulary: Path, corpus: Path) -> float:
    with ProcessPoolExecutor(PROCESSES, get_context("forkserver"), single_threaded) as pool:
        shares = [pool.submit(encode_share, str(vocabulary), str(corpus), i) for i in range(PROCESSES)]
        return max(share.result() for share in shares)


def peer(python: str, name: str, corpus: Path, vocabulary: Path, out: Path) -> float | str:
    """Seconds of a peer, or why there are none."""
    script = Path(__file__).with_name("tokenization_peers.py")
    command = [python, str(script), name, str(corpus), str(vocabulary), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1]}"
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return answer.get("seconds", f"not installed: {answer.get('missing')}")


def compare_with_reference(vocabulary: Path, corpus: Path) -> None:
    """Every id of every document beside the reference's."""
    tokenizer = Pretrained(path=str(vocabulary)).open()
    reference = Reference(tokenizer.definition)
    count = size = differing = 0
    for path in sorted(corpus.glob("*.jsonl")):
        batch = loaded(path)
        a, b = Fast(tokenizer.definition).encode(batch), reference.encode(batch)
        for i in range(len(batch)):
            rows = (x.ids[x.offsets[i] : x.offsets[i + 1]] for x in (a, b))
            differing += not np.array_equal(*rows)
        count, size = count + len(batch), size + sum(len(text.encode()) for text in batch)
    print(f"exact: {differing} of {count} documents differ from the reference, in {size / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--peers-python", default=sys.executable, help="an interpreter that has the peers")
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    parser.add_argument("--exact", action="store_true", help="only compare the engine with the reference")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="discdiff-tokenize-", dir=arguments.folder))
    try:
        run(arguments, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(arguments: argparse.Namespace, folder: Path) -> None:
    corpus, vocabulary = folder / "corpus", folder / "vocabulary.json"
    size = write_corpus(corpus, arguments.megabytes)
    print(f"{size / 1e6:.0f} MB of text in {FILES} files of JSON lines; {os.cpu_count()} cores")
    vocabulary.write_text(train_bpe(Bpe(corpus=Files(url=str(corpus)), size=32_000, characters=20_000_000)))
    if arguments.exact:
        compare_with_reference(vocabulary, corpus)
        return
    spec = Tokenize(corpus=Files(url=str(corpus)), tokenizer=Pretrained(path=str(vocabulary)))
    own = through_ray(spec, folder / "ray")
    print(f"{'':20} {'MB/s':>8}  ours through Ray / this")
    show("ours, Ray tasks", own, own, size)
    show("ours, process pool", in_pool(spec, folder / "pool"), own, size)
    show("bare engine", bare_engine(vocabulary, corpus), own, size)
    for name in arguments.peers:
        show(name, peer(arguments.peers_python, name, corpus, vocabulary, folder / name), own, size)


def show(name: str, took: float | str, own: float, size: int) -> None:
    speed = took if isinstance(took, str) else f"{size / took / 1e6:8.1f}  {took / own:8.2f}"
    print(f"{name:20} {speed}", flush=True)


if __name__ == "__main__":
    main()
