"""Real text for benchmarks, found on the machine that runs them: nothing is downloaded, nothing comes twice.

Sources and documentation of Python, of its installed packages and of the system, C and C++ headers, and the
system's translations into some hundred languages, in an order drawn from the files' names. Where that is not
enough, further passes shuffle the lines of each file.
"""

import contextlib
import gzip
import hashlib
import json
import random
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = {
    *(".py", ".pyi", ".pyx", ".c", ".h", ".hpp", ".cpp", ".tcc", ".js", ".ts", ".css", ".pl", ".pm", ".sh"),
    *(
        ".md",
        ".rst",
        ".txt",
        ".html",
        ".xml",
        ".json",
        ".yaml",
        ".toml",
        ".cmake",
        ".vim",
        ".td",
        ".mo",
        ".gz",
    ),
}
ROOTS = ("/usr/share", "/usr/include", "/usr/lib/python3", "/usr/lib/node_modules")
LONGEST = 2**21
"""Bytes of the longest text that is taken: larger ones are tables."""
FILES = 16


def write_corpus(folder: Path, megabytes: int) -> Counter[str]:
    """So much text as JSON lines, dealt out to files; how many bytes of it came from which suffix."""
    folder.mkdir()
    sizes: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        names = [folder / f"{number:02}.jsonl" for number in range(FILES)]
        files = [stack.enter_context(open(name, "w", encoding="utf-8")) for name in names]
        for index, (suffix, text) in enumerate(texts()):
            files[index % FILES].write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            sizes[suffix] += len(text.encode())
            if sizes.total() >= megabytes * 10**6:
                break
    return sizes


def texts() -> Iterator[tuple[str, str]]:
    """Files without end, with their suffixes: as they are, then again and again with their lines shuffled."""
    yield from real_texts()
    draw = random.Random(0)
    while True:
        for suffix, text in real_texts():
            lines = text.splitlines(keepends=True)
            draw.shuffle(lines)
            yield f"{suffix}, lines shuffled", "".join(lines)


def real_texts() -> Iterator[tuple[str, str]]:
    """Each text once, with the suffix of its file."""
    seen: set[bytes] = set()
    for path in found():
        with contextlib.suppress(OSError, EOFError, UnicodeDecodeError):
            text = read(path)
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if text and digest not in seen:
                seen.add(digest)
                yield path.suffix, text


def found() -> list[Path]:
    roots = {sysconfig.get_paths()[name] for name in ("purelib", "stdlib")} | set(ROOTS)
    paths = {
        path
        for root in roots
        for path in Path(root).rglob("*")
        if path.suffix in SUFFIXES and path.is_file() and path.stat().st_size <= LONGEST
    }
    return sorted(paths, key=lambda path: hashlib.blake2b(str(path).encode()).digest())


def read(path: Path) -> str:
    """The text of a file; of compiled translations their strings, of compressed ones what is inside."""
    data = path.read_bytes()
    if path.suffix == ".mo":
        strings = (part.decode("utf-8", "ignore") for part in data.split(b"\0"))
        return "\n".join(string for string in strings if len(string) > 3 and string.isprintable())
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    return data.decode("utf-8") if len(data) <= LONGEST else ""


def ugly_texts(count: int, fragments: list[str]) -> Iterator[str]:
    """Documents that no one would write: fragments and code points of any script, in any order."""
    draw = random.Random(0)
    planes = ((0, 0x250), (0x250, 0x3000), (0x3000, 0xD800), (0xE000, 0x20000), (0xE0000, 0x110000))
    for _ in range(count):
        yield "".join(
            draw.choice(fragments) if draw.random() < 0.5 else chr(draw.randrange(*draw.choice(planes)))
            for _ in range(draw.randint(1, 2000))
        )
