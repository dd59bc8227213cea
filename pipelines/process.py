"""Which process did something, and whether it still lives."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import psutil

Owner = Mapping[str, str | int | float]


def identity() -> Owner:
    """This process, so that another on the same machine can tell whether it still lives."""
    return {
        "host": platform.node(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }


def _machine() -> str:
    """Names the machine and its process space: only inside one can a process id be looked up."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def dead(owner: Owner) -> bool:
    """Whether the process is known to have ended; False where it can't be seen from here."""
    if owner.get("machine") != _machine():
        return False
    try:
        process = psutil.Process(int(owner["pid"]))
        return (
            abs(process.create_time() - float(owner["started"])) > 1
            or process.status() == psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return True
