"""What a network says of a vector under Gaussian noise, z = sqrt(alpha) e + sqrt(beta) eps: one of

    x0        e                                  Diffusion-LM, arXiv:2205.14217
    noise     eps                                DDPM, arXiv:2006.11239
    velocity  sqrt(alpha) eps - sqrt(beta) e     Salimans and Ho 2022, arXiv:2202.00512

Each gives the others in a line. `clean` reads the estimate of e off the raw output; `target` is what the
output should be, of which training takes the squared distance. All is `[..., E]`, times `[...]`.
"""

from typing import Annotated, ClassVar, Literal

from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor

from discdiff.processes.gaussian import VariancePreserving
from discdiff.types import Value


class PredictX0(Value, frozen=True):
    """The output is the clean vector."""

    kind: Literal["x0"] = "x0"
    needs_signal: ClassVar[bool] = False

    def clean(
        self,
        process: VariancePreserving,
        raw: Float[Tensor, "*n E"],
        z: Float[Tensor, "*n E"],
        t: Float64[Tensor, "*m"],
    ) -> Float[Tensor, "*n E"]:
        """The estimate of e."""
        return raw

    def target(
        self,
        process: VariancePreserving,
        e: Float[Tensor, "*n E"],
        eps: Float[Tensor, "*n E"],
        t: Float64[Tensor, "*m"],
    ) -> Float[Tensor, "*n E"]:
        """What the output should be."""
        return e


class PredictNoise(Value, frozen=True):
    """The output is the noise: e = (z - sqrt(beta) eps) / sqrt(alpha), where there is signal left."""

    kind: Literal["noise"] = "noise"
    needs_signal: ClassVar[bool] = True

    def clean(
        self,
        process: VariancePreserving,
        raw: Float[Tensor, "*n E"],
        z: Float[Tensor, "*n E"],
        t: Float64[Tensor, "*m"],
    ) -> Float[Tensor, "*n E"]:
        """The estimate of e."""
        signal, left = process.roots(t, z)
        return (z - left * raw) / signal

    def target(
        self,
        process: VariancePreserving,
        e: Float[Tensor, "*n E"],
        eps: Float[Tensor, "*n E"],
        t: Float64[Tensor, "*m"],
    ) -> Float[Tensor, "*n E"]:
        """What the output should be."""
        return eps


class PredictVelocity(Value, frozen=True):
    """The output is the velocity: e = sqrt(alpha) z - sqrt(beta) v."""

    kind: Literal["velocity"] = "velocity"
    needs_signal: ClassVar[bool] = False

    def clean(
        self,
        process: VariancePreserving,
        raw: Float[Tensor, "*n E"],
        z: Float[Tensor, "*n E"],
        t: Float64[Tensor, "*m"],
    ) -> Float[Tensor, "*n E"]:
        """The estimate of e."""
        signal, left = process.roots(t, z)
        return signal * z - left * raw

    def target(
        self,
        process: VariancePreserving,
        e: Float[Tensor, "*n E"],
        eps: Float[Tensor, "*n E"],
        t: Float64[Tensor, "*m"],
    ) -> Float[Tensor, "*n E"]:
        """What the output should be."""
        signal, left = process.roots(t, e)
        return signal * eps - left * e


AnyPrediction = Annotated[PredictX0 | PredictNoise | PredictVelocity, Field(discriminator="kind")]
