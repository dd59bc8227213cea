"""The loss as a module's forward, which is what data parallelism and sharding wrap."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from discdiff.methods import Discriminative, Method, Scored
from discdiff.noise import Noise
from discdiff.training.labels import drop_labels
from discdiff.types import Canvas


@runtime_checkable
class Stream(Protocol):
    """An iterator that works ahead until it is closed."""

    def __next__(self) -> Canvas: ...
    def close(self) -> None: ...


@runtime_checkable
class Rows(Protocol):
    """An endless, randomly accessible stream of rows, as a `Loader` is."""

    rows_per_epoch: int

    def read(self, start: int, count: int) -> Canvas:
        """Rows `start` to `start + count` of the stream."""
        ...

    def stream(self, start: int, count: int, stride: int) -> "Stream":
        """`read(start, count)`, `read(start + stride, count)`, ..., prefetched."""
        ...


class Loss(nn.Module):
    """A method's loss on a network: `(canvas, noise) -> [B]` nats, a sum over a row's free positions or what
    else its `units` are.

    Validation may `measure` by another method that reads the same network; by default it is the same. Labels
    are dropped in training alone, and never where they are what is learned.
    """

    def __init__(
        self,
        method: Method,
        network: nn.Module,
        measure: Method | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__()
        self.label_dropout = label_dropout
        self.method = method
        self.stage = method
        """What the step at hand minimizes."""
        self.measure = measure or method
        self.network = network

    @property
    def _net(self) -> Any:
        """The network as its own method knows it."""
        return self.network

    def forward(self, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        if not isinstance(self.method, Discriminative):
            canvas = drop_labels(canvas, noise, self.label_dropout)
        return self.stage.loss(self._net, canvas, noise)

    def units(self, canvas: Canvas) -> Tensor:
        """What each row's loss is out of: its free positions, or what the method counts. `-> [B]`"""
        if isinstance(self.method, Discriminative):
            return self.method.units(canvas)
        return canvas.free.sum(1)

    def measures(self, canvas: Canvas, noise: Noise) -> dict[str, tuple[Tensor, Tensor]]:
        """What validation reports, by name: a sum for each row, and what it is out of. `-> [B], [B]`

        The bound of `measure`, its loss where it has none, or what else it says of itself.
        """
        if isinstance(self.measure, Discriminative):
            return self.measure.measures(self._net, canvas, noise)
        if isinstance(self.measure, Scored):
            return {"bound": (self.measure.bound(self._net, canvas, noise), canvas.free.sum(1))}
        return {"validation_loss": (self.measure.loss(self._net, canvas, noise), canvas.free.sum(1))}
