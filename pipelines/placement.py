"""Where a body runs: how wide, on which cluster; nothing of it counts in a key.

`Placement` is the wish, `Cluster` the Ray that fulfils it, joined or started when the first body asks and
never for a cached stage.
"""

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pydantic import Field

from discdiff.types import DiscdiffError, Value

GIGABYTE = 1 << 30


class Placement(Value, frozen=True):
    """How many workers a stage may use, what each holds, and how many stages run at a time."""

    workers: int = Field(default=2, ge=1)
    cpus: float = Field(default=1, gt=0)
    """CPUs of one worker."""
    gpus: float = Field(default=0, ge=0)
    """GPUs of one worker."""
    concurrent: int = Field(default=1, ge=1)
    """Stages of one kind that run at the same time."""
    address: str | None = None
    """A running cluster; by default the one that RAY_ADDRESS names, else a private one on this machine."""
    dashboard: int | None = Field(default=None, ge=1, le=65535)
    """Port for the dashboard of a private cluster; none by default."""
    store: int = Field(default=GIGABYTE // 4, ge=80 << 20)
    """Bytes of shared object memory of a private cluster."""


class Cluster:
    """The one Ray cluster of this process, started on demand."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self._lock = threading.Lock()
        # A private cluster dies with the thread that started it, so that is one which lasts as long.
        self._host = ThreadPoolExecutor(1, "cluster")
        self._closers: list[Callable[[], None]] = []
        self._mine = False

    def start(self) -> None:
        """Join the cluster, or start a private one; call it before anything of Ray.

        Raises DiscdiffError where the named cluster can't be reached.
        """
        with self._lock:
            address = self.placement.address or os.environ.get("RAY_ADDRESS")
            if address is None:
                _prepare_private()
            import ray

            if ray.is_initialized():
                return
            connect = self._start_private if address is None else partial(self._join, address)
            self._host.submit(connect).result()
            self._mine = True

    def on_close(self, closer: Callable[[], None]) -> None:
        """Have something done before the cluster is left."""
        self._closers.append(closer)

    def close(self) -> None:
        """Leave the cluster, and stop it if it was started here."""
        if not self._mine:
            return
        import ray

        while self._closers:
            self._closers.pop()()
        ray.shutdown()
        self._host.shutdown()
        self._mine = False

    def _start_private(self) -> None:
        import ray

        place = self.placement
        wanted = place.workers * place.cpus * place.concurrent
        ray.init(
            num_cpus=max(os.cpu_count() or 1, round(wanted + 0.5)),
            object_store_memory=place.store,
            include_dashboard=place.dashboard is not None,
            dashboard_port=_free(place.dashboard),
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )

    def _join(self, address: str) -> None:
        import ray

        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError) as error:
            raise DiscdiffError(
                f"no Ray cluster answers at {address!r}; start one with `ray start --head`, "
                "or give no address and unset RAY_ADDRESS to have a private one started."
            ) from error


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself would wait for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _prepare_private() -> None:
    """What Ray reads when it is imported: a token of this process's own, so that nobody else gets in."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _free(port: int | None) -> int | None:
    """The port, if nobody listens on it. Raises DiscdiffError otherwise."""
    if port is not None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise DiscdiffError(
                    f"port {port} can't be had for the dashboard ({error.strerror}); give another, or none."
                ) from error
    return port
