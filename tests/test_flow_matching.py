"""Discrete flow matching: its own bound is one, of the velocity's process; with a mask source it is the
shared one.
"""

import pytest
import torch

from discdiff.methods import FlowMatching
from discdiff.methods.flow_matching import GeneralizedKl
from discdiff.noise import Noise
from discdiff.oracle import Law, exact_bound
from discdiff.processes import Mask, Uniform
from discdiff.schedules import Cosine, Linear, Power
from discdiff.types import canvas

LAW = Law.random(3, 2, seed=1)
NLL = -LAW.log_prob(LAW.sequences)


class Velocity(FlowMatching, frozen=True):
    """The same family measured by the velocity's own integrand."""

    def density(self, raw, x0, x_t, t):
        return self.velocity_density(raw, x0, x_t, t)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("schedule", [Linear(), Power(power=3), Cosine()], ids=repr)
def test_with_a_mask_source_the_velocity_s_bound_is_the_shared_one(schedule):
    own, shared = (each(process=Mask(schedule=schedule)) for each in (Velocity, FlowMatching))
    torch.testing.assert_close(
        exact_bound(own, LAW.network(own), LAW.sequences[:3], nodes=40),
        exact_bound(shared, LAW.network(shared), LAW.sequences[:3], nodes=40),
        rtol=0,
        atol=1e-7,
    )


def test_with_a_uniform_source_it_is_a_bound_of_its_own():
    """Time reversal is tight for the exact network; the velocity's conditional path is not the path's
    reversal.
    """
    own, shared = Velocity(process=Uniform()), FlowMatching(process=Uniform())
    tight = exact_bound(shared, LAW.network(shared), LAW.sequences, nodes=40)
    loose = exact_bound(own, LAW.network(own), LAW.sequences, nodes=40)
    torch.testing.assert_close(tight, NLL, rtol=0, atol=1e-6)
    assert (LAW.log_p.exp() * (loose - NLL)).sum() > 1e-3


def test_the_drawn_bound_of_the_velocity_is_unbiased():
    method = FlowMatching(process=Uniform())
    wrong = Law.random(3, 2, seed=7).network(method)
    exact = exact_bound(Velocity(process=Uniform()), wrong, LAW.sequences[4:5], nodes=40)
    drawn = method.velocity_bound(wrong, canvas(LAW.sequences[4:5].expand(4000, 2)), Noise(3))
    assert abs(drawn.mean() - exact[0]) < 4 * drawn.std() / 4000**0.5


def test_the_generalized_kl_is_learned_and_vanishes_for_a_certain_and_right_answer():
    method = FlowMatching(process=Uniform(), learns=GeneralizedKl())
    x0 = torch.tensor([0, 1, 2])
    raw = torch.nn.functional.one_hot(x0, 3).double() * 60
    t = torch.full((3,), 0.4)
    value = method.objective(raw, x0, x0, t)
    torch.testing.assert_close(value, torch.zeros(3), rtol=0, atol=1e-12)
    assert bool((method.objective(raw, x0.roll(1), x0, t) > 1).all())
