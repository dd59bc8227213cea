"""Real parts for the tests, on loopback: a Ray cluster, object stores, a file server, a tracking server.

Each starts when a test first asks for it, has ports and a folder of its own, and is ended by process id when
the session ends. Nothing here imports discdiff, so that its shapes are checked from the first import on.
"""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
HEAVY = {"ray_cluster", "ray_driver", "mlflow_server"}

# Before torch is imported: tiny networks are several times slower on many threads, most of all in company.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray reads these once, when first imported. Whatever cluster a test starts then demands this session's token.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# gcsfs reads this once, when first imported: what kind a bucket is it asks by gRPC, which the emulator lacks.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate-golden", action="store_true", help="write tests/golden anew")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the heavy servers share one process, hence one server of each; the rest run beside them."""
    for item in items:
        if HEAVY & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("ray"))


@dataclass(frozen=True)
class Cluster:
    address: str
    """For `ray.init(address=...)` and `RAY_ADDRESS`."""
    dashboard: str
    """The Job API, for `ray job submit --address` and `JobSubmissionClient`."""
    environment: dict[str, str]
    """Where a child process finds the cluster; the token is in every child's environment already."""


@dataclass(frozen=True)
class ObjectStore:
    endpoint: str
    new_bucket: Callable[[], str]
    """Create an empty bucket and return its URL, `s3://name` or `gs://name`."""


@dataclass(frozen=True)
class Folder:
    path: Path
    url: str


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """A head node of 4 logical CPUs with the dashboard and token authentication, as in `infra/`."""
    # A short path: Ray puts Unix sockets below it, and their names may not pass 107 bytes.
    with tempfile.TemporaryDirectory(prefix="dd-ray-", ignore_cleanup_errors=True) as folder:
        gcs, dashboard, client, agent = free_ports(4)
        environment = {
            "RAY_ADDRESS": f"127.0.0.1:{gcs}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        }
        command = [
            BIN / "ray",
            "start",
            "--head",
            "--block",
            "--num-cpus=4",
            "--object-store-memory=200000000",
        ]
        command += ["--node-ip-address=127.0.0.1", f"--port={gcs}", f"--temp-dir={folder}"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
        importable = {"PYTHONPATH": str(ROOT)}
        with served(
            command, f"http://127.0.0.1:{dashboard}/api/gcs_healthz", importable, Path(folder, "start.log")
        ):
            yield Cluster(environment["RAY_ADDRESS"], environment["RAY_API_SERVER_ADDRESS"], environment)


@pytest.fixture
def ray_driver(ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The test's own process, connected to the cluster as a driver."""
    import ray

    for name, value in ray_cluster.environment.items():
        monkeypatch.setenv(name, value)
    ray.init(address=ray_cluster.address, log_to_driver=False, namespace=uuid.uuid4().hex)
    yield ray_cluster
    ray.shutdown()


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """An S3 server (moto's), found through the standard variables by boto, s3fs, pyarrow and child processes.

    pyarrow reads the endpoint only in `FileSystem.from_uri`, not in `S3FileSystem()`.
    """
    import boto3

    (port,) = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": endpoint,
    }

    def new_bucket() -> str:
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        boto3.client("s3").create_bucket(Bucket=name)
        return f"s3://{name}"

    command = [sys.executable, ROOT / "tests/s3_server.py", str(port)]
    with (
        tempfile.TemporaryDirectory(prefix="dd-s3-") as folder,
        served(command, f"{endpoint}/moto-api/data.json", {}, Path(folder, "moto.log")),
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        yield ObjectStore(endpoint, new_bucket)


@pytest.fixture
def bucket(object_store: ObjectStore) -> str:
    """The URL of an empty bucket, `s3://name`."""
    return object_store.new_bucket()


@pytest.fixture(scope="session")
def google_store() -> Iterator[ObjectStore]:
    """A Google Cloud Storage emulator, found by gcsfs and child processes; it asks for no credentials."""
    import fsspec

    (port,) = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"

    def new_bucket() -> str:
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        fsspec.filesystem("gs").mkdir(name)
        return f"gs://{name}"

    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--quiet", "--in-memory"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with (
        tempfile.TemporaryDirectory(prefix="dd-gs-") as folder,
        served(command, f"{endpoint}/", {}, Path(folder, "emulator.log")),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        yield ObjectStore(endpoint, new_bucket)


@pytest.fixture
def google_bucket(google_store: ObjectStore) -> str:
    """The URL of an empty bucket, `gs://name`."""
    return google_store.new_bucket()


@pytest.fixture
def http_folder(tmp_path: Path) -> Iterator[Folder]:
    """A folder of the test's own, served over HTTP with range requests."""
    root = tmp_path / "served"
    root.mkdir()
    (port,) = free_ports(1)
    script = "from aiohttp import web; import sys; app = web.Application(); "
    script += "app.router.add_static('/', sys.argv[1], show_index=True); "
    script += "web.run_app(app, host='127.0.0.1', port=int(sys.argv[2]), print=None, shutdown_timeout=0.1)"
    command = [sys.executable, "-c", script, root, str(port)]
    with served(command, f"http://127.0.0.1:{port}/", {}, tmp_path / "http.log"):
        yield Folder(root, f"http://127.0.0.1:{port}")


@pytest.fixture(scope="session")
def mlflow_server() -> Iterator[str]:
    """The URI of an MLflow tracking server over SQLite, which also serves artifacts."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="dd-mlflow-", ignore_cleanup_errors=True) as folder:
        command = [BIN / "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
        command += [
            f"--backend-store-uri=sqlite:///{folder}/mlflow.db",
            f"--artifacts-destination={folder}/artifacts",
        ]
        environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with served(command, f"http://127.0.0.1:{port}/health", environment, Path(folder, "server.log")):
            yield f"http://127.0.0.1:{port}"


def free_ports(count: int) -> list[int]:
    """Distinct loopback ports that nobody listens on, all held until the last is found."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


# A program that ends when its parent does, however that ended: an interrupted run leaves no server behind.
TETHERED = [
    sys.executable,
    "-c",
    """
import ctypes, os, signal, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
os.execv(sys.argv[1], sys.argv[1:])
""",
]


@contextmanager
def served(command: list[str | Path], url: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    """Run a server for the length of the block: wait until it answers, then end it and its children by id."""
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [*TETHERED, *command],
            env={**os.environ, **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
        )
    try:
        wait_until_it_answers(process, url, log)
        yield
    finally:
        end(process)


def wait_until_it_answers(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if answers(url):
            return
        time.sleep(0.1)
    pytest.fail(f"{log.stem} did not answer at {url}; its log ends: {log.read_text()[-3000:]}")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as refusal:
        # A server that wants a token is up.
        refusal.close()
        return refusal.code in (401, 403)
    except OSError:
        return False


def end(process: subprocess.Popen[bytes]) -> None:
    family = [psutil.Process(process.pid)] if process.poll() is None else []
    family += [child for parent in family for child in parent.children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.terminate()
    _, alive = psutil.wait_procs(family, timeout=5)
    for survivor in alive:
        survivor.kill()
    process.wait(timeout=10)
