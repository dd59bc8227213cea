"""Layers of a discrete flow: bijections of V^L whose maps are affine modulo V at each position.

A layer takes base tokens u to tokens x by x_i = (mu_i + sigma_i u_i) mod V, where mu_i and sigma_i are the
argmax of what a transformer says of

    positions that the layer leaves as they are             bipartite: both directions are one evaluation
    x_1 .. x_(i-1), or x_(i+1) .. x_L read from the end     autoregressive: x from u is sequential

Bipartite layers that move the positions with floor(i / 1), floor(i / 2), floor(i / 4), ... even, in this
order on the way to the base, let each position depend on all those that have not moved before it. Tran et
al. 2019, arXiv:1905.10347.
"""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn

from discdiff.networks.attention import Attention, Bidirectional, Causal
from discdiff.networks.conditioner import ask, ask_in_turn, flip, starts
from discdiff.networks.modular import (
    AnyTransform,
    LocationScale,
    one_hot_argmax,
    reciprocals,
    subtract_and_divide,
)
from discdiff.networks.transformer import Transformer
from discdiff.types import Condition, Value


class ModularLayer(nn.Module):
    """A conditioner over V tokens and one more symbol, V, and the units it chooses from."""

    reciprocal: Tensor
    units: Tensor

    def __init__(self, backbone: Transformer, vocab: int, transform: AnyTransform, attention: Attention):
        super().__init__()
        units = transform.units(vocab)
        self.vocab = vocab
        self.register_buffer("units", units, persistent=False)
        self.register_buffer("reciprocal", reciprocals(units, vocab), persistent=False)
        self.net = backbone.build(
            inputs=vocab + 1, outputs=vocab + len(units), attention=attention, vocab=vocab
        )

    def relax(
        self, x: Float[Tensor, "B L V"], condition: Condition, temperature: float
    ) -> Float[Tensor, "B L V"]:
        """Toward the base on one-hot vectors, with straight-through gradients. `[B, L, V] -> [B, L, V]`"""
        raw = ask(self.net, self._context(F.pad(x, (0, 1)), condition), condition)
        location, scale = (one_hot_argmax(part, temperature) for part in self._parts(raw))
        return self._keep(x, subtract_and_divide(x, location, scale, self.reciprocal))

    @torch.no_grad()
    def to_base(self, x: Int64[Tensor, "B L"], condition: Condition) -> Int64[Tensor, "B L"]:
        """u from x, at all positions at once. `[B, L] -> [B, L]`"""
        location, choice = self._choose(ask(self.net, self._context(x, condition), condition))
        return self._keep(x, self.reciprocal[choice] * (x - location) % self.vocab)

    def _parts(self, raw: Tensor) -> tuple[Tensor, ...]:
        return raw.split([self.vocab, len(self.units)], dim=-1)

    def _choose(self, raw: Tensor) -> list[Tensor]:
        return [part.argmax(-1) for part in self._parts(raw)]

    def _multiply_and_add(self, u: Tensor, raw: Tensor) -> Tensor:
        location, choice = self._choose(raw)
        return (location + self.units[choice] * u) % self.vocab

    def _context(self, x: Tensor, condition: Condition) -> Tensor:
        """What the conditioner reads: ids, or one-hot vectors over V + 1 symbols."""
        raise NotImplementedError

    def _keep(self, x: Tensor, moved: Tensor) -> Tensor:
        """The moved tokens, and those of x where the layer moves none."""
        return moved

    def from_base(self, u: Tensor, condition: Condition, free: Tensor, known: Tensor) -> Int64[Tensor, "B L"]:
        raise NotImplementedError


class BipartiteLayer(ModularLayer):
    """Moves the positions with floor(i / stride) even, given the others."""

    def __init__(self, backbone: Transformer, vocab: int, transform: AnyTransform, stride: int):
        super().__init__(backbone, vocab, transform, Bidirectional())
        self.stride = stride

    def from_base(
        self,
        u: Int64[Tensor, "B L"],
        condition: Condition,
        free: Bool[Tensor, "B L"],
        known: Int64[Tensor, "B L"],
    ) -> Int64[Tensor, "B L"]:
        """x from u, in one evaluation. `[B, L] -> [B, L]`"""
        raw = ask(self.net, self._context(u, condition), condition)
        return torch.where(free, self._keep(u, self._multiply_and_add(u, raw)), known)

    def _context(self, x: Tensor, condition: Condition) -> Tensor:
        return _write(x, moves(x.shape[1], self.stride, x.device), self.vocab)

    def _keep(self, x: Tensor, moved: Tensor) -> Tensor:
        where = moves(x.shape[1], self.stride, x.device)
        return torch.where(where if x.ndim == 2 else where[:, None], moved, x)


class AutoregressiveLayer(ModularLayer):
    """Moves each position given those before it."""

    def __init__(self, backbone: Transformer, vocab: int, transform: AnyTransform):
        super().__init__(backbone, vocab, transform, Causal())

    def from_base(
        self,
        u: Int64[Tensor, "B L"],
        condition: Condition,
        free: Bool[Tensor, "B L"],
        known: Int64[Tensor, "B L"],
    ) -> Int64[Tensor, "B L"]:
        """x from u, one position after the other; `known` where not free. `[B, L] -> [B, L]`"""
        x = known.clone()

        def advance(raw: Tensor, i: int) -> Tensor:
            x[:, i] = torch.where(free[:, i], self._multiply_and_add(u[:, i], raw), known[:, i])
            return x[:, i]

        begin = torch.full_like(u[:, :1], self.vocab)
        ask_in_turn(self.net, begin, u.shape[1], condition, advance)
        return x

    def _context(self, x: Tensor, condition: Condition) -> Tensor:
        return begin_with(x, self.vocab, condition)


class FlippedLayer(nn.Module):
    """A layer on the sequence read from its end."""

    def __init__(self, layer: AutoregressiveLayer):
        super().__init__()
        self.layer = layer

    def relax(self, x: Tensor, condition: Condition, temperature: float) -> Tensor:
        return self.layer.relax(x.flip(1), flip(condition), temperature).flip(1)

    def to_base(self, x: Tensor, condition: Condition) -> Tensor:
        return self.layer.to_base(x.flip(1), flip(condition)).flip(1)

    def from_base(self, u: Tensor, condition: Condition, free: Tensor, known: Tensor) -> Tensor:
        return self.layer.from_base(u.flip(1), flip(condition), free.flip(1), known.flip(1)).flip(1)


class Bipartite(Value, frozen=True):
    """Positions with floor(i / stride) even move given the others."""

    kind: Literal["bipartite"] = "bipartite"
    stride: int = Field(default=1, ge=1)
    transform: AnyTransform = LocationScale()
    sequential: ClassVar[bool] = False
    rightward: ClassVar[bool] = False

    def build(self, backbone: Transformer, vocab: int) -> BipartiteLayer:
        return BipartiteLayer(backbone, vocab, self.transform, self.stride)


class Rightward(Value, frozen=True):
    """Each position moves given all before it."""

    kind: Literal["rightward"] = "rightward"
    transform: AnyTransform = LocationScale()
    sequential: ClassVar[bool] = True
    rightward: ClassVar[bool] = True

    def build(self, backbone: Transformer, vocab: int) -> AutoregressiveLayer:
        return AutoregressiveLayer(backbone, vocab, self.transform)


class Leftward(Value, frozen=True):
    """Each position moves given all after it."""

    kind: Literal["leftward"] = "leftward"
    transform: AnyTransform = LocationScale()
    sequential: ClassVar[bool] = True
    rightward: ClassVar[bool] = False

    def build(self, backbone: Transformer, vocab: int) -> FlippedLayer:
        return FlippedLayer(AutoregressiveLayer(backbone, vocab, self.transform))


AnyModularLayer = Annotated[Bipartite | Rightward | Leftward, Field(discriminator="kind")]


Layer = BipartiteLayer | AutoregressiveLayer | FlippedLayer


def moves(length: int, stride: int, device: torch.device) -> Bool[Tensor, "L"]:
    """Where a bipartite layer moves."""
    return torch.arange(length, device=device) // stride % 2 == 0


def begin_with(x: Tensor, symbol: int, condition: Condition) -> Tensor:
    """Shift ids `[B, L]` or one-hot vectors `[B, L, K]` by one position and begin documents with a symbol."""
    return _write(x.roll(1, dims=1), starts(condition, x.shape[1], x.device), symbol)


def _write(x: Tensor, where: Bool[Tensor, "*B L"], symbol: int) -> Tensor:
    """Put a symbol at some positions of ids `[B, L]` or one-hot vectors `[B, L, K]`."""
    if x.ndim == 2:
        return torch.where(where, symbol, x)
    one_hot = (torch.arange(x.shape[-1], device=x.device) == symbol).to(x)
    return torch.where(where[..., None], one_hot, x)
