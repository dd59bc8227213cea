"""How a worker on another machine logs to its stage: by one mailbox actor that the driver empties."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipelines.placement import Cluster

if TYPE_CHECKING:
    from pipelines.stage import Work

Message = tuple[str, tuple[Any, ...]]
EVERY = 0.5
LIMIT = 200_000


class Remote:
    """A stage's `log` and `progress` for a worker; picklable. Call `flush` before the worker ends."""

    def __init__(self, mailbox: Any, key: str) -> None:
        self._mailbox = mailbox
        self._key = key
        self._buffer: list[Message] = []
        self._sent = 0.0

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._put(("log", (dict(metrics), step)))

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        self._put(("progress", (done, total, note)))

    def flush(self) -> None:
        """Deliver what is buffered and wait until it has arrived."""
        import ray

        if self._buffer:
            ray.get(self._mailbox.deliver.remote(self._key, self._buffer))
            self._buffer = []
        self._sent = time.monotonic()

    def _put(self, message: Message) -> None:
        self._buffer.append(message)
        if time.monotonic() - self._sent > EVERY:
            self.flush()


class Mailbox:
    """The actor's body: keeps messages until the driver collects them."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, Message]] = []

    def deliver(self, key: str, messages: list[Message]) -> None:
        if len(self._messages) + len(messages) <= LIMIT:
            self._messages += [(key, each) for each in messages]

    def collect(self) -> list[tuple[str, Message]]:
        found, self._messages = self._messages, []
        return found


class Post:
    """The driver's side: hands each message to the stage whose key it carries."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        self._works: dict[str, "Work"] = {}
        self._mailbox: Any = None
        self._stop = threading.Event()

    def remote(self, work: "Work") -> Remote:
        """What a worker of this stage logs to."""
        self._cluster.start()
        with self._lock:
            self._works[work.key] = work
            if self._mailbox is None:
                self._open()
        return Remote(self._mailbox, work.key)

    def finish(self, key: str) -> None:
        """Hand over what is left for a stage that ends."""
        if key in self._works:
            self._collect()
            with self._lock:
                self._works.pop(key)

    def _open(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here)  # pyright: ignore
        self._mailbox = actor.remote()
        thread = threading.Thread(target=self._poll, daemon=True)
        thread.start()

        def close() -> None:
            self._stop.set()
            thread.join()
            self._mailbox = None

        self._cluster.on_close(close)

    def _poll(self) -> None:
        while not self._stop.wait(EVERY):
            self._collect()

    def _collect(self) -> None:
        import ray

        with self._lock:
            mailbox = self._mailbox
        if mailbox is None:
            return
        for key, (name, arguments) in ray.get(mailbox.collect.remote()):
            work = self._works.get(key)
            if work is not None:
                deliver: Callable[..., None] = getattr(work, name)
                deliver(*arguments)
