"""The cache of unchanged inputs: a row whose tokens are as they were is not evaluated again.

With mask noise there is nothing to cache: whether a step unmasks is decided before the network is asked, so
it is only ever asked of rows that change.
"""

from typing import Literal

from jaxtyping import Int64
from torch import Tensor

from discdiff.types import DiscdiffError, Network, Value


class Unchanged(Value, frozen=True):
    """Keep the features of each row until its tokens change: exact, for networks that don't read the time."""

    kind: Literal["unchanged"] = "unchanged"

    def check(self, net: Network) -> None:
        """Raises DiscdiffError for a network whose input changes with every step."""
        if not timeless(net):
            raise DiscdiffError(
                "this network reads the time, so no input of it repeats and nothing can be kept: "
                "build the backbone with time=False, or leave the cache out"
            )


def timeless(net: Network) -> bool:
    """Whether a network's answer does not depend on the time: its trunk says so by `time = None`."""
    return getattr(net.trunk, "time", net) is None


def changed(before: Int64[Tensor, "B L"], after: Int64[Tensor, "B L"]) -> Int64[Tensor, "R"]:
    """The rows that differ. `-> [R]`"""
    return (before != after).any(-1).nonzero()[:, 0]
