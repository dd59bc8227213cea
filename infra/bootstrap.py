"""Create the virtual environment that every target of the Makefile runs in, or find it up to date.

Torch is installed first and alone: a requirement that merely admits it would take the newest build, with
gigabytes of CUDA libraries, even where another build is at hand. The rest comes from `infra/constraints.txt`.
Standard library only, because it runs before anything is installed.
"""

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "infra" / "constraints.txt"
TOOLS = ("pip", "setuptools")
EXTRAS = "pipelines,dev"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument(
        "--torch", default="", help="another torch than the pinned one, such as torch==2.11.0"
    )
    parser.add_argument("--pip-args", default="", help="passed to every `pip install`, such as an index URL")
    options = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 (the one file that an older Python may be asked to run)
        sys.exit(
            f"discdiff needs Python 3.11 or newer, not {sys.version.split()[0]}: make PYTHON=python3.12 ..."
        )
    pins = dict(pinned())
    torch = options.torch or pins["torch"]
    target = options.venv.resolve()
    wanted = fingerprint(torch)
    with locked(target):
        stamp = target / "installed.sha256"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        stamp.unlink(missing_ok=True)
        install(target, torch, pins, options.pip_args.split())
        stamp.write_text(wanted)


def pinned() -> Iterator[tuple[str, str]]:
    for line in CONSTRAINTS.read_text().splitlines():
        if "==" in line and not line.startswith("#"):
            yield line.split("==")[0].lower(), line


def fingerprint(torch: str) -> str:
    """What the environment was made from: change any of it and it is brought up to date."""
    parts = [
        CONSTRAINTS.read_bytes(),
        (ROOT / "pyproject.toml").read_bytes(),
        torch.encode(),
        EXTRAS.encode(),
    ]
    return hashlib.sha256(b"\0".join([*parts, os.fsencode(ROOT), sys.version.encode()])).hexdigest()


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Two targets started at once in one checkout: the second waits, then finds the work done."""
    with open(target.parent / f"{target.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def install(target: Path, torch: str, pins: dict[str, str], pip_args: list[str]) -> None:
    start = time.monotonic()
    python = target / "bin" / "python"
    say(f"{target.name}: Python {sys.version.split()[0]}, {torch}, {len(pins)} pinned packages")
    if python.exists():
        refuse_another_python(target)
    else:
        create(target)
    constraints = target / "constraints.txt"
    constraints.write_text(
        "\n".join([*(line for name, line in pins.items() if name != "torch"), torch]) + "\n"
    )
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *pip_args]
    run("build tools", [*pip, *(pins[name] for name in TOOLS)], target)
    run("torch", [*pip, "-c", str(constraints), torch], target)
    editable = ["--no-build-isolation", "-e", f"{ROOT}[{EXTRAS}]"]
    run("everything else", [*pip, "-c", str(constraints), *editable], target)
    say(f"ready in {time.monotonic() - start:.0f} s")


def create(target: Path) -> None:
    try:
        venv.EnvBuilder(with_pip=True, symlinks=True).create(target)
    except subprocess.CalledProcessError:
        shutil.rmtree(target, ignore_errors=True)
        sys.exit(
            "python3 -m venv failed: this Python lacks ensurepip (on Debian: apt-get install python3-venv)"
        )


def refuse_another_python(target: Path) -> None:
    ours = f"version = {sys.version_info.major}.{sys.version_info.minor}."
    config = (target / "pyvenv.cfg").read_text()
    if ours not in config:
        sys.exit(
            f"{target} does not hold Python {sys.version.split()[0]}: remove it, or choose another VENV="
        )


def run(step: str, command: list[str], target: Path) -> None:
    """Run pip quietly: one line a step, a live count on a terminal, and its last words if it fails."""
    log = target / "install.log"
    collected, lines = 0, []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            lines.append(line)
            collected += line.startswith(("Collecting", "Requirement already"))
            if sys.stdout.isatty():
                print(f"\r\033[K  {step}: {collected} packages {line.strip()[:60]}", end="", flush=True)
    log.write_text("".join(lines))
    if sys.stdout.isatty():
        print("\r\033[K", end="")
    if process.returncode:
        sys.exit(
            f"{''.join(lines[-25:])}\nInstalling {step} failed: pip's last lines are above, all are in {log}"
        )
    say(f"  {step}: done")


def say(text: str) -> None:
    print(text, flush=True)


main()
