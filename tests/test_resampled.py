"""The resampled prior against quadrature: density, draws, gradients, and its normaliser's error."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import oracles
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

from pyrovae.models import load, save
from pyrovae.models.distributions.resampled import Resampled
from pyrovae.models.nets import MLP
from pyrovae.models.priors import GaussianMixture, LearnedNormal, ResampledPrior, StandardNormal

pytestmark = pytest.mark.usefixtures("one_thread")

Z = 2
FIVE_SIGMA = 2 * stats.norm.sf(5)
NODES, LOG_VOLUME = oracles.grid(Z, -8.0, 8.0, 161)


def net(shift=0.0, size=2.0):
    """Logits that vary by some ``size`` about ``shift``."""
    torch.manual_seed(4)
    one = MLP(Z, 1, hidden=(6,)).double()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.normal_()
        one.layers[-1].weight.mul_(size)
        one.layers[-1].bias.fill_(shift)
    return one


def resampled(shift=0.0, size=2.0, **options):
    return ResampledPrior(StandardNormal(Z).double(), net(shift, size), **options).eval()


def acceptance(prior, z=NODES):
    """a(z), by numpy's own sigmoid."""
    with torch.no_grad():
        return 1 / (1 + np.exp(-prior.net(torch.as_tensor(z)).squeeze(-1).numpy()))


def normal(z=NODES):
    return np.exp(oracles.normal_logpdf(z).sum(-1))


def chance(prior):
    """Z, by quadrature."""
    return (normal() * acceptance(prior)).sum() * math.exp(LOG_VOLUME)


def by_proposals(prior, z=NODES, of=None):
    """p(z), the chance of each proposal to be the one that is taken written out."""
    a, mean = acceptance(prior, z), chance(prior) if of is None else of
    first = prior.num_proposals - 1
    terms = [(1 - mean) ** t * a for t in range(first)]
    return normal(z) * (sum(terms) + (1 - mean) ** first)


# --- the density ---------------------------------------------------------------------------------


@pytest.mark.parametrize("num_proposals", [2, 3, 50])
@pytest.mark.parametrize("shift", [-4.0, 0.0, 4.0])
def test_log_density_adds_up_which_proposal_is_taken(num_proposals, shift):
    prior = resampled(shift, num_proposals=num_proposals)
    log_chance = torch.tensor(math.log(chance(prior)), dtype=torch.float64)
    one = Resampled(prior.prior(), lambda z: prior.net(z).squeeze(-1), log_chance, num_proposals)
    with torch.no_grad():
        density = one.log_prob(torch.as_tensor(NODES)).exp().numpy()
    np.testing.assert_allclose(density, by_proposals(prior), rtol=1e-10, atol=0)
    assert density.sum() * math.exp(LOG_VOLUME) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("num_proposals", [2, 50])
def test_the_priors_density_is_right_up_to_its_normalisers_error(num_proposals):
    prior = resampled(-2.0, num_proposals=num_proposals)
    with torch.no_grad():
        density = prior().log_prob(torch.as_tensor(NODES)).exp().numpy()
    known = prior.normaliser()
    np.testing.assert_allclose(
        density, by_proposals(prior, of=known.log_value.exp().item()), rtol=1e-10
    )
    off = abs(density.sum() * math.exp(LOG_VOLUME) - 1)
    assert off < 5 * known.stderr
    assert abs(np.log(density / by_proposals(prior))).max() < 5 * known.stderr < 0.2


def test_a_net_that_never_or_always_accepts_leaves_the_proposal():
    z = torch.as_tensor(NODES)
    for shift in (-60.0, 60.0):
        density = resampled(shift, size=0.0)().log_prob(z).exp().detach()
        np.testing.assert_allclose(density, normal(), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [-300.0, -30.0, 0.0, 30.0, 300.0])
@pytest.mark.parametrize("num_proposals", [2, 100, 10**6])
def test_densities_and_gradients_stay_finite(dtype, logit, num_proposals):
    """Where all are alike, whatever is accepted, the density is the proposal's."""
    value = torch.tensor(logit, dtype=dtype, requires_grad=True)
    normal = dist.Normal(torch.zeros(Z, dtype=dtype), 1.0).to_event(1)
    log_z = nn.functional.logsigmoid(value)
    one = Resampled(normal, lambda z: value.expand(z.shape[:-1]), log_z, num_proposals)
    z = torch.randn(5, Z, dtype=dtype, requires_grad=True)
    found = one.log_prob(z)
    torch.testing.assert_close(found, normal.log_prob(z), atol=1e-4, rtol=0)
    for gradient in torch.autograd.grad(found.sum(), [value, z]):
        assert gradient.isfinite().all()


# --- draws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_proposals", "shift"), [(2, -1.0), (4, -3.0), (100, -2.0)])
def test_draws_fall_into_cells_as_often_as_the_density_says(num_proposals, shift):
    prior = resampled(shift, num_proposals=num_proposals)
    z = prior().sample(torch.Size((100_000,))).numpy()
    edges, fine = np.linspace(-4, 4, 9), 12
    width = (edges[1] - edges[0]) / fine
    middle = np.linspace(edges[0] + width / 2, edges[-1] - width / 2, 8 * fine)
    nodes = np.stack(np.meshgrid(middle, middle, indexing="ij"), -1)
    cells = by_proposals(prior, nodes).reshape(8, fine, 8, fine).sum((1, 3)) * width**2
    counts = np.histogram2d(*z.T, bins=[edges, edges])[0]
    rare = cells * len(z) < 30
    expected = np.append(cells[~rare], 1 - cells[~rare].sum()) * len(z)
    found = np.append(counts[~rare], len(z) - counts[~rare].sum())
    assert len(expected) > 20
    assert stats.chisquare(found, expected).pvalue > FIVE_SIGMA
    # it can tell: those of the proposal are others
    plain = np.random.default_rng(0).standard_normal(z.shape)
    other = np.histogram2d(*plain.T, bins=[edges, edges])[0][~rare]
    other = np.append(other, len(z) - other.sum())
    assert stats.chisquare(other, expected).pvalue < FIVE_SIGMA


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_draws_have_the_shape_that_is_asked_for(shape):
    z = resampled()().sample(torch.Size(shape))
    assert z.shape == (*shape, Z)
    assert z.dtype == torch.float64
    assert resampled()().log_prob(z).shape == shape


# --- the normaliser ------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-6.0, -2.0, 0.0, 3.0])
def test_normaliser_is_within_its_error_of_quadrature(shift):
    prior = resampled(shift)
    known = prior.normaliser()
    assert abs(known.log_value - math.log(chance(prior))) < 5 * known.stderr
    assert known.stderr < 0.03


def test_the_normalisers_error_is_as_large_as_it_says():
    exact, errors = math.log(chance(resampled(-1.0))), []
    for seed in range(60):
        known = resampled(-1.0, num_draws=1000, seed=seed).normaliser()
        errors.append(float((known.log_value - exact) / known.stderr))
    total = sum(error**2 for error in errors)
    assert FIVE_SIGMA / 2 < stats.chi2.sf(total, len(errors)) < 1 - FIVE_SIGMA / 2


class Recording(nn.Module):
    """What a net was shown."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = net(), []

    def forward(self, z):
        self.seen.append(z.detach())
        return self.net(z)


@pytest.mark.parametrize("seed", [0, 7])
def test_no_step_of_training_sees_the_draws_that_score(seed):
    """Not even where the training starts from the same seed."""
    prior = ResampledPrior(StandardNormal(Z).double(), Recording(), seed=seed)
    torch.manual_seed(seed)
    for _ in range(3):
        prior()
    first, second, third = prior.net.seen
    assert not torch.equal(first, second)
    trained = torch.cat([first, second, third]).flatten()
    prior.eval()()
    assert len(prior.net.seen[-1]) == prior.num_draws
    assert not torch.isin(prior.net.seen[-1].flatten(), trained).any()


def test_scoring_leaves_the_global_generator_alone():
    """And does not depend on it."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(resampled().normaliser().log_value)
        torch.manual_seed(seed)
        one = resampled()
        before = torch.get_rng_state()
        one().log_prob(torch.zeros(Z, dtype=torch.float64))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*found)


def a_step(prior):
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.1)
    prior().log_prob(torch.ones(Z, dtype=torch.float64)).backward()
    optimizer.step()


def other_parameters(prior):
    state = prior.state_dict()
    prior.load_state_dict({name: value + 0.3 for name, value in state.items()})


def swapped(prior):
    vector = nn.utils.parameters_to_vector(prior.parameters())
    nn.utils.vector_to_parameters(vector + 0.3, prior.parameters())


CHANGES = {
    "optimizer step": a_step,
    "load_state_dict": other_parameters,
    "vector_to_parameters": swapped,
    "to float": lambda prior: prior.to(torch.float32),
    "the proposal": lambda prior: nn.init.constant_(prior.prior.loc, 0.5),
    "number of draws": lambda prior: setattr(prior, "num_draws", 3000),
    "seed": lambda prior: setattr(prior, "seed", 3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_known_of_the_normaliser_follows_the_parameters(change):
    prior = ResampledPrior(LearnedNormal(Z).double(), net()).eval()
    before = prior.normaliser()
    assert prior.normaliser() is before  # computed once
    for _ in range(2):  # also what was found since
        CHANGES[change](prior)
        after = prior.normaliser()
        assert torch.equal(after.log_value, copy.deepcopy(prior).normaliser().log_value)
        assert after.log_value != before.log_value or after.log_value.dtype != torch.float64


def test_a_prior_can_be_made_and_scored_in_inference_mode():
    z = torch.zeros(3, Z, dtype=torch.float64)
    with torch.inference_mode():
        prior = resampled()
        first = prior().log_prob(z)
        prior.net.layers[-1].bias.add_(2.0)
        assert torch.equal(prior.normaliser().log_value, copy.deepcopy(prior).normaliser()[0])
        assert not torch.equal(prior().log_prob(z), first)
    prior = resampled()
    with torch.inference_mode():
        expected = prior().log_prob(z).clone()
    at = z.clone().requires_grad_()
    torch.testing.assert_close(prior().log_prob(at), expected)
    prior().log_prob(at).sum().backward()
    assert at.grad.isfinite().all()


# --- training ------------------------------------------------------------------------------------

PROPOSALS = {"draws that move": LearnedNormal, "draws that do not": lambda z: GaussianMixture(z, 2)}


@pytest.mark.parametrize("kind", PROPOSALS)
def test_in_training_the_gradient_is_that_of_the_normalised_density(kind):
    """Also the part by way of Z, in the net and in the proposal: by quadrature."""
    torch.manual_seed(1)
    proposal = PROPOSALS[kind](Z).double()
    assert proposal().has_rsample == (kind == "draws that move")
    prior = ResampledPrior(proposal, net(-1.0), num_proposals=4, num_training_draws=2000)
    parameters, z = list(prior.parameters()), torch.tensor([[0.5, -1.0]]).double()
    nodes = torch.as_tensor(NODES)
    logit = lambda z: prior.net(z).squeeze(-1)  # noqa: E731
    parts = nn.functional.logsigmoid(logit(nodes)) + proposal().log_prob(nodes)
    whole = Resampled(proposal(), logit, parts.logsumexp(0) + LOG_VOLUME, 4)
    flat = lambda grads: torch.cat([g.flatten() for g in grads]).numpy()  # noqa: E731
    exact = flat(torch.autograd.grad(whole.log_prob(z).sum(), parameters))
    assert prior.training
    found = np.stack(
        [flat(torch.autograd.grad(prior().log_prob(z).sum(), parameters)) for _ in range(100)]
    )
    stderr = found.std(0, ddof=1) / math.sqrt(len(found))
    # log of a mean is off by its variance, some 1 / num_training_draws
    assert (abs(found.mean(0) - exact) < 5 * stderr + 2e-3 * abs(exact) + 1e-12).all()
    assert np.linalg.norm(stderr) < 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    "duplicate",
    [
        lambda prior, path: copy.deepcopy(prior),
        lambda prior, path: pickle.loads(pickle.dumps(prior)),
        lambda prior, path: (save(prior, path), load(path))[1],
    ],
    ids=["copied", "pickled", "loaded"],
)
def test_a_copy_has_the_same_density_and_a_normaliser_of_its_own(duplicate, tmp_path):
    prior = resampled(-1.0, num_proposals=7, num_draws=500, seed=5)
    z, size = torch.randn(4, Z, dtype=torch.float64), len(pickle.dumps(prior))
    expected = prior().log_prob(z)
    assert len(pickle.dumps(prior)) == size  # what is known stays behind
    twin = duplicate(prior, tmp_path / "prior")
    assert torch.equal(twin().log_prob(z), expected)
    nn.init.constant_(twin.net.layers[-1].bias, 3.0)
    assert torch.equal(prior().log_prob(z), expected)
    assert twin.normaliser().log_value > prior.normaliser().log_value + 0.1


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_proposals": 1}, "num_proposals must be at least 2, but is 1"),
        ({"num_draws": 1}, "num_draws must be at least 2, but is 1"),
        ({"num_training_draws": 0}, "num_training_draws must be at least 1, but is 0"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        resampled(**options)


@pytest.mark.parametrize("outputs", [2, 3])
def test_a_net_of_more_logits_than_one_is_refused(outputs):
    prior = ResampledPrior(StandardNormal(Z), nn.Linear(Z, outputs))
    for mode in (True, False):
        with pytest.raises(ValueError, match=rf"net must return one logit .* \(\d+, {outputs}\)"):
            prior.train(mode)()


@pytest.mark.parametrize("value", [torch.zeros(4, 1), torch.zeros(4, 3), torch.tensor(0.0)])
def test_codes_of_another_shape_are_refused(value):
    with pytest.raises(ValueError, match="value"):
        resampled()().log_prob(value.double())


@pytest.mark.parametrize("change", ["fused", "data"])
def test_the_normaliser_follows_what_leaves_no_version(change):
    prior = ResampledPrior(StandardNormal(2), MLP(2, 1, (5,)), num_draws=2**12)
    before = prior.normaliser().log_value
    if change == "data":
        for parameter in prior.parameters():
            parameter.data.add_(0.3)
    else:
        optimizer = torch.optim.Adam(prior.parameters(), lr=0.1, fused=True)
        for _ in range(5):
            optimizer.zero_grad()
            prior().log_prob(torch.ones(4, 2)).mean().backward()
            optimizer.step()
    after = prior.normaliser().log_value
    prior._known = None
    assert after == prior.normaliser().log_value != before
