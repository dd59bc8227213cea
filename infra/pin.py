"""Write `infra/constraints.txt`: an exact version of every package in the running environment.

Torch loses its local suffix (`+cpu`), which names a build, not a version. Setuptools must stay under 82,
which torch 2.11 demands.
"""

import re
from importlib.metadata import distributions
from pathlib import Path

HEADER = """\
# Exact versions for `make`, the image and CI, on Python 3.11 and 3.12. Written by `make constraints`.
# Torch comes first and is installed by itself. CUDA libraries are not listed: torch pins its own.
"""


def main() -> None:
    found = {normal(d.name): d.version.split("+")[0] for d in distributions()}
    found.pop("discdiff")
    torch = found.pop("torch")
    if int(found["setuptools"].split(".")[0]) >= 82:
        raise SystemExit(
            "setuptools must stay under 82 for torch 2.11: pip install 'setuptools<82', then try again"
        )
    cuda = re.compile(r"nvidia-(?!ml)|cuda-|triton")
    lines = [f"torch=={torch}", *(f"{n}=={v}" for n, v in sorted(found.items()) if not cuda.match(n))]
    (Path(__file__).parent / "constraints.txt").write_text(HEADER + "\n".join(lines) + "\n")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


main()
