"""Layers of a continuous flow on sequences of latent vectors: affine maps z = (v - m) exp(-s) of each number.

m and s are what a transformer says of

    the positions that the layer leaves as they are      PositionCoupling: RealNVP over the sequence
    the numbers that it leaves as they are               ChannelCoupling: RealNVP inside each position
    v_1 .. v_(i-1)                                       RightwardAffine: the masked autoregressive flow

(Dinh et al. 2016, arXiv:1605.08803; Papamakarios et al. 2017, arXiv:1705.07057). log |dz/dv| is the sum of
-s, and s stays within (-3, 3). Conditioners of whole positions read the token that the latent decodes to
beside the latent itself: it is constant on each token's region, so inside a region all is smooth.
"""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from discdiff.networks.argmax import AnyLift, soft_clamp
from discdiff.networks.attention import Attention, Bidirectional, Causal
from discdiff.networks.conditioner import ask, ask_in_turn, starts
from discdiff.networks.discrete_layers import moves
from discdiff.networks.embedding import TokenEmbedding
from discdiff.networks.transformer import Transformer
from discdiff.types import Condition, Value

PERIOD = 16
GAIN = 16.0


class LatentEmbedding(nn.Module):
    """Latents, and the tokens they decode to, to vectors; the last number marks what is hidden.
    `[B, L, E + 1] -> [B, L, D]`
    """

    def __init__(self, lift: AnyLift, vocab: int, width: int):
        super().__init__()
        self.lift = lift
        self.vocab = vocab
        self.token = TokenEmbedding(vocab + 1, width)
        self.latent = _small(lift.size(vocab), width)

    def forward(self, x: Float[Tensor, "B L E1"]) -> Float[Tensor, "B L D"]:
        v, hidden = x[..., :-1], x[..., -1] > 0
        tokens = torch.where(hidden, self.vocab, self.lift.tokens(v, self.vocab))
        return self.token(tokens) + self.latent(v)


class AffineLayer(nn.Module):
    """A conditioner with two numbers for each latent number: m and s."""

    def __init__(self, backbone: Transformer, size: int, attention: Attention, embedding: nn.Module):
        super().__init__()
        self.net = backbone.build(size, 2 * size, attention=attention, embedding=embedding)

    def to_base(
        self, v: Float[Tensor, "B L E"], condition: Condition
    ) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B L"]]:
        """z from v at all positions at once, and log |dz/dv|. `[B, L, E] -> [B, L, E], [B, L]`"""
        location, log_scale = self._numbers(ask(self.net, self._context(v, condition), condition))
        return (v - location) * (-log_scale).exp(), -log_scale.sum(-1)

    def from_base(
        self,
        z: Float[Tensor, "B L E"],
        condition: Condition,
        free: Bool[Tensor, "B L"],
        known: Float[Tensor, "B L E"],
    ) -> Float[Tensor, "B L E"]:
        """v from z; `known` where not free. `[B, L, E] -> [B, L, E]`"""
        location, log_scale = self._numbers(ask(self.net, self._context(z, condition), condition))
        return torch.where(free[..., None], location + log_scale.exp() * z, known)

    def _context(self, v: Tensor, condition: Condition) -> Tensor:
        """What the conditioner reads. `[B, L, E] -> [B, L, E + 1]` or `[B, L, E]`"""
        raise NotImplementedError

    def _numbers(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """m and s, both 0 where the layer moves nothing."""
        location, log_scale = raw.chunk(2, dim=-1)
        return location, soft_clamp(log_scale)


class PositionLayer(AffineLayer):
    """Moves the positions with floor(i / stride) even, given the others."""

    def __init__(self, backbone: Transformer, vocab: int, lift: AnyLift, stride: int):
        embedding = LatentEmbedding(lift, vocab, backbone.width)
        super().__init__(backbone, lift.size(vocab), Bidirectional(), embedding)
        self.stride = stride

    def _context(self, v: Tensor, condition: Condition) -> Tensor:
        hidden = moves(v.shape[1], self.stride, v.device)[:, None].expand(*v.shape[:2], 1)
        return torch.cat([torch.where(hidden, 0, v), hidden.to(v)], dim=-1)

    def _numbers(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        moved = moves(raw.shape[1], self.stride, raw.device)[:, None]
        location, log_scale = super()._numbers(raw)
        return location * moved, log_scale * moved


class ChannelLayer(AffineLayer):
    """Moves every second number of each position, given the others."""

    moved: Tensor

    def __init__(self, backbone: Transformer, size: int, attention: Attention, first: int):
        super().__init__(backbone, size, attention, _small(size, backbone.width, bias=True))
        self.register_buffer("moved", torch.arange(size) % 2 == first, persistent=False)

    def _context(self, v: Tensor, condition: Condition) -> Tensor:
        return torch.where(self.moved, 0, v)

    def _numbers(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        location, log_scale = super()._numbers(raw)
        return location * self.moved, log_scale * self.moved


class RightwardLayer(AffineLayer):
    """Moves each position given those before it."""

    def __init__(self, backbone: Transformer, vocab: int, lift: AnyLift):
        embedding = LatentEmbedding(lift, vocab, backbone.width)
        super().__init__(backbone, lift.size(vocab), Causal(), embedding)

    def from_base(
        self,
        z: Float[Tensor, "B L E"],
        condition: Condition,
        free: Bool[Tensor, "B L"],
        known: Float[Tensor, "B L E"],
    ) -> Float[Tensor, "B L E"]:
        """v from z, one position after the other; `known` where not free. `[B, L, E] -> [B, L, E]`"""
        v = known.clone()

        def advance(raw: Tensor, i: int) -> Tensor:
            location, log_scale = self._numbers(raw)
            v[:, i] = torch.where(free[:, i, None], location + log_scale.exp() * z[:, i], known[:, i])
            return F.pad(v[:, i], (0, 1))

        ask_in_turn(self.net, self._context(z[:, :1], Condition()), z.shape[1], condition, advance)
        return v

    def _context(self, v: Tensor, condition: Condition) -> Tensor:
        first = starts(condition, v.shape[1], v.device)[..., None].expand(*v.shape[:2], 1)
        return torch.cat([torch.where(first, 0, v.roll(1, dims=1)), first.to(v)], dim=-1)


class Elementwise(nn.Module):
    """The last layer of every flow: an affine map of each number, the same for all sequences.

    Its parameters repeat every 16 positions: what couplings leave as it is gets its unconditional law here.
    """

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(PERIOD, 2 * size))

    def to_base(
        self, v: Float[Tensor, "B L E"], condition: Condition
    ) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B L"]]:
        location, log_scale = self._numbers(v.shape[1])
        return (v - location) * (-log_scale).exp(), -log_scale.sum(-1).expand(v.shape[:2])

    def from_base(
        self,
        z: Float[Tensor, "B L E"],
        condition: Condition,
        free: Bool[Tensor, "B L"],
        known: Float[Tensor, "B L E"],
    ) -> Float[Tensor, "B L E"]:
        location, log_scale = self._numbers(z.shape[1])
        return torch.where(free[..., None], location + log_scale.exp() * z, known)

    def _numbers(self, length: int) -> tuple[Tensor, Tensor]:
        position = torch.arange(length, device=self.weight.device) % PERIOD
        location, log_scale = (GAIN * self.weight[position]).chunk(2, dim=-1)
        return location, soft_clamp(log_scale)


class PositionCoupling(Value, frozen=True):
    """Positions with floor(i / stride) even move given the others."""

    kind: Literal["position_coupling"] = "position_coupling"
    stride: int = Field(default=1, ge=1)
    sequential: ClassVar[bool] = False
    rightward: ClassVar[bool] = False

    def build(self, backbone: Transformer, vocab: int, lift: AnyLift) -> PositionLayer:
        return PositionLayer(backbone, vocab, lift, self.stride)


class ChannelCoupling(Value, frozen=True):
    """The even (`first` = 0) or odd (1) numbers of each position move given the others."""

    kind: Literal["channel_coupling"] = "channel_coupling"
    first: Literal[0, 1] = 0
    attention: Attention = Bidirectional()
    sequential: ClassVar[bool] = False

    @property
    def rightward(self) -> bool:
        return isinstance(self.attention, Causal)

    def build(self, backbone: Transformer, vocab: int, lift: AnyLift) -> ChannelLayer:
        return ChannelLayer(backbone, lift.size(vocab), self.attention, self.first)


class RightwardAffine(Value, frozen=True):
    """Each position moves given all before it."""

    kind: Literal["rightward_affine"] = "rightward_affine"
    sequential: ClassVar[bool] = True
    rightward: ClassVar[bool] = True

    def build(self, backbone: Transformer, vocab: int, lift: AnyLift) -> RightwardLayer:
        return RightwardLayer(backbone, vocab, lift)


AnyAffineLayer = Annotated[PositionCoupling | ChannelCoupling | RightwardAffine, Field(discriminator="kind")]


def _small(inputs: int, outputs: int, *, bias: bool = False) -> nn.Linear:
    """A linear map that starts with a tenth of its inputs' size."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=0.1 / inputs**0.5)
    return layer
