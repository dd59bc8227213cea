"""Discrete consistency distillation: few steps from any uniform-noise diffusion. Sahoo et al. 2025,
arXiv:2506.10892.

A Gaussian latent a x + s ε with ε held fixed goes straight from noise to x, and its argmax is a path of
tokens. The student learns to say at x_t what its teacher says at x_s, a step of 1 / `steps` nearer to data on
the same path,

    KL( w_student(x_t, t) || w_teacher(x_s, s) )      at each free position,      s = t - 1 / steps,

with w the leave-one-out law of the token and the student's law first, which seeks modes. In each of the
`rounds` that share out training, the teacher is the averaged student of the round before, and the step is
twice as long. Seen in tokens, the path jumps once, from a token of noise to x, as corruption by the same
noise at several times does: `corrupt` at s and at t is the pair, and no Gaussian is drawn.

The student is a diffusion of the same noise, head and clock as its teacher: bounds and samplers are those.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from discdiff.methods.diffusion import Diffusion
from discdiff.networks import AnyBackbone
from discdiff.networks.ema import local
from discdiff.noise import Noise
from discdiff.objectives import AnyClock, Continuous, divergence
from discdiff.parameterizations import AnyParameterization, LeaveOneOut
from discdiff.processes import Uniform
from discdiff.types import Canvas, DiscdiffError, Network


class DuoDistilled(Diffusion, frozen=True):
    """The student of a uniform-noise diffusion, trained to be drawn in few steps."""

    kind: Literal["duo_distilled"] = "duo_distilled"
    process: Uniform = Uniform()
    parameterization: AnyParameterization = LeaveOneOut()
    clock: AnyClock = Continuous()
    teacher: "AnyMethod"  # pyright: ignore[reportUndefinedVariable]
    steps: int = Field(default=512, ge=1)
    """Of the first round; each round has half as many as the one before."""
    rounds: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> "DuoDistilled":
        teacher = self.first
        if not isinstance(teacher, Diffusion) or not isinstance(teacher.process, Uniform):
            raise DiscdiffError(
                f"{type(teacher).__name__} can't be distilled along paths of uniform noise: take a teacher "
                "of that noise, as duo, udlm, multinomial, or sedd, d3pm, flow_matching with process uniform"
            )
        for name in ("process", "parameterization", "clock"):
            if getattr(self, name) != getattr(teacher, name):
                raise DiscdiffError(
                    f"the student's {name} is {getattr(self, name)!r} and its teacher's "
                    f"{getattr(teacher, name)!r}: the student is what its teacher is, so set {name} to that"
                )
        if self.steps >> (self.rounds - 1) < 1:
            raise DiscdiffError(
                f"{self.rounds} rounds from {self.steps} steps: steps are halved each round and at least one "
                "is left, so take fewer rounds or more steps"
            )
        return self

    @property
    def first(self) -> Any:
        """The teacher of the first round, whose checkpoint training starts from."""
        return self.teacher

    def network(self, backbone: AnyBackbone, vocab: int) -> nn.Module:
        """The student, its teacher beside it, frozen."""
        net = super().network(backbone, vocab)
        net.teacher = super().network(backbone, vocab).requires_grad_(False)
        return net

    def begin(self, net: Any, trained: Any) -> None:
        """Student and teacher start as the trained network."""
        _copy(_student(trained), _student(net))
        self.enter(net)

    def stage(self, progress: float) -> "DuoDistilled":
        """Each round after the first is distillation in half as many steps."""
        done = int(progress * self.rounds)
        return self.model_copy(update={"steps": self.steps >> done, "rounds": self.rounds - done})

    def enter(self, net: Any) -> None:
        """The student becomes the teacher."""
        _copy(_student(net), dict(net.teacher.named_parameters()))

    def density(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The integrand of the teacher's bound. `[N, W] -> [N]`"""
        return self.first.density(raw, x0, x_t, t)

    def loss(self, net: Network, canvas: Canvas, noise: Noise) -> Float[Tensor, "B"]:
        """The divergence between the ends of a step, summed over free positions. `-> [B]` nats"""
        noise = noise.on(canvas.rows)
        teacher, step = teacher_of(net), 1 / self.steps
        s = noise.time() * (1 - step)
        x_s, x_t = (self.corrupt(canvas, time, net.vocab, noise) for time in (s, s + step))
        with torch.no_grad():
            ahead = teacher.trunk(x_s, s, canvas.condition)
        hidden = net.trunk(x_t, s + step, canvas.condition)

        def nats(hidden: Tensor, ahead: Tensor, x_t: Tensor, x_s: Tensor, s: Tensor) -> Tensor:
            with torch.no_grad():
                taught = self._log_clean(teacher.head(ahead), x_s, s)
            return divergence(self._log_clean(net.head(hidden), x_t, s + step), taught)

        return self.summed(net, nats, canvas.free, hidden, ahead, x_t, x_s, s.expand(canvas.shape))

    def _log_clean(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return self.parameterization.log_clean(self.process, raw, x_t, t)


def teacher_of(net: Network) -> Any:
    """The teacher that a network of `DuoDistilled` has beside it; it drops nothing out."""
    teacher = getattr(net, "teacher", None)
    if not isinstance(teacher, nn.Module):
        raise TypeError("a network of duo_distilled has a teacher beside it; make it by method.network")
    return teacher.eval()


def _student(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in net.named_parameters() if not name.startswith("teacher.")}


@torch.no_grad()
def _copy(known: dict[str, nn.Parameter], into: dict[str, nn.Parameter]) -> None:
    for name, parameter in into.items():
        if name not in known or known[name].shape != parameter.shape:
            raise DiscdiffError(
                f"the network to learn from has another shape, in {name}: give one with the same backbone"
            )
        local(parameter.detach()).copy_(local(known[name].detach()))
