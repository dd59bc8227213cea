"""Schedules: derivative, inverse, complement and ends are those of alpha."""

from typing import get_args

import pytest
import torch

from discdiff.schedules import (
    AnySchedule,
    Cosine,
    Geometric,
    Linear,
    LinearRate,
    Polynomial,
    Power,
    SquaredCosine,
    Tabulated,
)

SCHEDULES = [
    Linear(),
    Linear(eps=1e-3),
    Cosine(),
    SquaredCosine(),
    SquaredCosine(offset=0.0),
    Polynomial(power=2.0),
    Polynomial(power=0.5),
    Power(power=1.0),
    Power(power=3.0),
    Geometric(),
    LinearRate(),
    LinearRate(low=2.0, high=1.0),
    Tabulated(values=(1.0, 0.9, 0.4, 0.0)),
]
TIMES = torch.linspace(0.001, 0.999, 301, dtype=torch.float64)


def test_every_schedule_is_in_the_table():
    union = get_args(get_args(AnySchedule)[0])
    assert set(union) == {type(schedule) for schedule in SCHEDULES}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_dalpha_is_the_derivative_of_alpha_and_minus_that_of_beta(schedule):
    t = TIMES.clone().requires_grad_()
    slope = torch.autograd.grad(schedule.alpha(t).sum(), t)[0]
    fall = torch.autograd.grad(schedule.beta(t).sum(), t)[0]
    torch.testing.assert_close(schedule.dalpha(TIMES), slope, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(schedule.dalpha(TIMES), -fall, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_inverse_undoes_alpha(schedule):
    alpha = schedule.alpha(TIMES)
    torch.testing.assert_close(schedule.alpha(schedule.inverse(alpha)), alpha, rtol=1e-10, atol=1e-12)
    inside = (alpha > 1e-6) & (alpha < 1 - 1e-6)
    torch.testing.assert_close(schedule.inverse(alpha)[inside], TIMES[inside], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_alpha_falls_from_end_to_end(schedule):
    t = torch.linspace(0, 1, 500, dtype=torch.float64)
    alpha = schedule.alpha(t)
    assert bool((alpha.diff() < 0).all())
    assert schedule.ends == (alpha[0].item(), alpha[-1].item())
    cut = isinstance(schedule, Geometric | LinearRate) or (isinstance(schedule, Linear) and schedule.eps > 0)
    assert cut or schedule.ends == (1.0, 0.0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_neither_alpha_nor_its_complement_vanishes_inside(schedule):
    t = torch.tensor([2.0**-53, 1e-12, 1 - 1e-12, 1 - 2.0**-53], dtype=torch.float64)
    assert bool((schedule.alpha(t) > 0).all())
    assert bool((schedule.beta(t) > 0).all())
    torch.testing.assert_close(
        schedule.alpha(TIMES) + schedule.beta(TIMES), torch.ones_like(TIMES), rtol=1e-14, atol=0
    )


def test_bad_fields_are_refused():
    with pytest.raises(ValueError, match="low < high"):
        Geometric(low=2.0, high=1.0)
    with pytest.raises(ValueError, match="that fall"):
        Tabulated(values=(1.0, 0.2, 0.3))
    with pytest.raises(ValueError, match="power"):
        Polynomial(power=0.0)
    with pytest.raises(ValueError, match="Extra inputs"):
        Linear(epsilon=0.1)
