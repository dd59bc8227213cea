"""Who may attend to whom: patterns over sequence indices, document borders, and the cache of the past."""

from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from discdiff.types import DiscdiffError, Value


class Bidirectional(Value, frozen=True):
    """Every position attends to every other."""

    kind: Literal["bidirectional"] = "bidirectional"
    triangular: ClassVar[bool] = False

    def sees_all(self, past: int, length: int) -> bool:
        """Whether so many positions attend to one another and to all those past."""
        return True

    def mask(self, query: Int[Tensor, "Q"], key: Int[Tensor, "S"]) -> None:
        return None


class Causal(Value, frozen=True):
    """Position i attends to positions up to and including i."""

    kind: Literal["causal"] = "causal"
    triangular: ClassVar[bool] = True

    def sees_all(self, past: int, length: int) -> bool:
        """Whether so many positions attend to one another and to all those past."""
        return length == 1

    def mask(self, query: Int[Tensor, "Q"], key: Int[Tensor, "S"]) -> Bool[Tensor, "Q S"]:
        return key[None, :] <= query[:, None]


class BlockCausal(Value, frozen=True):
    """Blocks of `size` positions: a position attends to its own block and to all blocks before it."""

    kind: Literal["block_causal"] = "block_causal"
    size: int = Field(ge=1)
    triangular: ClassVar[bool] = False

    def sees_all(self, past: int, length: int) -> bool:
        """Whether so many positions attend to one another and to all those past."""
        return past // self.size == (past + length - 1) // self.size

    def mask(self, query: Int[Tensor, "Q"], key: Int[Tensor, "S"]) -> Bool[Tensor, "Q S"]:
        return key[None, :] // self.size <= query[:, None] // self.size


Attention = Annotated[Bidirectional | Causal | BlockCausal, Field(discriminator="kind")]


class KeyValueCache:
    """Keys and values of the positions already seen, for at most `capacity` positions; inference only.

    Each call of a trunk with the cache appends its positions. `truncate(length)` forgets the newest ones, so
    that a block may be tried again until it is final.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._documents: Tensor | None = None

    def extend(
        self, layer: int, key: Float[Tensor, "B H Q E"], value: Float[Tensor, "B H Q E"]
    ) -> tuple[Float[Tensor, "B H S E"], Float[Tensor, "B H S E"]]:
        """Write new keys and values of a layer behind the old ones and return all of them."""
        stop = self.length + key.shape[2]
        if stop > self.capacity:
            raise DiscdiffError(
                f"the cache holds {self.capacity} positions and {stop} are needed: "
                "make it with a larger capacity"
            )
        if layer not in self._layers:
            shape = (*key.shape[:2], self.capacity, key.shape[3])
            self._layers[layer] = (key.new_empty(shape), value.new_empty(shape))
        keys, values = self._layers[layer]
        keys[:, :, self.length : stop] = key
        values[:, :, self.length : stop] = value
        return keys[:, :, :stop], values[:, :, :stop]

    def extend_documents(self, documents: Int[Tensor, "B Q"]) -> Int[Tensor, "B S"]:
        """Document ids of all positions seen, the new ones last."""
        if self._documents is None:
            self._documents = documents.new_empty(documents.shape[0], self.capacity)
        stop = self.length + documents.shape[1]
        self._documents[:, self.length : stop] = documents
        return self._documents[:, :stop]

    def advance(self, positions: int) -> None:
        self.length += positions

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        if not 0 <= length <= self.length:
            raise DiscdiffError(f"the cache holds {self.length} positions and can't be cut to {length}")
        self.length = length


def attention_mask(
    attention: Attention,
    length: int,
    device: torch.device,
    *,
    documents: Int[Tensor, "B Q"] | None = None,
    cache: KeyValueCache | None = None,
) -> Bool[Tensor, "..."] | None:
    """The boolean mask of a pattern within documents, None where all may attend to all.

    Shape `[Q, S]`, or `[B, 1, Q, S]` with documents, where S counts the cached positions too.
    """
    past = cache.length if cache is not None else 0
    key = torch.arange(past + length, device=device)
    mask = None if attention.sees_all(past, length) else attention.mask(key[past:], key)
    if documents is None:
        return mask
    seen = documents if cache is None else cache.extend_documents(documents)
    same = documents[:, None, :, None] == seen[:, None, None, :]
    return same if mask is None else mask & same
