"""Models whose gradient does not tell how their density changes are refused by name."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from target_toys import ALL, Pair, named, points, target_of

from pyrovae.inference import ProgramError
from pyrovae.inference.differentiability import check_differentiable

pytestmark = pytest.mark.usefixtures("one_thread")


def _through(step):
    def model(x):
        with pyro.plate("data", len(x)):
            good = pyro.sample("good", dist.Normal(x.new_zeros(()), 1.0))
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(good + 3 * step(z), 0.5), obs=x)

    return model


@pytest.mark.parametrize(
    "step",
    [
        lambda z: z.detach(),
        lambda z: torch.as_tensor(z.detach().numpy()),
        torch.round,
        lambda z: (z > 0).double(),
    ],
    ids=["detached", "numpy", "rounded", "compared"],
)
def test_a_latent_without_a_gradient_of_the_likelihood_is_refused_by_name(step):
    """Its prior has a gradient all the same, so that a gradient of zero is not what to look for."""
    x = torch.linspace(-2, 2, 6, dtype=torch.float64)
    target = target_of(Pair(_through(step), None, (x,), np.zeros(6), None), guided=False)
    with pytest.raises(ProgramError, match="latent 'z'"):
        check_differentiable(target, points(target, 8))


@pytest.mark.parametrize("case", **named(ALL))
def test_what_has_a_gradient_is_let_through(case):
    target = target_of(case())
    for scale in (0.01, 1.0, 5.0):
        check_differentiable(target, points(target, 8, scale))
