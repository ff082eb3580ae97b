r"""The KL of the latents as a term of its own: weighted, with free bits, in closed form.

.. math:: \mathcal{L}(x) = \mathbb{E}_q[\log p(x \mid z)] - \beta_t \sum_j \max\bigl(\lambda,
          \mathrm{KL}_j(x)\bigr),

where j runs over the latent sites or over their dimensions. β rises over a warm-up, or is another
number than 1 (β-VAE). Where Pyro or torch register the divergence of the two distributions it may
be taken in closed form; elsewhere it is the particles' mean of log q − log p. For anything but
β = 1 and λ = 0 this is no bound on log p(x): the objective's ``loss``, and whatever scores a model,
take the bound without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ..factors import site_log_prob
from ..layout import Layout
from ..programs import ProgramError, check_count, check_number
from ..refusals import base
from ..ways import Sites

FORMS = ("monte-carlo", "analytic", "auto")


@dataclass(frozen=True)
class WarmUp:
    """A weight that rises in a straight line over the first steps.

    Args:
        steps: how many steps it takes to get to ``end``.
        start: the weight of the first step.
        end: and of all after the rise.
        cycles: rise so often, each time over ``steps`` and staying at ``end`` as long again.

    References:
        Bowman and others, *Generating sentences from a continuous space*, 2016. Sønderby, Raiko,
        Maaløe, Sønderby and Winther, *Ladder variational autoencoders*, 2016. Fu, Li, Liu, Gao,
        Celikyilmaz and Carin, *Cyclical annealing schedule*, 2019.

    Example:
        >>> rise = WarmUp(steps=4)
        >>> [rise(step) for step in (0, 1, 2, 4, 9)]
        [0.0, 0.25, 0.5, 1.0, 1.0]
        >>> [WarmUp(steps=2, cycles=2)(step) for step in range(8)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0]
    """

    steps: int
    start: float = 0.0
    end: float = 1.0
    cycles: int = 1

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("cycles", self.cycles)
        for name in ("start", "end"):
            check_number(name, getattr(self, name), 0)

    @property
    def duration(self) -> int:
        """Steps until the weight stays as it is."""
        return (2 * self.cycles - 1) * self.steps

    def __call__(self, step: int) -> float:
        """The weight of step 0, 1, 2, ..."""
        if step < self.duration:
            step = step % (2 * self.steps)
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class FreeBits:
    """A KL below which nothing is gained: it keeps latents from being switched off early.

    Args:
        nats: λ, of each dimension or site.
        per: "dimension" or "site".
        over: whether the KL that is held against λ is the mean over the "batch", as published, or
            that of each "datum".

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling, *Improving variational inference
        with inverse autoregressive flow*, 2016.

    Example:
        >>> divergence = torch.tensor([[0.1, 2.0], [0.3, 4.0]])  # two data, two dimensions
        >>> FreeBits(0.5)(divergence)
        tensor([2.5000, 4.5000])
    """

    nats: float
    per: str = "dimension"
    over: str = "batch"

    def __post_init__(self) -> None:
        check_number("nats", self.nats, 0)
        for name, known in (("per", ("dimension", "site")), ("over", ("batch", "datum"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, but is {getattr(self, name)!r}")

    def __call__(self, divergence: Tensor) -> Tensor:
        """The divergences of each datum, ``(N, D)``, none of them below λ: ``(N,)``."""
        if self.over == "datum":
            return divergence.clamp(min=self.nats).sum(-1)
        # as a mean over the batch: where that is below λ, no datum's KL has a gradient
        mean = divergence.mean(0)
        held = torch.where(mean > self.nats, divergence, torch.full_like(divergence, self.nats))
        return held.sum(-1)


@dataclass(frozen=True)
class KL:
    """How the KL of the latents enters the ELBO that is trained.

    Args:
        weight: β, a number or a :class:`WarmUp`.
        free_bits: a :class:`FreeBits`, or None.
        form: "monte-carlo"; "analytic", which refuses a site without a closed form; or "auto",
            closed where there is one. ``MonteCarloObjective.kl_forms`` tells which it was.

    References:
        Higgins and others, *beta-VAE: learning basic visual concepts with a constrained variational
        framework*, 2017.

    Example:
        >>> KL(weight=WarmUp(steps=10)).beta(5), KL(weight=4.0).beta(5)
        (0.5, 4.0)
    """

    weight: float | WarmUp = 1.0
    free_bits: FreeBits | None = None
    form: str = "monte-carlo"

    def __post_init__(self) -> None:
        if not isinstance(self.weight, WarmUp):
            check_number("weight", self.weight, 0)
        if not isinstance(self.free_bits, FreeBits | None):
            raise TypeError(f"free_bits must be a FreeBits or None, but is {self.free_bits!r}")
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {FORMS}, but is {self.form!r}")

    @property
    def by_site(self) -> bool:
        """Whether each site's own divergence is needed, and not the log-weights alone."""
        return self.form != "monte-carlo" or self.free_bits is not None

    def beta(self, step: int) -> float:
        """β at a step of training."""
        return self.weight(step) if isinstance(self.weight, WarmUp) else float(self.weight)

    def is_rising(self, step: int) -> bool:
        """Whether a warm-up is still going on."""
        return isinstance(self.weight, WarmUp) and step < self.weight.duration


@dataclass
class Divergences:
    """A probe of both programs' sites for the divergence of every latent, by dimension or site.

    Attributes:
        forms: by site, "analytic" or "monte-carlo", as found.
    """

    kl: KL
    layout: Layout
    forms: dict[str, str] = field(default_factory=dict)

    def __call__(self, prior: Sites, proposal: Sites) -> dict[str, Tensor]:
        order = [name for name in prior if name in proposal]
        drawn = [name for name in proposal if name in prior]
        return {
            name: self._divergence(
                name,
                prior[name],
                proposal[name],
                # what the prior may be given must not have been drawn given this site
                set(order[: order.index(name)]) <= set(drawn[: drawn.index(name)]),
            )
            for name in self.layout.latents
        }

    def _divergence(self, name: str, prior: dict, proposal: dict, in_order: bool) -> Tensor:
        p, q = prior["fn"], proposal["fn"]
        by_dimension = self.kl.free_bits is not None and self.kl.free_bits.per == "dimension"
        if by_dimension:
            q, p = _components(name, q), _components(name, p)
        divergence = self._closed(name, q, p, in_order)
        self.forms[name] = "monte-carlo" if divergence is None else "analytic"
        if divergence is None:
            value = proposal["value"]
            under_prior = p.log_prob(value) if by_dimension else site_log_prob(prior, masked=False)
            divergence = q.log_prob(value) - under_prior
        if by_dimension:
            divergence = divergence.flatten(-len(proposal["fn"].event_shape))
        else:
            divergence = divergence.unsqueeze(-1)
        mask = prior["mask"]
        mask = mask.unsqueeze(-1) if isinstance(mask, Tensor) else mask
        return scale_and_mask(divergence, mask=mask)

    def _closed(self, name: str, q: Any, p: Any, in_order: bool) -> Tensor | None:
        """The divergence in closed form; None where it is not to be, or there is none."""
        if self.kl.form == "monte-carlo" or (self.kl.form == "auto" and not in_order):
            return None
        if not in_order:
            raise ProgramError(
                f"site '{name}': the guide draws it before a latent that stands before it in the "
                "model, on which its prior may depend; then the KL of the two distributions is not "
                "that of the programs; take form='auto' or 'monte-carlo'"
            )
        try:
            return kl_divergence(q, p)
        except NotImplementedError:
            if self.kl.form == "auto":
                return None
            raise ProgramError(
                f"site '{name}': no closed form of the KL from {type(q).__name__} to "
                f"{type(p).__name__} is registered; take form='auto' or 'monte-carlo'"
            ) from None


def _components(name: str, fn: Any) -> Any:
    """The independent components of a distribution as a batch."""
    if isinstance(fn, Independent) and fn.reinterpreted_batch_ndims == len(fn.event_shape):
        return fn.base_dist
    raise ProgramError(
        f"site '{name}' ({type(base(fn)).__name__}) has no independent dimensions to which free "
        "bits could be given: take FreeBits(per='site')"
    )
