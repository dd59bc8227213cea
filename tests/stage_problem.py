"""Small stages for tests of what runs stages; their bodies leave traces that can be counted."""

import os
import signal
import sys
import time
from pathlib import Path

from discdiff.types import DiscdiffError, UnreachableError, Value
from pipelines import lease
from pipelines.artifacts import Samples, Tokens
from pipelines.runner import Runner
from pipelines.stage import stage
from pipelines.work import Work

PARTS = 4


class Corpus(Value, frozen=True):
    """`trace` is a file that every attempt adds a line to."""

    trace: str
    size: int = 3
    rate: float = 0.5
    names: tuple[str, ...] = ("a", "b")
    fail: str = ""
    slow: float = 0.0

    @property
    def label(self) -> str:
        return f"of {self.size}"

    def identity(self) -> dict[str, object]:
        return {
            name: getattr(self, name) for name in type(self).model_fields if name not in ("trace", "slow")
        }


class Draw(Value, frozen=True):
    tokens: Tokens
    count: int = 2


def note(spec: Corpus, text: str) -> None:
    with Path(spec.trace).open("a") as file:
        file.write(f"{text}\n")


def made(spec: Corpus, work: Work) -> Tokens:
    return Tokens(key=work.key, uri=work.uri, fingerprint="f", vocab=spec.size, documents=1, tokens=2)


@stage(version=1)
def collect(spec: Corpus, work: Work) -> Tokens:
    """Writes its parts anew each time."""
    note(spec, f"began {len(list(work.directory.iterdir()))}")
    for part in range(PARTS):
        (work.directory / f"part-{part}").write_bytes(b"x" * 1000)
        time.sleep(spec.slow / PARTS)
        if part == 1:
            _fail(spec.fail)
    note(spec, "ended")
    return made(spec, work)


@stage(version=1, resumable=True)
def gather(spec: Corpus, work: Work) -> Tokens:
    """Writes the parts that are not there."""
    there = {each.name for each in work.directory.iterdir()}
    note(spec, f"began {len([name for name in there if name.startswith('part')])}")
    for part in range(PARTS):
        if f"part-{part}" not in there:
            (work.directory / f"part-{part}").write_bytes(b"x" * 1000)
        if part == 1:
            _fail(spec.fail if not there else "")
    note(spec, "ended")
    return made(spec, work)


@stage(version=1)
def draw(spec: Draw, work: Work) -> Samples:
    work.log({"loss": 1.0, "odd": float("nan")}, step=1)
    work.log({"loss": 0.5}, step=2)
    return Samples(key=work.key, uri=work.uri, count=spec.count, length=spec.tokens.vocab)


def _fail(how: str) -> None:
    match how:
        case "mistake":
            raise DiscdiffError("size 3 was given; 4 is allowed.")
        case "away":
            raise UnreachableError("s3://bucket/x.txt can't be read: refused; try again")
        case "bug":
            raise RuntimeError("two\nlines")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    root, stage_name, text, beat, patience = sys.argv[1:]
    lease.BEAT, lease.PATIENCE = float(beat), float(patience)
    with Runner(root) as run:
        artifact = run({"collect": collect, "gather": gather}[stage_name], Corpus.model_validate_json(text))
        print(artifact.key, artifact.vocab, flush=True)
