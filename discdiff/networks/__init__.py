"""Networks: what turns noisy tokens, a time and a condition into numbers per position."""

from discdiff.networks.attention import Attention, Bidirectional, BlockCausal, Causal, KeyValueCache
from discdiff.networks.transformer import Transformer, TransformerNetwork

AnyBackbone = Transformer

__all__ = [
    "AnyBackbone",
    "Attention",
    "Bidirectional",
    "BlockCausal",
    "Causal",
    "KeyValueCache",
    "Transformer",
    "TransformerNetwork",
]
