"""Families of discrete generative models, one file each, and the union of all.

A method holds no parameters: it makes a network and says what its output means. `Method` is what every family
offers, `Scored` what those with a likelihood bound offer too.
"""

from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import Field
from torch import Tensor, nn

from discdiff.methods.argmax_flow import ArgmaxFlow
from discdiff.methods.autoencoder import Autoencoder
from discdiff.methods.autoregressive import Autoregressive
from discdiff.methods.block import Block
from discdiff.methods.classifier import Classifier
from discdiff.methods.d3pm import D3pm
from discdiff.methods.diffusion import Diffusion
from discdiff.methods.discrete_flow import DiscreteFlow
from discdiff.methods.duo import Duo
from discdiff.methods.duo_distilled import DuoDistilled
from discdiff.methods.embedding import Embedding
from discdiff.methods.flow_matching import FlowMatching
from discdiff.methods.genmd4 import GenMd4
from discdiff.methods.gidd import Gidd
from discdiff.methods.latent import Latent
from discdiff.methods.md4 import Md4
from discdiff.methods.mdlm import Mdlm
from discdiff.methods.multinomial import Multinomial
from discdiff.methods.sedd import Sedd
from discdiff.methods.udlm import Udlm
from discdiff.networks import AnyBackbone
from discdiff.noise import Noise
from discdiff.samplers import AnySampler
from discdiff.samplers.trace import Observer, nobody
from discdiff.types import Canvas, Network

__all__ = [
    "AnyMethod",
    "ArgmaxFlow",
    "Autoencoder",
    "Autoregressive",
    "Block",
    "Classifier",
    "D3pm",
    "Diffusion",
    "DiscreteFlow",
    "Discriminative",
    "Duo",
    "DuoDistilled",
    "Embedding",
    "FlowMatching",
    "Follows",
    "GenMd4",
    "Gidd",
    "Latent",
    "Md4",
    "Mdlm",
    "Method",
    "Multinomial",
    "Scored",
    "Sedd",
    "Staged",
    "Udlm",
]


@runtime_checkable
class Method(Protocol):
    """What every family offers. Losses are nats per row, summed over its free positions."""

    @property
    def kind(self) -> str: ...
    def network(self, backbone: AnyBackbone, vocab: int) -> nn.Module: ...
    def loss(self, net: Network, canvas: Canvas, noise: Noise) -> Tensor: ...
    def sample(
        self, net: Network, canvas: Canvas, sampler: Any, noise: Noise, observe: Observer = nobody
    ) -> Tensor: ...
    def default_sampler(self, steps: int) -> AnySampler: ...


@runtime_checkable
class Scored(Method, Protocol):
    """A family with an upper bound on -log p; `bound` is an unbiased estimate of it, never a surrogate."""

    def bound(self, net: Network, canvas: Canvas, noise: Noise) -> Tensor: ...


@runtime_checkable
class Discriminative(Method, Protocol):
    """A family that learns the labels of rows, not their text: labels are never hidden from it.

    `units` is what a row's loss is out of, in place of its free positions. `measures` is what validation
    reports, in place of a bound: for each name a sum per row, and what that is out of.
    """

    def units(self, canvas: Canvas) -> Tensor: ...
    def measures(self, net: Any, canvas: Canvas, noise: Noise) -> dict[str, tuple[Tensor, Tensor]]: ...


@runtime_checkable
class Follows(Protocol):
    """A method whose training starts from what another has learned: distillation, diffusion of latents.

    `begin` puts into a new network what it takes from a trained network of `first`.
    """

    @property
    def first(self) -> Any: ...
    def begin(self, net: Any, trained: Any) -> None: ...


@runtime_checkable
class Staged(Method, Protocol):
    """A family whose training has stages: a curriculum, rounds of distillation.

    `stage` is what a step minimizes at a share of all steps in [0, 1). Where a stage begins, the first apart,
    `enter` is called on the network with its averaged weights, and may change what is not trained.
    """

    def stage(self, progress: float) -> Method: ...
    def enter(self, net: Any) -> None: ...


AnyMethod = Annotated[
    Autoregressive
    | Mdlm
    | Md4
    | GenMd4
    | Udlm
    | Duo
    | DuoDistilled
    | Gidd
    | Sedd
    | D3pm
    | Multinomial
    | FlowMatching
    | Block
    | DiscreteFlow
    | ArgmaxFlow
    | Embedding
    | Autoencoder
    | Latent
    | Classifier,
    Field(discriminator="kind"),
]
Block.model_rebuild(_types_namespace={"AnyMethod": AnyMethod})
DiscreteFlow.model_rebuild(_types_namespace={"AnyMethod": AnyMethod})
DuoDistilled.model_rebuild(_types_namespace={"AnyMethod": AnyMethod})
