"""One tool tokenizes the corpus of `tokenization.py` with two processes and prints the seconds that it took.

Run by that script, under an interpreter that has the tools: `python tokenization_peers.py NAME CORPUS
VOCABULARY OUT`. The clock starts after imports and stops when all tokens are written. Nothing here
imports discdiff.

litdata and MosaicML streaming encode a document at a time, as litdata's documentation shows it, and datasets
its batches by `encode_batch`; `NAME-tuned` hands Hugging Face's `encode_batch_fast` 1,000 documents.
"""

import glob
import json
import multiprocessing
import os
import sys
import time
from functools import lru_cache, partial

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
PROCESSES = 2
END = "<|endoftext|>"


def documents(path: str):
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


@lru_cache
def reference(vocabulary: str):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(vocabulary)
    tokenizer.encode_special_tokens = True
    return tokenizer


def batches(path: str, size: int = 1000):
    batch = []
    for text in documents(path):
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def datatrove(files: list[str], vocabulary: str, out: str) -> float:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    pipeline = [
        JsonlReader(os.path.dirname(files[0]), glob_pattern="*.jsonl", text_key="text"),
        DocumentTokenizer(
            f"{out}/tokens", tokenizer_name_or_path=vocabulary, eos_token=END, shuffle_documents=False
        ),
    ]
    start = time.perf_counter()
    executor = LocalPipelineExecutor(pipeline, tasks=PROCESSES, workers=PROCESSES, logging_dir=f"{out}/logs")
    executor.run()
    return time.perf_counter() - start


def plain_ids(path: str, vocabulary: str):
    tokenizer = reference(vocabulary)
    for text in documents(path):
        yield tokenizer.encode(text, add_special_tokens=False).ids


def tuned_ids(path: str, vocabulary: str):
    for batch in batches(path):
        for encoded in reference(vocabulary).encode_batch_fast(batch, add_special_tokens=False):
            yield encoded.ids


def map_datasets(files: list[str], vocabulary: str, out: str, tuned: bool) -> float:
    import numpy as np
    from datasets import load_dataset

    def encode(batch):
        tokenizer = reference(vocabulary)
        if tuned:
            encoded = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
            return {"ids": [np.array(one.ids, np.uint16) for one in encoded]}
        encoded = tokenizer.encode_batch(batch["text"], add_special_tokens=False)
        return {"ids": [one.ids for one in encoded]}

    start = time.perf_counter()
    rows = load_dataset("json", data_files=files, split="train", cache_dir=f"{out}/cache")
    rows = rows.map(encode, batched=True, remove_columns=rows.column_names, num_proc=PROCESSES)
    rows.save_to_disk(f"{out}/tokens", num_proc=PROCESSES)
    return time.perf_counter() - start


def write_mds(job: tuple[list[str], str, str, bool]) -> None:
    import numpy as np
    from streaming import MDSWriter

    files, vocabulary, out, tuned = job
    with MDSWriter(
        out=out, columns={"tokens": "ndarray:uint16"}, hashes=["sha256"], size_limit="64mb"
    ) as writer:
        for path in files:
            for ids in (tuned_ids if tuned else plain_ids)(path, vocabulary):
                writer.write({"tokens": np.array(ids, np.uint16)})


def write_streaming(files: list[str], vocabulary: str, out: str, tuned: bool) -> float:
    import streaming  # noqa: F401

    start = time.perf_counter()
    jobs = [(files[i::PROCESSES], vocabulary, f"{out}/{i}", tuned) for i in range(PROCESSES)]
    with multiprocessing.Pool(PROCESSES) as pool:
        pool.map(write_mds, jobs)
    return time.perf_counter() - start


def litdata_tokens(path: str, vocabulary: str, tuned: bool):
    import torch

    for ids in (tuned_ids if tuned else plain_ids)(path, vocabulary):
        yield torch.tensor(ids, dtype=torch.int32)


def optimize_litdata(files: list[str], vocabulary: str, out: str, tuned: bool) -> float:
    from litdata import optimize
    from litdata.streaming import TokensLoader

    start = time.perf_counter()
    optimize(
        fn=partial(litdata_tokens, vocabulary=vocabulary, tuned=tuned),
        inputs=files,
        output_dir=f"{out}/tokens",
        chunk_bytes="64MB",
        num_workers=PROCESSES,
        item_loader=TokensLoader(),
    )
    return time.perf_counter() - start


@lru_cache
def tiktoken_encoding(vocabulary: str):
    """The same merges in tiktoken's form: ranks in the order in which the tokens were made."""
    import tiktoken
    from tokenizers import pre_tokenizers

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    assert set(table) == set(pre_tokenizers.ByteLevel.alphabet())
    with open(vocabulary, encoding="utf-8") as file:
        vocab = json.load(file)["model"]["vocab"]
    ranks = {bytes(table[c] for c in token): index for token, index in vocab.items() if token != END}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    return tiktoken.Encoding(
        "bench", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: vocab[END]}
    )


def write_tiktoken(job: tuple[str, str, str]) -> None:
    import numpy as np

    path, vocabulary, out = job
    encoding = tiktoken_encoding(vocabulary)
    parts = []
    for text in documents(path):
        parts.append(np.array(encoding.encode_ordinary(text), np.uint16))
    np.save(out, np.concatenate(parts))


def tiktoken(files: list[str], vocabulary: str, out: str) -> float:
    import tiktoken  # noqa: F401

    start = time.perf_counter()
    jobs = [(path, vocabulary, f"{out}/{i}.npy") for i, path in enumerate(files)]
    with multiprocessing.Pool(PROCESSES) as pool:
        pool.map(write_tiktoken, jobs, chunksize=1)
    return time.perf_counter() - start


PEERS = {"datatrove": datatrove, "tiktoken": tiktoken} | {
    name + suffix: partial(write, tuned=bool(suffix))
    for name, write in (
        ("datasets", map_datasets),
        ("streaming", write_streaming),
        ("litdata", optimize_litdata),
    )
    for suffix in ("", "-tuned")
}

if __name__ == "__main__":
    name, corpus, vocabulary, out = sys.argv[1:]
    os.makedirs(out, exist_ok=True)
    try:
        seconds = PEERS[name](sorted(glob.glob(f"{corpus}/*.jsonl")), vocabulary, out)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))
    else:
        print(json.dumps({"seconds": seconds}))
