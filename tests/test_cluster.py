"""A private cluster: started by the first stage that asks, from any thread, there for all that follow."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import free_ports

from discdiff.types import DiscdiffError
from pipelines.failure import cause, sentence
from pipelines.placement import Cluster, Placement

PROGRAM = """
import sys
from discdiff.types import DiscdiffError, Value
from pipelines.artifacts import Samples
from pipelines.failure import StageError
from pipelines.placement import Placement
from pipelines.runner import Runner
from pipelines.stage import stage
from pipelines.work import Work

class Spec(Value, frozen=True):
    number: int

def square(number, remote):
    remote.log({"number": number}, step=number)
    remote.progress(1, 2)
    remote.flush()
    if number == 7:
        raise DiscdiffError("seven was given; take another.")
    if number == 8:
        raise RuntimeError("eight")
    return number**2

class Picky:
    def __init__(self):
        raise DiscdiffError("never.")
    def ask(self):
        pass

@stage(version=1)
def squared(spec: Spec, work: Work) -> Samples:
    work.ray()
    import ray
    if spec.number == 9:
        ray.get(ray.remote(Picky).remote().ask.remote())
    found = ray.get(ray.remote(square).options(num_cpus=0.1).remote(spec.number, work.remote()))
    return Samples(key=work.key, uri=work.uri, count=found, length=1)

if __name__ == "__main__":
    assert "ray" not in sys.modules
    with Runner(sys.argv[1], placement=Placement(workers=1, concurrent=2, store=100 << 20)) as run:
        print([each.count for each in run.all(squared, [Spec(number=2), Spec(number=3)])])
        made = run(squared, Spec(number=4))
        print(made.count, open(f"{made.uri}/metrics.jsonl").read())
        for number in (7, 8, 9):
            try:
                run(squared, Spec(number=number))
            except (DiscdiffError, StageError) as error:
                print(type(error).__name__, error)
    with Runner(sys.argv[1]) as run:
        import ray
        run(squared, Spec(number=4))
        assert not ray.is_initialized(), "a cached stage starts nothing"
"""


def test_stages_share_a_cluster_that_threads_start(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    done = subprocess.run(
        [sys.executable, program, str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": os.getcwd()},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "[4, 9]" in done.stdout
    assert '16 {"step": 4' in done.stdout
    assert "DiscdiffError seven was given; take another." in done.stdout
    assert "StageError squared failed: RuntimeError: eight\n" in done.stdout
    assert "DiscdiffError never." in done.stdout
    assert done.stderr == ""


def test_a_port_in_use_is_a_mistake() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(DiscdiffError, match=f"port {port} .*give another"):
            Cluster(Placement(dashboard=port)).start()


def test_an_address_where_nobody_is_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    with pytest.raises(DiscdiffError, match="no Ray cluster answers"):
        Cluster(Placement(address=f"127.0.0.1:{port}")).start()


def test_the_first_cause_is_found_and_told_in_one_line() -> None:
    inner = RuntimeError("\x1b[36mtwo\x1b[0m\nlines")
    assert cause(RuntimeError(RuntimeError(inner))) is inner
    assert sentence(inner) == "RuntimeError: two lines"
