"""A latent that tells nothing about the data is noticed, by name, and no other is."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import nn

from pyrovae.inference import BetaVAE, PosteriorCollapse, fit

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))


class TwoLatents(nn.Module):
    """x depends on ``used`` and not on ``idle``, which the guide still has to fit."""

    def __init__(self):
        super().__init__()
        self.to_x, self.to_used = nn.Linear(2, 3), nn.Linear(3, 2)
        self.idle = nn.Parameter(torch.full((2,), 0.5))
        self.log_scale = nn.Parameter(torch.full((2,), -1.2))

    def model(self, x):
        with pyro.plate("data", len(x)):
            used = pyro.sample("used", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("idle", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.to_x(used), 0.3).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("used", dist.Normal(self.to_used(x), self.log_scale.exp()).to_event(1))
            pyro.sample("idle", dist.Normal(self.idle, 1.0).to_event(1))


def quietly(*args, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error", PosteriorCollapse)
        return fit(*args, progress=False, seed=0, **settings)


def test_the_latent_that_carries_nothing_is_named():
    pair = TwoLatents()
    with pytest.warns(PosteriorCollapse, match=r"after 60 epochs: the latents 'idle' \(0\.0"):
        history = fit(
            pair.model, pair.guide, X, epochs=60, learning_rate=0.03, progress=False, seed=0
        )
    assert set(history.collapsed) == {"idle"}
    assert repr(history).endswith("collapsed: idle)")


def test_one_that_is_still_used_is_not():
    pair = TwoLatents()
    history = quietly(pair.model, pair.guide, X, epochs=1)  # idle is not yet at the prior
    assert history.collapsed == {}


def test_a_weight_on_the_kl_that_drives_it_out_is_noticed():
    pair = TwoLatents()
    with pytest.warns(PosteriorCollapse, match="'used'"):
        fit(
            pair.model,
            pair.guide,
            X,
            objective=BetaVAE(beta=1000.0),
            epochs=150,
            learning_rate=0.05,
            progress=False,
            seed=0,
        )


def test_points_and_summed_out_latents_have_no_rate():
    at = nn.Parameter(torch.zeros(()))

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc + y, 1.0), obs=x)

    def guide(x):
        pyro.sample("loc", dist.Delta(pyro.param("at", lambda: at.detach())))

    pyro.clear_param_store()
    history = quietly(
        model, guide, X[:, 0], epochs=1, objective=TraceEnum_ELBO(max_plate_nesting=1)
    )
    assert history.collapsed == {}
    pyro.clear_param_store()


def test_looking_leaves_random_numbers_alone():
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        pair = TwoLatents()
        quietly(pair.model, pair.guide, X, epochs=1)
        found.append(torch.rand(()))
    torch.manual_seed(3)
    TwoLatents()
    assert found[0] == found[1] == torch.rand(())
