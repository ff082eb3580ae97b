"""What estimators refuse, what they leave alone, and programs that are no sum over data."""

from __future__ import annotations

import math

import numpy as np
import oracles
import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pyrovae.inference import ImportanceSampling, PriorMonteCarlo, ProgramError, log_weights
from pyrovae.inference.particles import plan_particles
from pyrovae.models import VAE, LinearGaussianVAE
from pyrovae.models.likelihoods import Bernoulli
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import DiagonalNormal
from pyrovae.models.priors import StandardNormal

ESTIMATORS = [ImportanceSampling, PriorMonteCarlo]


# --- manners -------------------------------------------------------------------------------------


def test_global_state_is_left_as_it_was():
    case = programs.function_style()
    case.model(*case.args)
    linear = LinearGaussianVAE(data_dim=3, latent_dim=1)
    pyro.enable_validation(True)
    before = torch.get_rng_state(), set(pyro.get_param_store().keys()), torch.get_default_dtype()
    ImportanceSampling(num_samples=10)(case.model, case.guide, *case.args)
    ImportanceSampling(num_samples=10)(linear.model, linear.guide, torch.zeros(2, 3))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == set(pyro.get_param_store().keys())
    assert before[2] == torch.get_default_dtype()
    assert torch.distributions.Distribution._validate_args
    assert pyro.poutine.util.is_validation_enabled()
    assert torch.is_grad_enabled()
    assert not pyro.settings.get("module_local_params")


def test_without_a_seed_two_calls_differ():
    torch.manual_seed(0)
    linear = LinearGaussianVAE(4, 2).double()
    guide = linear.guide
    x = linear.sample(3)
    one, two = (ImportanceSampling(50, seed=None)(linear.model, guide, x) for _ in range(2))
    assert not torch.equal(one.log_evidence, two.log_evidence)
    again = ImportanceSampling(50, seed=one.provenance["seed"])(linear.model, guide, x)
    assert torch.equal(one.log_evidence, again.log_evidence)


class Decoder(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), layer)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


class Functional(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm1d(4), "BatchNorm1d in training mode"),
        (nn.Dropout(0.5), "Dropout in training mode"),
        (Functional(), "something random stands outside"),
    ],
)
def test_layers_that_spoil_a_score_are_refused(layer, message):
    program = Decoder(layer)
    with pytest.raises(ProgramError, match=message):
        ImportanceSampling(num_samples=5)(program.model, program.guide, torch.randn(6, 4))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.full((3, 4), math.nan), ValueError, "x must be finite, but datum 0 holds nan"),
        (torch.zeros(0, 4), ValueError, "at least one datum"),
        (torch.zeros(3, 4).double(), ProgramError, "float64"),
        (torch.zeros(3, 5), ProgramError, "fails on data of"),
        (np.zeros((3, 4)), TypeError, "x must be a tensor"),
    ],
)
def test_bad_data_are_refused(x, error, message):
    linear = LinearGaussianVAE(data_dim=4, latent_dim=2)
    with pytest.raises(error, match=message):
        ImportanceSampling(num_samples=5)(linear.model, linear.guide, x)


def test_grey_pixels_under_a_bernoulli_are_refused_wherever_they_are():
    vae = VAE(StandardNormal(2), DiagonalNormal(MLP(6, 4)), Bernoulli(MLP(2, 6)))
    x = torch.zeros(40, 6)
    x[37, 2] = 0.25
    with pytest.raises(ProgramError, match=r"site 'x' takes values in Boolean.*holds 0\.25"):
        ImportanceSampling(num_samples=5, memory=1000)(vae.model, vae.guide, x)


def test_a_log_probability_that_is_not_a_number_names_its_site():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("bonus", torch.where(z > 2.5, math.nan, z))  # rare: no trial run meets it
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="model site 'bonus' has a log-probability of nan"):
        ImportanceSampling(num_samples=2000)(model, guide, torch.zeros(3))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("settings", [{"num_samples": 0}, {"num_samples": 2.5}, {"memory": 0}])
def test_bad_settings_are_refused_when_they_are_made(estimator, settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be a whole number"):
        estimator(**settings)


@pytest.mark.gpu
def test_scores_on_a_gpu_agree_with_the_cpu():
    torch.manual_seed(0)
    vae = VAE(StandardNormal(5), DiagonalNormal(MLP(20, 10)), Bernoulli(MLP(5, 20)))
    x = torch.bernoulli(torch.rand(10, 20))
    on_cpu = ImportanceSampling(num_samples=2000)(vae.model, vae.guide, x)
    vae.cuda()
    on_gpu = ImportanceSampling(num_samples=2000)(vae.model, vae.guide, x)
    assert on_gpu.provenance["device"].startswith("cuda")
    z = (on_cpu.log_evidence - on_gpu.log_evidence) / (on_cpu.stderr**2 + on_gpu.stderr**2).sqrt()
    assert z.abs().max() < 5
    weights = log_weights(vae.model, vae.guide, x.cuda(), num_particles=3)
    assert weights.log_weight.is_cuda


@pytest.mark.parametrize(
    "shuffling",
    [
        {"shuffle": True},
        {"sampler": SubsetRandomSampler(range(4))},
        {"sampler": WeightedRandomSampler([1.0] * 4, 4)},
    ],
)
def test_a_shuffled_loader_is_refused(shuffling):
    linear = LinearGaussianVAE(data_dim=3, latent_dim=1)
    loader = DataLoader(TensorDataset(torch.zeros(4, 3)), **shuffling)
    with pytest.raises(ValueError, match="x must be a DataLoader with shuffle=False"):
        ImportanceSampling(num_samples=5)(linear.model, linear.guide, loader)


def test_a_model_is_a_program():
    with pytest.raises(TypeError, match="model must be a Pyro program, but is None"):
        PriorMonteCarlo(num_samples=5)(None, None, torch.zeros(4, 3))


@pytest.mark.parametrize("seed", [-1, 1.5, "a"])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ValueError, match="seed must be a whole number"):
        ImportanceSampling(seed=seed)


# --- supports ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("centre", "scale"), [(-0.5, 1.0), (0.5, 2.0)])
def test_draws_outside_the_priors_support_weigh_nothing(seed, centre, scale):
    """torch's unvalidated densities go on outside their support: such draws must not count."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(x.new_ones(())))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + centre, scale))

    x = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    exact = [
        oracles.integrate(lambda z, v=v: -z + oracles.normal_logpdf(v, z), 0.0, 30.0, 200_001)
        for v in x.tolist()
    ]
    estimate = ImportanceSampling(num_samples=20_000, seed=seed)(model, guide, x)
    error = estimate.log_evidence - estimate.bias - torch.tensor(exact)
    assert (error / estimate.stderr).abs().max() < 5


def test_a_likelihood_whose_support_depends_on_a_latent_is_scored():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(x.new_ones(())))
            pyro.sample("x", dist.Uniform(torch.zeros_like(z), z), obs=x)

    x = torch.tensor([0.3, 1.0], dtype=torch.float64)
    exact = [
        oracles.integrate(lambda z: -z - np.log(z), v, 40.0, 400_001) for v in x.tolist()
    ]  # p(x) = E_1(x)
    estimate = PriorMonteCarlo(num_samples=50_000)(model, None, x)
    error = estimate.log_evidence - estimate.bias - torch.tensor(exact)
    assert (error / estimate.stderr).abs().max() < 5


# --- what stands outside the plate ---------------------------------------------------------------


def _prior_guide(x, *context):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))


@pytest.mark.parametrize("memory", [None, 2**14])
@pytest.mark.parametrize("size", [399, 400])
def test_a_context_that_all_data_share_may_be_as_long_as_they_are_many(size, memory):
    def model(x, means):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            parts = dist.Normal(means + 0.0 * z.unsqueeze(-1), 1.0)
            flat = dist.Categorical(logits=torch.zeros_like(means))
            pyro.sample("x", dist.MixtureSameFamily(flat, parts), obs=x)

    means = torch.linspace(-10, 10, 400, dtype=torch.float64)
    x = torch.linspace(-10, 10, size, dtype=torch.float64)
    exact = oracles.logsumexp(
        oracles.normal_logpdf(x.numpy()[:, None], means.numpy(), 1.0) - np.log(400), -1
    )
    estimate = ImportanceSampling(num_samples=20, memory=memory)(model, _prior_guide, x, means)
    np.testing.assert_allclose(estimate.log_evidence, exact, atol=1e-9)


@pytest.mark.parametrize("memory", [None, 2**14])
def test_data_coupled_outside_the_plate_are_scored_together(memory):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(x.mean(), 1.0), obs=x)

    x = torch.linspace(-5, 9, 200, dtype=torch.float64)
    estimate = ImportanceSampling(num_samples=20, memory=memory)(model, _prior_guide, x)
    np.testing.assert_allclose(
        estimate.log_evidence, oracles.normal_logpdf(x.numpy(), 2.0), atol=1e-9
    )


def _masked_pair(pixels=3):
    def model(x, observed):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            fn = dist.Normal(z.unsqueeze(-1) + torch.zeros(pixels), 1.0).mask(observed).to_event(1)
            pyro.sample("x", fn, obs=x)

    def guide(x, observed):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return model, guide


@pytest.mark.parametrize("memory", [None, 200_000])
def test_a_context_of_the_data_does_not_ask_for_all_of_them_at_once(memory):
    """The proof that a context may be cut must not take more memory than the cut ones do."""
    size, longest = 3000, 0
    x, observed = torch.randn(size, 3), torch.rand(size, 3) < 0.5
    model, guide = _masked_pair()

    def watched(x, observed):
        nonlocal longest
        longest = max(longest, len(x))
        model(x, observed)

    estimate = ImportanceSampling(num_samples=200, memory=memory)(watched, guide, x, observed)
    assert longest < 1000
    kept = [row[seen] for row, seen in zip(x, observed, strict=True)]
    exact = torch.stack([_shared_mean_evidence(row) for row in kept])
    assert (
        (estimate.log_evidence - estimate.bias - exact).abs() < 6 * estimate.stderr + 1e-6
    ).all()


def _shared_mean_evidence(row):
    """log N(row; 0, I + 1 1'), by the matrix determinant lemma."""
    size = len(row)
    square = row.square().sum() - row.sum() ** 2 / (size + 1)
    return -0.5 * (square + math.log(size + 1) + size * math.log(2 * math.pi))


def test_data_coupled_a_little_in_double_precision_are_scored_together():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
            pyro.sample("x", dist.Normal(z + 1e-5 * x.mean(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    x = torch.randn(50, dtype=torch.float64)
    assert not plan_particles(model, guide, (x,)).sliceable


def test_bytes_are_told_what_they_are():
    vae = VAE(StandardNormal(2), DiagonalNormal(MLP(6, 4)), Bernoulli(MLP(2, 6)))
    x = torch.randint(0, 256, (4, 6), dtype=torch.uint8)
    with pytest.raises(ProgramError, match=r"uint8 .*parameters are float32.*by x / 255"):
        ImportanceSampling(num_samples=5)(vae.model, vae.guide, x)


# --- contexts, structures and masks that a first look at a few data does not show -----------------


def _table_pair():
    """Labels that look up a table which happens to have as many rows as there are data."""

    def model(x, y, table):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + table[y], 1.0), obs=x)

    def guide(x, y, table):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - table[y]) / 2, 0.8))

    return model, guide


@pytest.mark.parametrize("memory", [None, 5000])
@pytest.mark.parametrize(
    "labels", [lambda n: torch.zeros(n), lambda n: torch.arange(n) % 3, lambda n: torch.arange(n)]
)
@pytest.mark.parametrize("size", [2, 3, 10, 300])
def test_a_table_as_long_as_the_data_is_not_cut_though_labels_are(size, labels, memory):
    torch.manual_seed(0)
    y, table = labels(size).long(), 3 * torch.randn(size, dtype=torch.float64)
    x = table[y] + torch.randn(size, dtype=torch.float64)
    exact = dist.Normal(table[y], 2**0.5).log_prob(x)
    estimate = ImportanceSampling(num_samples=500, memory=memory)(*_table_pair(), x, y, table)
    assert ((estimate.log_evidence - exact).abs() < 6 * estimate.stderr + 1e-6).all()


def _ragged_pair(one_batch_dimension):
    """A latent for every step of the longest sequence, masked after each one's own end."""
    torch.manual_seed(1)
    line = nn.Linear(1, 1).double().requires_grad_(False)

    def net(z):
        if one_batch_dimension and z.dim() != 2:
            raise ValueError("one batch dimension")
        return line(z)

    def steps(lengths):
        for step in range(int(lengths.max())):
            with pyro.poutine.mask(mask=lengths > step):
                yield step

    def model(x, lengths):
        with pyro.plate("data", len(x)):
            for step in steps(lengths):
                prior = dist.Normal(torch.zeros(1, dtype=x.dtype), 1.0).to_event(1)
                z = pyro.sample(f"z{step}", prior)
                seen = dist.Normal(net(z), 1.0).to_event(1)
                pyro.sample(f"x{step}", seen, obs=x[:, step : step + 1])

    def guide(x, lengths):
        weight, bias = line.weight.item(), line.bias.item()
        precision = 1 + weight**2
        with pyro.plate("data", len(x)):
            for step in steps(lengths):
                loc = weight * (x[:, step : step + 1] - bias) / precision
                q = dist.Normal(loc, 1.05 / precision**0.5).to_event(1)
                pyro.sample(f"z{step}", q)

    def exact(x, lengths):
        marginal = dist.Normal(line.bias.item(), (1 + line.weight.item() ** 2) ** 0.5)
        inside = torch.arange(x.shape[1]) < lengths[:, None]
        return (marginal.log_prob(x) * inside).sum(1)

    return model, guide, exact


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("one_batch_dimension", [False, True])
@pytest.mark.parametrize("begin", [[2, 2, 2, 2], [1, 2, 1, 2]])
def test_latents_that_only_longer_data_have_are_found(estimator, one_batch_dimension, begin):
    model, guide, exact = _ragged_pair(one_batch_dimension)
    lengths = torch.tensor([*begin, *[6, 3] * 10])
    x = 1.5 * torch.randn(len(lengths), 6, dtype=torch.float64)
    estimate = estimator(num_samples=3000)(model, guide, x, lengths)
    error = (estimate.log_evidence - estimate.bias - exact(x, lengths)).abs()
    assert (error < 6 * estimate.stderr).all()
    weights = log_weights(model, guide, x, lengths, num_particles=3)
    assert set(weights.values) == {f"z{step}" for step in range(6)}


@pytest.mark.parametrize(("in_model", "in_guide"), [(True, False), (False, True)])
@pytest.mark.parametrize("first", [0, 100])
def test_a_latent_masked_on_one_side_alone_is_refused(in_model, in_guide, first):
    """Wherever in the data the mask begins to differ."""
    x, mask = torch.randn(150), torch.ones(150, dtype=torch.bool)
    mask[first:] = False

    def sample(masked, fn, mask):
        with pyro.poutine.mask(mask=mask if masked else True):
            return pyro.sample("z", fn)

    def model(x, mask):
        with pyro.plate("data", len(x)):
            z = sample(in_model, dist.Normal(0.0, 1.0), mask)
            with pyro.poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, mask):
        with pyro.plate("data", len(x)):
            sample(in_guide, dist.Normal(x / 2, 1.0), mask)

    with pytest.raises(ProgramError, match="site 'z' is masked otherwise in the model"):
        ImportanceSampling(num_samples=10)(model, guide, x, mask)
