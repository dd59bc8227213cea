"""The loss as a module's forward, which is what data parallelism and sharding wrap."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from discdiff.methods import Method, Scored
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
    """A method's loss on a network: `(canvas, noise) -> [B]` nats, summed over a row's free positions.

    Validation may `measure` by another method that reads the same network; by default it is the same. Labels
    are dropped in training alone.
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
        return self.stage.loss(self._net, drop_labels(canvas, noise, self.label_dropout), noise)

    def bound(self, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """What validation measures: the bound of `measure`, or its loss where it has none."""
        if isinstance(self.measure, Scored):
            return self.measure.bound(self._net, canvas, noise)
        return self.measure.loss(self._net, canvas, noise)

    @property
    def measured(self) -> str:
        """The name of what `bound` returns."""
        return "bound" if isinstance(self.measure, Scored) else "validation_loss"
