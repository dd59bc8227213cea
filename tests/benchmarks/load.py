"""How fast shuffled batches are read, beside other loaders in the same run.

    python tests/benchmarks/load.py --tokens 64000000 --seconds 1 --rounds 5

All read the same tokens, as shuffled batches (64, 1024) of int64, from files in the page cache. In each round
every loader runs for a while in a process of its own, for some leave threads behind, after an epoch of which
no account is taken. Printed are the best rate of each, which other work disturbs least, and the median.
Loaders that are not installed are named and left out (`pip install discdiff[bench]`).
"""

import argparse
import contextlib
import importlib.util
import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from discdiff.data.folder import Folder
from discdiff.data.loader import Loader
from discdiff.data.manifest import Manifest, commit
from discdiff.data.memory import sparse
from discdiff.data.order import Shuffled
from discdiff.data.packing import Wrap
from discdiff.data.resident import Chunks
from discdiff.data.shard import MOST_TOKENS, Shard, ShardBuilder
from discdiff.data.store import Store
from discdiff.data.tokenizers import Bytes

BATCH, LENGTH, VOCAB = 64, 1024, 50_257
BOUNDS = {"bare gather and cast, 1 batch kept": 1, "bare gather and cast, 32 batches kept": 32}
Batches = Generator[object]


# The same tokens for everybody


def make_store(folder: Path, tokens: np.ndarray) -> None:
    shards: list[Shard] = []
    for part in np.array_split(tokens, max(1, 2 * len(tokens) // 2**26)):
        builder = ShardBuilder(VOCAB, separator=None)
        builder.add(part, np.append(np.arange(0, len(part), 700), len(part)), characters=0, bytes=0)
        shards.append(builder.write(Folder.at(folder), "train"))
    tokenizer = Bytes().open()
    made = Manifest.of(
        tokenizer=tokenizer.fingerprint,
        tokenizer_json=tokenizer.to_json(),
        vocab=VOCAB,
        separator=None,
        splits={"train": shards},
    )
    commit(Folder.at(folder), made, tokenizer.to_json())


# The loaders. Each yields batches without end.


def bare(rows: np.ndarray) -> Batches:
    """Gather rows, each once an epoch as the loaders do; what order they have costs nothing here."""
    order = np.random.default_rng(0).permutation(len(rows))
    for indices in itertools.cycle(order[: len(rows) // BATCH * BATCH].reshape(-1, BATCH)):
        yield rows[indices]


def widened(rows: np.ndarray, kept: int) -> Batches:
    """Gather rows and widen them, into memory for so many batches in turn.

    That of one batch stays in a core's own cache, but who reads ahead needs that of many.
    """
    memory = itertools.cycle([np.empty((BATCH, LENGTH), np.int64) for _ in range(kept)])
    for gathered, out in zip(bare(rows), memory, strict=False):
        np.copyto(out, gathered)
        yield out


def ours(root: Path) -> Batches:
    with Loader(Store.open(root / "ours"), Wrap(length=LENGTH)).stream(0, BATCH) as batches:
        yield from batches


class Memmap(Dataset[torch.Tensor]):
    def __init__(self, path: Path):
        self._tokens = np.memmap(path, np.uint16, "r")

    def __len__(self) -> int:
        return len(self._tokens) // LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self._tokens[index * LENGTH : (index + 1) * LENGTH].astype(np.int64))


def memmap(root: Path, workers: int) -> Batches:
    loader = DataLoader(Memmap(root / "tokens.bin"), BATCH, shuffle=True, num_workers=workers, drop_last=True)
    while True:
        yield from loader


def litdata(root: Path, workers: int) -> Batches:
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    dataset = StreamingDataset(str(root / "litdata"), item_loader=TokensLoader(LENGTH), shuffle=True)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers)
    while True:
        for batch in loader:
            yield batch.long()


def make_litdata(root: Path) -> None:
    script = (
        "import sys, numpy as np, torch\nfrom litdata import TokensLoader, optimize\n"
        "def parts(bounds):\n"
        "    tokens = np.memmap(sys.argv[1] + '/tokens.bin', np.uint16, 'r')[bounds[0]:bounds[1]]\n"
        "    yield torch.from_numpy(tokens.astype(np.int32))\n"
        "if __name__ == '__main__':\n"
        "    size = len(np.memmap(sys.argv[1] + '/tokens.bin', np.uint16, 'r'))\n"
        "    step = 4096 * 1024\n"
        "    bounds = [(i, min(i + step, size)) for i in range(0, size, step)]\n"
        "    optimize(parts, bounds, sys.argv[1] + '/litdata', chunk_size=step + 1024,\n"
        "        item_loader=TokensLoader(), num_workers=1)\n"
    )
    Path(root, "make_litdata.py").write_text(script)
    subprocess.run(
        [sys.executable, str(root / "make_litdata.py"), str(root)], check=True, capture_output=True
    )


def grain(root: Path) -> Batches:
    import grain.python as pygrain

    source = pygrain.MapDataset.source(Memmap(root / "tokens.bin"))  # type: ignore[arg-type]
    numbers = source.map(lambda row: row.numpy()).shuffle(seed=0).repeat().batch(BATCH)
    for batch in numbers.to_iter_dataset():
        yield torch.from_numpy(batch)


def hugging_face(root: Path) -> Batches:
    import datasets

    rows = datasets.load_from_disk(str(root / "datasets")).with_format("torch")
    for epoch in itertools.count():
        for batch in rows.shuffle(seed=epoch).iter(BATCH, drop_last_batch=True):  # type: ignore[union-attr]
            yield batch["tokens"].long()


def make_hugging_face(root: Path) -> None:
    import datasets
    import pyarrow as pa

    values = pa.array(np.memmap(root / "tokens.bin", np.uint16, "r"))
    column = pa.FixedSizeListArray.from_arrays(values[: len(values) // LENGTH * LENGTH], LENGTH)
    datasets.Dataset(pa.table({"tokens": column})).save_to_disk(str(root / "datasets"))


def streaming(root: Path, workers: int) -> Batches:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(root / "streaming"), shuffle=True, batch_size=BATCH)
    loader = DataLoader(dataset, BATCH, num_workers=workers, drop_last=True)
    while True:
        for batch in loader:
            yield batch["tokens"].long()


def make_streaming(root: Path) -> None:
    from streaming import MDSWriter

    rows = np.memmap(root / "tokens.bin", np.uint16, "r")
    columns = {"tokens": f"ndarray:uint16:{LENGTH}"}
    with MDSWriter(columns=columns, out=str(root / "streaming")) as writer:
        for row in rows[: len(rows) // LENGTH * LENGTH].reshape(-1, LENGTH):
            writer.write({"tokens": np.array(row)})


def loaders(root: Path) -> dict[str, Callable[[], Batches]]:
    tokens = np.memmap(root / "tokens.bin", np.uint16, "r")
    mapped = np.asarray(tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH))
    return {
        "bare gather": lambda: bare(mapped),
        **{bound: lambda kept=kept: widened(mapped, kept) for bound, kept in BOUNDS.items()},
        "discdiff": lambda: ours(root),
        "np.memmap + DataLoader": lambda: memmap(root, 0),
        "np.memmap + DataLoader, 2 workers": lambda: memmap(root, 2),
        "litdata": lambda: litdata(root, 0),
        "litdata, 2 workers": lambda: litdata(root, 2),
        "Grain": lambda: grain(root),
        "Hugging Face datasets": lambda: hugging_face(root),
        "MosaicML streaming": lambda: streaming(root, 0),
        "MosaicML streaming, 2 workers": lambda: streaming(root, 2),
    }


PEERS: dict[str, tuple[str, Callable[[Path], None] | None]] = {
    "litdata": ("litdata", make_litdata),
    "Grain": ("grain", None),
    "Hugging Face": ("datasets", make_hugging_face),
    "MosaicML": ("streaming", make_streaming),
}
"""What the names of a peer's loaders begin with, its module, and what writes the tokens for it."""


def written(root: Path) -> list[str]:
    """The loaders that are installed, their files made."""
    names = list(loaders(root))
    for peer, (module, prepare) in PEERS.items():
        reason = None
        if importlib.util.find_spec(module) is None:
            reason = "is not installed and left out"
        elif prepare is not None:
            try:
                prepare(root)
            except Exception as error:
                reason = f"does not write here: {type(error).__name__}: {error}"
        if reason is not None:
            print(f"{module} {reason}")
            names = [name for name in names if not name.startswith(peer)]
    return names


# The figures


def race(root: Path, warm: float, seconds: float, rounds: int) -> None:
    """Each loader alone, in turn."""
    rates: dict[str, list[float]] = {}
    names = written(root)
    for _ in range(rounds):
        for name in list(names):
            try:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                    rate = alone.submit(measured, root, name, warm, seconds).result()
                rates.setdefault(name, []).append(rate)
            except Exception as error:
                print(f"{name} does not run here: {type(error).__name__}: {error}")
                names.remove(name)
    table("best, Mtoken/s", {name: max(each) for name, each in rates.items()})
    table("median, Mtoken/s", {name: float(np.median(each)) for name, each in rates.items()})


def measured(root: Path, name: str, warm: float, seconds: float) -> float:
    """Millions of tokens a second: opened, read for an epoch or `warm` seconds, timed, closed."""
    multiprocessing.set_start_method("fork", force=True)  # for workers, as in a program of its own
    torch.set_num_threads(1)
    with contextlib.closing(loaders(root)[name]()) as batches:
        drain(batches, warm, tokens=(root / "tokens.bin").stat().st_size // 2)
        return drain(batches, seconds)


def drain(batches: Batches, seconds: float, tokens: float = float("inf")) -> float:
    """Millions of tokens a second, read for so long or until there were so many."""
    begin, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < seconds and count * BATCH * LENGTH < tokens:
        next(batches)
        count += 1
    return count * BATCH * LENGTH / 1e6 / spent


def table(title: str, rates: dict[str, float]) -> None:
    own = rates["discdiff"]
    print(f"\n{'shuffled (64, 1024) batches':40}{title:>30}   discdiff is")
    for name, rate in sorted(rates.items(), key=lambda item: -item[1]):
        print(f"{name:40}{rate:30.0f}{own / rate:12.2f} x")
    peers = [rate for name, rate in rates.items() if "bare" not in name and name != "discdiff"]
    print(f"against the best peer {own / max(peers):.1f} x (wanted: 7)")
    for bound in BOUNDS:
        print(f"against {bound} {own / rates[bound]:.2f} (wanted: 0.75)")


FIRST = """
import sys, time
from discdiff.data.loader import Loader
from discdiff.data.packing import Wrap
from discdiff.data.store import Store
start = time.perf_counter()
Loader(Store.open(sys.argv[1]), Wrap(length=1024)).read(0, 64)
print(time.perf_counter() - start)
"""


def first_batch(root: Path) -> None:
    """In a new process, the files dropped from the page cache as far as the system lets us."""
    for path in (root / "ours").glob("train/*"):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    command = [sys.executable, "-c", FIRST, str(root / "ours")]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    print(f"cold first batch, opened and checked: {float(done.stdout) * 1e3:.0f} ms (wanted: below 500)")


EPOCH = """
import sys
from pathlib import Path
from discdiff.data.loader import Loader
from discdiff.data.packing import Wrap
from discdiff.data.store import Store
def private():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
before = private()
loader = Loader(Store.open(sys.argv[1]), Wrap(length=1024))
with loader.stream(0, 64) as batches:
    for _ in range(loader.rows_per_epoch // 64):
        next(batches)
print((private() - before) / 1024)
"""


def memory(root: Path, tokens: np.ndarray) -> None:
    """What a process holds beside the page cache after an epoch, of a store and of a larger one."""
    make_store(root / "small", tokens[: len(tokens) // 8])
    used: list[str] = []
    for name, count in (("small", len(tokens) // 8), ("ours", len(tokens))):
        done = subprocess.run(
            [sys.executable, "-c", EPOCH, str(root / name)], stdout=subprocess.PIPE, check=True, text=True
        )
        used.append(f"{float(done.stdout):.0f} MB for {count / 1e6:.0f}M tokens")
    print(f"private memory after an epoch: {', '.join(used)}")


def manifest_of(tokens: int) -> None:
    """What opening costs besides: a manifest names each shard and the checksum of each 512 KiB of it."""
    shards: list[Shard] = []
    size = 64 * 2**20
    for number in range(-(-2 * tokens // size)):
        name = f"{number:064x}"
        fields = {
            "documents": 10**4,
            "characters": 10**8,
            "bytes": 10**8,
            "smallest": 0,
            "largest": VOCAB - 1,
        }
        checksums = {"sha256": name, "xxh3": "0" * 16, "chunks": "0123456789abcdef" * 128}
        places = {"offsets_at": 8, "values_at": 2**16, "size": size, "tokens": size // 2 - 2**15}
        shards.append(Shard(path=f"train/{name}.arrow", **fields, **checksums, **places))
    text = Manifest.of(
        tokenizer="", tokenizer_json="", vocab=VOCAB, separator=None, splits={"train": shards}
    ).model_dump_json()
    start = time.perf_counter()
    Manifest.model_validate_json(text)
    spent = time.perf_counter() - start
    print(
        f"a manifest of {tokens:.0e} tokens in {len(shards):,} shards of 64 MiB, {len(text) / 1e6:.0f} MB, "
        f"is read and checked in {spent:.2f} s"
    )


class Nowhere:
    """Chunks of a store that does not exist: all of them are one and the same piece of memory."""

    contiguous, reach = True, 2**19

    def __init__(self, count: int):
        self._memory = np.zeros(2**20, np.uint8)
        self.address = sparse(count)

    def bring(self, chunks: np.ndarray) -> None:
        self.address[chunks] = self._memory.ctypes.data

    @property
    def held(self) -> object:
        return self._memory

    def close(self) -> None:
        pass


def endless(rows: int) -> None:
    """Start in the middle of 10^11 rows, in 50,000 shards of 2 * 10^9 tokens that exist in no file."""
    tokens = MOST_TOKENS // 2**20 * 2**20
    count = -(-rows * LENGTH // tokens)
    fields = {"documents": 10**6, "tokens": tokens, "characters": 0, "bytes": 0, "size": 2 * tokens + 2**20}
    shard = Shard.model_construct(path="", values_at=512, offsets_at=8, **fields)
    manifest = Manifest.model_construct(dtype="uint16", chunk=2**19, separator=None, splits={})
    shards = [shard] * count
    before = resident()
    times: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        nowhere = Nowhere(int(Chunks(shards, 2**19).first[-1]))
        store = Store(Folder.at("/"), manifest, "train", shards, nowhere)
        loader = Loader(store, Wrap(length=LENGTH), seed=1)
        loader.read(7 * loader.rows_per_epoch // 10, BATCH)
        times.append(time.perf_counter() - start)
    used = resident() - before
    where = f"row 7e10 of {loader.rows_per_epoch:.1e} ({count:,} shards)"
    print(f"start at {where}: best {min(times):.3f} s, {used / 1024:.0f} MB (wanted: 0.1 s, 50 MB)")


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def spread() -> None:
    """Distinct shards in shuffled batches, against rows drawn at random."""
    rows, batches = 5_000_000, 4000
    order = Shuffled(rows, seed=0).at(np.arange(BATCH * batches)).reshape(batches, BATCH)
    random = np.random.default_rng(0).integers(0, rows, order.shape)
    for shards in (16, 64, 153, 1000):
        ours_, ideal = (
            np.mean([len(np.unique(batch * shards // rows)) for batch in drawn]) for drawn in (order, random)
        )
        gap = ours_ / ideal - 1
        print(f"distinct shards of {shards:5} in a batch: {ours_:.2f}, at random {ideal:.2f}: {gap:+.2%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=64_000_000)
    parser.add_argument("--warm", type=float, default=3, help="seconds at most before a loader is timed")
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write; a temporary folder by default"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="discdiff-load-", dir=chosen.folder))
    try:
        tokens = np.random.default_rng(0).integers(0, VOCAB, chosen.tokens).astype(np.uint16)
        tokens.tofile(root / "tokens.bin")
        make_store(root / "ours", tokens)
        endless(10**11)
        manifest_of(10**12)
        first_batch(root)
        memory(root, tokens)
        spread()
        with contextlib.suppress(KeyboardInterrupt):
            race(root, chosen.warm, chosen.seconds, chosen.rounds)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
