"""Unconstrained coordinates: there and back, their volume, their place in every way."""

from __future__ import annotations

import pyro
import pytest
import torch
from target_toys import (
    ALL,
    WAYS,
    Pair,
    correlation,
    dependent_bounds,
    dirichlet_multinomial,
    mask_and_plates,
    named,
    points,
    target_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", **named(ALL))
def test_coordinates_of_values_are_the_coordinates(case, way):
    target = target_of(case(), way)
    u = points(target, 5)
    again = target.coordinates(target.values(u))
    if case is mask_and_plates:  # fresh numbers where it is masked
        assert not torch.equal(again[:, 1, 2], u[:, 1, 2])
        again[:, 1, 2] = u[:, 1, 2]
    torch.testing.assert_close(again, u, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", **named(ALL))
def test_values_lie_inside_the_support(case):
    pair = case()
    target = target_of(pair)
    values = target.values(points(target, 50, scale=2.0))
    if case is dependent_bounds:
        assert ((values["b"] > 0) & (values["b"] < values["a"])).all()
        assert ((values["a"] > 0.5) & (values["a"] < 2)).all()
    elif case is dirichlet_multinomial:
        torch.testing.assert_close(values["z"].sum(-1), torch.ones(50, 2).double())
    elif case is correlation:
        assert torch.distributions.constraints.corr_cholesky.check(values["z"]).all()
    else:
        assert (values["z"] > 0).all()


@pytest.mark.parametrize("case", **named([c for c in ALL if c is not mask_and_plates]))
def test_the_volume_is_the_jacobians(case):
    pair = case()
    args = tuple(arg[:1] for arg in pair.args)
    target = target_of(Pair(pair.model, pair.guide, args, pair.exact[:1], pair.free))

    def constrained(u):
        return pair.free(target.values(u.reshape(1, 1, -1)))

    for u in points(target, 4):
        jacobian = torch.autograd.functional.jacobian(constrained, u.flatten())
        # log |det| of the map alone: the densities' difference must not hold anything else
        prior = target.log_densities(u[None], "prior")["prior"].item()
        values = target.values(u[None])
        plain = sum(
            term.item() for term in _prior_terms(pair, args, {n: v[0] for n, v in values.items()})
        )
        expected = torch.linalg.slogdet(jacobian.reshape(target.dim, target.dim)).logabsdet
        assert prior - plain == pytest.approx(float(expected), rel=1e-7, abs=1e-7)


def _prior_terms(pair, args, values):
    """The latents' log-probabilities as Pyro has them, of a single datum."""
    program = pyro.poutine.condition(pair.model, data=values)
    trace = pyro.poutine.trace(program).get_trace(*args)
    return [trace.nodes[n]["fn"].log_prob(v).sum() for n, v in values.items()]


@pytest.mark.parametrize("case", **named(ALL))
def test_all_ways_give_the_same_densities_and_values(case):
    pair = case()
    targets = [target_of(pair, way) for way in WAYS]
    u = points(targets[0], 6)
    first, *others = [
        target.log_densities(u, "joint", "prior", "guide") | target.values(u) for target in targets
    ]
    for other in others:
        assert other.keys() == first.keys()
        for name, value in first.items():
            torch.testing.assert_close(other[name], value, rtol=1e-10, atol=1e-10)
