"""Parts of a study of one's own: prior, model, objective and estimator (see rings.toml)."""

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch

from pyrovae.inference import Estimate, MonteCarloObjective, bounds, gradients, log_weights
from pyrovae.models import VAE, likelihoods, nets, posteriors


class Ring(torch.nn.Module):
    """A prior: ten normals on a circle, whose radius and width are learned."""

    def __init__(self):
        super().__init__()
        angle = torch.arange(10) * (2 * math.pi / 10)
        self.register_buffer("direction", torch.stack((angle.cos(), angle.sin()), -1))
        self.log_scales = torch.nn.Parameter(torch.tensor([0.7, -0.7]))

    def forward(self):
        radius, width = self.log_scales.exp()
        parts = dist.Normal(radius * self.direction, width).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(torch.ones(10)), parts)


def model(x_train, hidden=100):
    posterior = posteriors.DiagonalNormal(nets.MLP(x_train.shape[1], 2 * 2, (hidden,)))
    return VAE(Ring(), posterior, likelihoods.Bernoulli(nets.MLP(2, x_train.shape[1], (hidden,))))


class Nested(bounds.Bound):
    """The mean of L_1, L_2, ..., L_K: a lower bound, since each of them is."""

    def __call__(self, log_weight):
        count = torch.arange(1, len(log_weight) + 1)[:, None]
        return (log_weight.logcumsumexp(0) - count.log()).mean(0)


def objective(num_particles):
    return MonteCarloObjective(Nested(), gradients.Pathwise(), num_particles)


@dataclass(frozen=True)
class Truncated:
    """Weights cut at their mean times sqrt(K) (Ionides, *Truncated importance sampling*, 2008)."""

    num_samples: int = 1000
    seed: int = 0

    def __call__(self, model, guide, x, *context):
        k, _ = self.num_samples, torch.manual_seed(self.seed)
        weights = log_weights(model, guide, x, *context, num_particles=k)
        raw = weights.log_weight.detach().double()
        cut = raw.minimum(raw.logsumexp(0) - math.log(k) / 2)
        ess = (2 * cut.logsumexp(0) - (2 * cut).logsumexp(0)).exp()
        elbo = raw.mean(0), raw.std(0) / k**0.5
        value, error = cut.logsumexp(0) - math.log(k), (1 / ess - 1 / k).clamp(min=0).sqrt()
        return Estimate(value, error, ess, ess * math.nan, "consistent", k, *elbo)
