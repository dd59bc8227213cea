"""The library alone: it imports, trains, scores and samples where Ray and MLflow are not installed.

The environment is a real one, made by `venv`, with links to the installed files of exactly the distributions
that discdiff's core dependencies lead to, as their own metadata says. What is not required is not there: an
import of anything else fails as it would after `pip install discdiff` in a fresh environment.
"""

import re
import subprocess
import sys
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
ABSENT = ("ray", "mlflow", "pipelines", "jobs", "pytest", "scipy")

PROGRAM = """
import importlib, importlib.util, pkgutil, sys

for name in {absent}:
    assert importlib.util.find_spec(name) is None, f"{{name}} is installed"

import discdiff
names = [module.name for module in pkgutil.walk_packages(discdiff.__path__, "discdiff.")]
for name in names:
    importlib.import_module(name)

import torch
from discdiff.methods import Mdlm
from discdiff.networks import Transformer
from discdiff.noise import Noise
from discdiff.samplers import Sampler
from discdiff.training import Recipe, fit
from discdiff.types import Canvas

text = "the quick brown fox jumps over the lazy dog. " * 64
vocab = sorted(set(text))
ids = torch.tensor([vocab.index(c) for c in text])

class Windows:
    rows = len(ids) - 16

    def read(self, start, count):
        rows = torch.arange(start, start + count)
        tokens = torch.stack([ids[r % self.rows : r % self.rows + 16] for r in rows.tolist()])
        return Canvas(tokens, torch.ones_like(tokens, dtype=torch.bool), rows)

    def stream(self, start, count, stride):
        while True:
            yield self.read(start, count)
            start += stride

method = Mdlm()
torch.manual_seed(0)
net = method.network(Transformer(layers=1, width=32, heads=2), len(vocab))
canvas = Windows().read(0, 256)
noise = Noise(7).on(canvas.rows)
before = method.bound(net, canvas, noise).mean().item()
fit(method, net, Windows(), Recipe(steps=60, batch=32, learning_rate=1e-2, warmup=4))
after = method.bound(net, canvas, noise).mean().item()
assert after < 0.9 * before, (before, after)

blank = Canvas(torch.zeros(2, 16, dtype=torch.int64), torch.ones(2, 16, dtype=torch.bool), torch.arange(2))
with torch.no_grad():
    sample = method.sample(net, blank, Sampler(steps=8), Noise(1).on(blank.rows))
assert sample.shape == (2, 16) and int(sample.max()) < len(vocab)
assert not {{"ray", "mlflow"}} & {{name.partition(".")[0] for name in sys.modules}}
print(len(names), "modules", f"{{before:.1f}} -> {{after:.1f}} nats")
"""


def test_library_needs_neither_ray_nor_mlflow(tmp_path: Path):
    python = environment_of("discdiff", tmp_path / "venv")
    program = PROGRAM.format(absent=ABSENT)
    ran = subprocess.run(
        [python, "-I", "-W", "error", "-c", program], capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "modules" in ran.stdout


def test_the_environment_really_lacks_what_is_not_required(tmp_path: Path):
    python = environment_of("discdiff", tmp_path / "venv")
    for name in ABSENT:
        ran = subprocess.run([python, "-I", "-c", f"import {name}"], capture_output=True, text=True)
        assert f"No module named '{name}'" in ran.stderr


def environment_of(name: str, folder: Path) -> Path:
    """A virtual environment that holds a distribution, what it requires, and nothing else."""
    venv.EnvBuilder(symlinks=True).create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    for required in required_by(name).values():
        for installed in top_level(required):
            link = packages / installed.name
            if not link.exists():
                link.symlink_to(installed)
    (packages / "discdiff").symlink_to(ROOT / "discdiff")
    return folder / "bin" / "python"


def required_by(name: str) -> dict[str, Distribution]:
    """All that a distribution needs without extras, by following the requirements in installed metadata."""
    found: dict[str, Distribution] = {}
    todo = [(name, frozenset[str]())]
    seen = set(todo)
    while todo:
        current, extras = todo.pop()
        try:
            found[current] = distribution(current)
        except PackageNotFoundError:
            pytest.fail(f"{current} is required and not installed")
        for requirement in map(Requirement, found[current].requires or ()):
            contexts = [{"extra": extra} for extra in extras or {""}]
            wanted = (canonical(requirement.name), frozenset(requirement.extras))
            if wanted in seen or not any(applies(requirement, context) for context in contexts):
                continue
            seen.add(wanted)
            todo.append(wanted)
    del found[name]
    return found


def applies(requirement: Requirement, context: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(context)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def top_level(installed: Distribution) -> set[Path]:
    """The entries of site-packages that a distribution put there."""
    base = Path(str(installed.locate_file("")))
    names = {file.parts[0] for file in installed.files or () if file.parts[0] != ".."}
    return {base / name for name in names if name != "__pycache__"}


def test_python_that_is_too_old_is_told_so():
    script = str(ROOT / "infra" / "bootstrap.py")
    pretend = "import runpy, sys; sys.version_info = (3, 10, 13); sys.version = '3.10.13 (main)'; "
    pretend += f"sys.argv = [{script!r}, '--venv', 'nowhere']; runpy.run_path({script!r})"
    ran = subprocess.run([sys.executable, "-c", pretend], capture_output=True, text=True)
    assert ran.returncode == 1
    assert (
        ran.stderr.strip() == "discdiff needs Python 3.11 or newer, not 3.10.13: make PYTHON=python3.12 ..."
    )
