r"""Per-datum importance weights of a program pair: what every estimator here is made of.

For a model :math:`p(x_n, z_n)` and a guide :math:`q(z_n \mid x_n)`, both plain Pyro programs,

.. math:: \log w_{kn} = \log p(x_n, z_{kn}) - \log q(z_{kn} \mid x_n), \quad
          z_{kn} \sim q(\cdot \mid x_n), \quad k = 1 \dots K, \; n = 1 \dots N,

so that :math:`\mathbb{E}_q w_{kn} = p(x_n)`. The ELBO is their logarithm's mean, an estimate of
log p(x) the logarithm of their mean. They are unscaled (subsampling and ``poutine.scale`` never
reach them), masked as the program says, in nats and in float64. Objectives take the same weights
with their graph (:mod:`~pyrovae.inference.objectives`); Pyro's own do not pass through here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor

from .particles import ParticlePlan, draw, plan_particles, with_plan
from .programs import (
    Data,
    Program,
    ProgramError,
    check_count,
    num_data,
    run_program,
    sample_sites,
)
from .ways import evaluate


@dataclass(frozen=True)
class Weights:
    r"""Log-densities of K particles for N data, ``(K, N)``, in nats.

    Attributes:
        log_joint: :math:`\log p(x_n, z_{kn})`, enumerated latents summed out.
        log_guide: :math:`\log q(z_{kn} \mid x_n)`. Where the guide draws a latent given an
            enumerated one, the sum over the latter binds both densities together: that share of
            q then stands, with its sign, in ``log_joint``, and only ``log_weight`` has a meaning.
        model_sites: the model's log-probabilities by site, ``(K, N)`` each; the sites that met an
            enumerated latent appear together as "summed out".
        guide_sites: the guide's.
        values: the latents drawn, ``(K, plates, event)``: dimension 0 holds the particles, the
            others stand as the program made them.
    """

    log_joint: Tensor
    log_guide: Tensor
    model_sites: dict[str, Tensor]
    guide_sites: dict[str, Tensor]
    values: dict[str, Tensor]

    @property
    def log_weight(self) -> Tensor:
        """``log_joint - log_guide``, ``(K, N)``."""
        return self.log_joint - self.log_guide


@dataclass(frozen=True)
class Simulation:
    """One draw of latents and observations per datum, by site.

    Attributes:
        latents: what was drawn for the latents.
        observations: and for the observed sites.
        given: what these had observed, in the data that gave the form.
    """

    latents: dict[str, Tensor]
    observations: dict[str, Tensor]
    given: dict[str, Tensor]

    def as_data(self, x: Data) -> Data:
        """The drawn observations in the form of x: each part from the site that observes it.

        Raises:
            ProgramError: a part of x is not what a site observes, as it is.
        """
        parts = x if isinstance(x, tuple) else (x,)
        made = []
        for number, part in enumerate(parts):
            sites = [name for name, given in self.given.items() if _is_that(given, part)]
            if len(sites) != 1:
                whose = f"x[{number}]" if isinstance(x, tuple) else "x"
                found = ", ".join(f"'{name}' {tuple(v.shape)}" for name, v in self.given.items())
                raise ProgramError(
                    "simulated observations are to take the place of x, but "
                    f"{len(sites) or 'no'} site observes {whose} {tuple(part.shape)} as it is; "
                    f"observed are {found}"
                )
            made.append(self.observations[sites[0]].reshape(part.shape).to(part.dtype))
        return tuple(made) if isinstance(x, tuple) else made[0]


def log_weights(
    model: Program,
    guide: Program | None,
    x: Data,
    *context: object,
    num_particles: int = 1,
    particles: str = "auto",
    plan: ParticlePlan | None = None,
) -> Weights:
    r"""Draw K particles per datum from the guide and weigh them.

    Args:
        model: a Pyro program ``model(x, *context)``; all that belongs to one datum stands in one
            ``pyro.plate("data", ...)``.
        guide: its proposal ``guide(x, *context)``; None draws from the model's own prior, so that
            the weights are the likelihoods.
        x: the data, ``(N, ...)``, or a tuple of such tensors.
        context: what else both programs take.
        num_particles: K.
        particles: how to get K particles: "plate", "tile", "loop", or "auto", which finds the
            cheapest that agrees with a loop.
        plan: a plan from :func:`plan_particles`, to be used instead of making one at each call.

    Raises:
        ProgramError: the pair has no per-datum weights; names the site and the reason.

    References:
        Burda, Grosse and Salakhutdinov, *Importance weighted autoencoders*, 2016.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def posterior(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.tensor([0.0, 1.0])
        >>> weights = log_weights(model, posterior, x, num_particles=5)
        >>> weights.log_weight.shape
        torch.Size([5, 2])
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(x)
        >>> bool((weights.log_weight - exact).abs().max() < 1e-6)  # constant at the posterior
        True
    """
    check_count("num_particles", num_particles)
    args = (x, *context)
    shape = (num_particles, num_data(x))

    def use(plan: ParticlePlan) -> Weights:
        drawn = draw(model, guide, args, plan, num_particles)
        return Weights(
            _total(drawn.model_sites, shape, x),
            _total(drawn.guide_sites, shape, x),
            drawn.model_sites,
            drawn.guide_sites,
            {n: value for n, value in drawn.values.items() if n not in plan.layout.auxiliary},
        )

    if plan is not None:
        return use(plan)
    lone = particles == "auto" and num_particles == 1
    return with_plan(model, guide, args, "loop" if lone else particles, use)


def log_joint(
    model: Program,
    latents: Mapping[str, Tensor],
    x: Data,
    *context: object,
    particles: str = "auto",
    plan: ParticlePlan | None = None,
) -> Tensor:
    r"""Evaluate :math:`\log p(x_n, z_{kn})` at latents of the caller's choice: ``(K, N)``, nats.

    Args:
        model: as in :func:`log_weights`.
        latents: by site, dimension 0 the particles and the rest as the program draws them
            (as in ``Weights.values``). Latents marked for enumeration are not among them.
        x: the data.
        context: what else the model takes.
        particles: as in :func:`log_weights`.
        plan: a plan made with ``plan_particles(model, None, (x, *context))``.

    Raises:
        ValueError: a latent is missing, unknown, or the numbers of particles disagree.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> log_joint(model, {"z": torch.zeros(3, 2)}, torch.zeros(2)).shape
        torch.Size([3, 2])
    """
    args = (x, *context)
    if plan is None:
        # all of the data, since all of their latents are given
        plan = plan_particles(model, None, args, particles, whole=True)
    wanted = set(plan.layout.latents)
    if set(latents) != wanted:
        raise ValueError(f"latents must be {sorted(wanted)}, but are {sorted(latents)}")
    counts = {name: value.shape[0] for name, value in latents.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"latents must hold the same number of particles, but hold {counts}")
    count = next(iter(counts.values()), 1)  # without latents of its own, a model has one joint
    scored = evaluate(plan.model_way, model, None, args, plan.layout, count, latents)
    return _total(scored.model_sites, (count, num_data(x)), x)


def simulate(model: Program, x_like: Data, *context: object) -> Simulation:
    """Draw (z, x) from the model, one of each for every datum of ``x_like``.

    Args:
        model: as in :func:`log_weights`.
        x_like: gives the number and form of the data; its values are not used.
        context: what else the model takes.

    Raises:
        ProgramError: the model has a ``pyro.factor``, so its observations have no distribution.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> simulate(model, torch.zeros(4)).observations["x"].shape
        torch.Size([4])
    """
    num_data(x_like)
    with torch.no_grad():
        trace = run_program(poutine.uncondition(model), (x_like, *context))
    sites = sample_sites(trace)
    for name, site in sites.items():
        if site["infer"].get("is_auxiliary"):
            raise ProgramError(f"model site '{name}' is a factor: it cannot be simulated")
    observed = {name for name, site in sites.items() if site["infer"].get("was_observed")}
    return Simulation(
        {name: site["value"] for name, site in sites.items() if name not in observed},
        {name: site["value"] for name, site in sites.items() if name in observed},
        {name: sites[name]["infer"]["obs"] for name in sites if name in observed},
    )


def _is_that(given: Tensor, part: Tensor) -> bool:
    return given.numel() == part.numel() and torch.equal(given.flatten(), part.flatten())


def _total(sites: Mapping[str, Tensor], shape: tuple[int, int], x: Data) -> Tensor:
    first = x[0] if isinstance(x, tuple) else x
    start = torch.zeros(shape, dtype=torch.float64, device=first.device)
    return sum(sites.values(), start)
