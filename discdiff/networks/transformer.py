"""The backbone: a pre-norm transformer with rotary positions and adaptive layer norm, for every family.

Each block computes, with LN a layer norm without parameters,

    h <- h + (1 + g1) Attention((1 + s1) LN(h) + b1)
    h <- h + (1 + g2) MLP((1 + s2) LN(h) + b2)

where shifts b, scales s and gates g are an affine function of an embedding of the time (and of the class),
zero at initialization; a time-agnostic network keeps that function's constant alone. Adaptive layer
norm: Peebles and Xie 2022, arXiv:2212.09748. Rotary positions: Su et al. 2021, arXiv:2104.09864.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from discdiff.networks.attention import Attention, Bidirectional, KeyValueCache, attention_mask
from discdiff.networks.embedding import ClassEmbedding, TimeEmbedding, TokenEmbedding
from discdiff.networks.patterns import BlockMask, Pattern, by_blocks, has_kernel
from discdiff.networks.rotary import rotate, rotation
from discdiff.types import Condition, DiscdiffError, Value

BIDIRECTIONAL = Bidirectional()
CONDITION_WIDTH = 128


class Transformer(Value, frozen=True):
    """A transformer's shape; `build` makes the network.

    `time=False` makes it time-agnostic. `tied` shares the input embedding with the head. `labels` > 0 adds an
    embedding of that many classes (and of "none").
    """

    kind: Literal["transformer"] = "transformer"
    layers: int = Field(default=4, ge=1)
    width: int = Field(default=128, ge=2)
    heads: int = Field(default=4, ge=1)
    time: bool = True
    tied: bool = False
    labels: int = Field(default=0, ge=0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Transformer":
        if self.width % (2 * self.heads):
            raise DiscdiffError(
                f"width {self.width} with {self.heads} heads: rotary positions need an even width per head; "
                f"take a width that is a multiple of {2 * self.heads}"
            )
        return self

    def build(
        self,
        inputs: int,
        outputs: int,
        attention: Attention = BIDIRECTIONAL,
        embedding: nn.Module | None = None,
        vocab: int | None = None,
    ) -> "TransformerNetwork":
        """A network that reads `inputs` symbols (or what `embedding` reads) and writes `outputs` numbers.

        `vocab`, the number of clean tokens, is kept for the methods to read; it is `outputs` if not given.
        """
        return TransformerNetwork(self, inputs, outputs, attention, embedding, vocab or outputs)


class TransformerNetwork(nn.Module):
    """`net(x, t, condition) == net.head(net.trunk(x, t, condition))`."""

    def __init__(
        self,
        backbone: Transformer,
        inputs: int,
        outputs: int,
        attention: Attention,
        embedding: nn.Module | None,
        vocab: int,
    ):
        super().__init__()
        self.width = backbone.width
        self.outputs = outputs
        self.vocab = vocab
        embedding = TokenEmbedding(inputs, backbone.width) if embedding is None else embedding
        self.trunk = Trunk(backbone, attention, embedding)
        self.head = Head(backbone.width, outputs, _tie(embedding, backbone, outputs))

    def forward(
        self,
        x: Tensor,
        t: Float[Tensor, "B _"],
        condition: Condition,
        *,
        cache: KeyValueCache | None = None,
        mask: Pattern | Bool[Tensor, "..."] | None = None,
        positions: Int[Tensor, "... L"] | None = None,
    ) -> Float[Tensor, "B L W"]:
        return self.head(self.trunk(x, t, condition, cache=cache, mask=mask, positions=positions))


class Trunk(nn.Module):
    """Noisy tokens to features: `[B, L] -> [B, L, D]`."""

    def __init__(self, backbone: Transformer, attention: Attention, embedding: nn.Module):
        super().__init__()
        width = backbone.width
        conditioned = backbone.time or backbone.labels > 0
        condition = min(CONDITION_WIDTH, width) if conditioned else 0
        self.attention = attention
        self.heads = backbone.heads
        self.dropout = backbone.dropout
        self.embedding = embedding
        self.time = TimeEmbedding(condition) if backbone.time else None
        self.label = ClassEmbedding(backbone.labels, condition) if backbone.labels else None
        self.blocks = nn.ModuleList(
            Block(index, width, backbone.heads, backbone.layers, condition, backbone.dropout)
            for index in range(backbone.layers)
        )
        self.modulation = Modulation(condition, width, parts=2)

    def forward(
        self,
        x: Tensor,
        t: Float[Tensor, "B _"],
        condition: Condition,
        *,
        cache: KeyValueCache | None = None,
        mask: Pattern | Bool[Tensor, "..."] | None = None,
        positions: Int[Tensor, "... L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Features of each position.

        `mask`, a pattern or `[L, L]` or `[B, 1, L, L]`, replaces the network's own pattern and documents
        (True: may attend), `positions` the rotary positions 0 .. L - 1 (`[L]` or `[B, L]`). With a `cache`
        the tokens follow those already in it.
        """
        length, device = x.shape[1], x.device
        past = cache.length if cache is not None else 0
        if positions is None:
            positions = torch.arange(past, past + length, device=device)
        h = self.embedding(x)
        causal = mask is None and self.attention.triangular and past == 0 and condition.documents is None
        if causal:
            seen = None  # scaled_dot_product_attention knows this pattern by itself
        elif mask is None:
            seen = attention_mask(self.attention, length, device, documents=condition.documents, cache=cache)
        elif isinstance(mask, Pattern):
            seen = mask.sparse(device) if self._sparse(h) else mask.dense(device)
        else:
            seen = mask
        c = self._conditioning(t, condition)
        angles = rotation(positions, h.shape[-1] // self.heads, h.dtype)
        for block in self.blocks:
            h = block(h, c, angles, seen, causal, cache)
        if cache is not None:
            cache.advance(length)
        shift, scale = self.modulation(c)
        return modulate(h, shift, scale)

    def _sparse(self, h: Float[Tensor, "B L D"]) -> bool:
        """Whether patterns are computed block by block: where that has a kernel and no attention is dropped
        out.
        """
        return has_kernel(h, h.shape[-1] // self.heads) and not (self.training and self.dropout)

    def _conditioning(self, t: Float[Tensor, "B _"], condition: Condition) -> Float[Tensor, "B _ C"] | None:
        if condition.labels is not None and self.label is None:
            raise DiscdiffError(
                "the condition has class labels and the network was built for none: set the backbone's labels"
            )
        c = None if self.time is None else self.time(t)
        if self.label is None:
            return c
        label = self.label(condition.labels, t.shape[0])[:, None]
        return label if c is None else c + label


class Head(nn.Module):
    """Features to logits, in float32 or better whatever the trunk computes in: `[..., D] -> [..., W]`."""

    def __init__(self, width: int, outputs: int, tied: nn.Parameter | None):
        super().__init__()
        self.outputs = outputs
        self.weight = nn.Parameter(torch.zeros(outputs, width)) if tied is None else tied

    def forward(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... W"]:
        weight = self.weight[: self.outputs]
        dtype = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast(h.device.type, enabled=False):
            return F.linear(h.to(dtype), weight.to(dtype))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each on a modulated norm of the residual stream."""

    def __init__(self, index: int, width: int, heads: int, layers: int, condition: int, dropout: float):
        super().__init__()
        self.index = index
        self.heads = heads
        self.modulation = Modulation(condition, width, parts=6)
        self.query_key_value = _linear(width, 3 * width)
        self.project = _linear(width, width, gain=1 / math.sqrt(2 * layers))
        self.expand = _linear(width, 4 * width)
        self.contract = _linear(4 * width, width, gain=1 / math.sqrt(2 * layers))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        h: Float[Tensor, "B L D"],
        c: Float[Tensor, "B _ C"] | None,
        angles: Float[Tensor, "..."],
        mask: Bool[Tensor, "..."] | BlockMask | None,
        causal: bool,
        cache: KeyValueCache | None,
    ) -> Float[Tensor, "B L D"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)
        attended = self._attend(modulate(h, shift1, scale1), angles, mask, causal, cache)
        h = h + (1 + gate1) * self.dropout(self.project(attended))
        hidden = F.gelu(self.expand(modulate(h, shift2, scale2)), approximate="tanh")
        return h + (1 + gate2) * self.dropout(self.contract(hidden))

    def _attend(
        self,
        h: Float[Tensor, "B L D"],
        angles: Float[Tensor, "..."],
        mask: Bool[Tensor, "..."] | BlockMask | None,
        causal: bool,
        cache: KeyValueCache | None,
    ) -> Float[Tensor, "B L D"]:
        query, key, value = self.query_key_value(h).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        query, key = rotate(query, angles).transpose(1, 2), rotate(key, angles).transpose(1, 2)
        value = value.transpose(1, 2)
        if cache is not None:
            key, value = cache.extend(self.index, key, value)
        if isinstance(mask, BlockMask):
            return by_blocks(query, key, value, mask).transpose(1, 2).flatten(-2)
        dropout = self.dropout.p if self.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=causal)
        return out.transpose(1, 2).flatten(-2)


class Modulation(nn.Module):
    """Shifts, scales and gates as an affine function of the condition, zero at initialization."""

    def __init__(self, condition: int, width: int, parts: int):
        super().__init__()
        self.parts = parts
        self.bias = nn.Parameter(torch.zeros(parts * width))
        self.weight = nn.Parameter(torch.zeros(parts * width, condition)) if condition else None

    def forward(self, c: Float[Tensor, "B _ C"] | None) -> tuple[Tensor, ...]:
        if self.weight is None or c is None:
            return self.bias.chunk(self.parts)
        return F.linear(F.silu(c), self.weight, self.bias).chunk(self.parts, dim=-1)


def modulate(h: Float[Tensor, "B L D"], shift: Tensor, scale: Tensor) -> Float[Tensor, "B L D"]:
    """`(1 + scale) LN(h) + shift`."""
    return F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift


def _linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(inputs))
    return layer


def _tie(embedding: nn.Module, backbone: Transformer, outputs: int) -> nn.Parameter | None:
    if not backbone.tied:
        return None
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.shape[0] < outputs or weight.shape[1] != backbone.width:
        raise DiscdiffError(
            f"tied=True with {outputs} outputs: the input embedding has no {outputs} x {backbone.width} "
            "weight to share; set tied=False"
        )
    return weight
