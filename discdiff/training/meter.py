"""What is logged about steps, summed on the device and read from it only when a log is due.

Memory is the most that any rank has used so far, in GiB: on a GPU what its tensors took, on a CPU all that
the process had, the program itself included. `data_wait` is the share of time that steps waited for their
rows, `data_wait_per_step` the same in seconds a step; both are of the rank that waited most.
"""

import resource
import sys
import time

import torch
from torch import Tensor

from discdiff.training.parallel import World
from discdiff.types import DiscdiffError

NEVER = 2**62


class Diverged(DiscdiffError):  # noqa: N818 - it reads as what happened
    """The loss or its gradient stopped being a number."""


class Meter:
    """Sums since the last `read`: nats, what they are out of, tokens, gradient norms, waiting; the first step
    that went wrong.
    """

    def __init__(self, world: World):
        self.world = world
        self._reset()

    def _reset(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=self.world.device)
        self._norms = torch.zeros((), dtype=torch.float64, device=self.world.device)
        self._bad = torch.full((), NEVER, dtype=torch.int64, device=self.world.device)
        self._steps = 0
        self._waited = 0.0
        self._since = time.perf_counter()

    def wait(self, seconds: float) -> None:
        """Time that the step waited for its data."""
        self._waited += seconds

    def add(self, step: int, nats: Tensor, units: Tensor, tokens: Tensor, norm: Tensor) -> None:
        """One step of this rank: its nats, what they are out of, its free tokens, the norm of the global
        gradient.
        """
        self._sums += torch.stack([nats.double(), units.double(), tokens.double()])
        self._norms += norm.double()
        finite = torch.isfinite(nats) & torch.isfinite(norm)
        self._bad = torch.where(finite, self._bad, self._bad.clamp(max=step))
        self._steps += 1

    def pause(self, seconds: float) -> None:
        """Time that does not count as training: a validation, a checkpoint."""
        self._since += seconds

    def read(self, learning_rate: float) -> dict[str, float]:
        """The means since the last time, equal on every rank; all ranks call it. Raises `Diverged`."""
        seconds = time.perf_counter() - self._since
        sums = self.world.sum(self._sums)
        here = [seconds, self._waited, -self._bad.item(), peak_memory(self.world.device)]
        most = self.world.max(torch.tensor(here, dtype=torch.float64, device=self.world.device))
        seconds, waited, bad, memory = most.tolist()
        nats, units, tokens = sums.tolist()
        norm, steps = self._norms.item() / self._steps, self._steps
        self._reset()
        if -bad < NEVER:
            raise Diverged(
                f"the loss or its gradient is not finite at step {int(-bad)}: training stopped; "
                "lower the learning rate, lengthen the warmup or clip harder, and start again"
            )
        return {
            "loss": nats / max(units, 1.0),
            "tokens_per_second": tokens / seconds,
            "seconds_per_step": seconds / steps,
            "peak_memory": memory,
            "gradient_norm": norm,
            "learning_rate": learning_rate,
            "data_wait": waited / seconds,
            "data_wait_per_step": waited / steps,
        }


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has used, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
