r"""Objectives by the names that papers call them: each a bound, a gradient rule and K.

=================  ===========================================================================
``ELBO``           the evidence lower bound, through the draws
``STL``            the same without the score term
``BetaVAE``        the ELBO with its KL weighted
``IWAE``           the importance-weighted bound
``MIWAE``          the mean of M of them
``PIWAE``          IWAE for the model, MIWAE for the guide
``CIWAE``          between ELBO and IWAE
``DReG``           IWAE, doubly reparameterised
``Renyi``          the variational Rényi bound
``CHIVI``          the guide lowers the χ upper bound, the model raises the ELBO
``TVO``            the thermodynamic objective with its covariance gradient
``JVI``            the jackknife of the IWAE
``REINFORCE``      the ELBO by its score function
``NVIL``           the same with a moving average, or a network, as baseline
``VIMCO``          the IWAE of discrete latents
``RWS``            reweighted wake-sleep
=================  ===========================================================================

Where a paper's objective has the name of a bound or of a rule, that class stands in
:mod:`~pyrovae.inference.objectives.bounds` or :mod:`~pyrovae.inference.objectives.gradients`, and
the function here puts them together.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from . import bounds, gradients
from .kl import KL, WarmUp
from .objective import MonteCarloObjective

NAMES = (
    "ELBO",
    "STL",
    "BetaVAE",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "CIWAE",
    "DReG",
    "Renyi",
    "CHIVI",
    "TVO",
    "JVI",
    "REINFORCE",
    "NVIL",
    "VIMCO",
    "RWS",
)


def ELBO(num_particles: int = 1, **settings: Any) -> MonteCarloObjective:
    """The evidence lower bound (Kingma and Welling, *Auto-encoding variational Bayes*, 2014).

    Example:
        >>> ELBO()
        MonteCarloObjective(ELBO(), Pathwise(), num_particles=1)
    """
    return MonteCarloObjective(bounds.ELBO(), gradients.Pathwise(), num_particles, **settings)


def STL(num_particles: int = 1, **settings: Any) -> MonteCarloObjective:
    """The ELBO without its score term (Roeder, Wu and Duvenaud, *Sticking the landing*, 2017).

    Example:
        >>> STL()
        MonteCarloObjective(ELBO(), StickingTheLanding(), num_particles=1)
    """
    rule = gradients.StickingTheLanding()
    return MonteCarloObjective(bounds.ELBO(), rule, num_particles, **settings)


def BetaVAE(
    beta: float | WarmUp = 4.0, num_particles: int = 1, **settings: Any
) -> MonteCarloObjective:
    """The ELBO with the KL weighted by β (Higgins and others, *beta-VAE*, 2017).

    Example:
        >>> BetaVAE(beta=4.0).kl.weight
        4.0
    """
    kl = KL(weight=beta)
    return MonteCarloObjective(
        bounds.ELBO(), gradients.Pathwise(), num_particles, kl=kl, **settings
    )


def IWAE(num_particles: int = 5, **settings: Any) -> MonteCarloObjective:
    """The importance-weighted bound (Burda, Grosse and Salakhutdinov, 2016).

    *Importance weighted autoencoders*.

    Example:
        >>> IWAE(num_particles=50)
        MonteCarloObjective(IWAE(), Pathwise(), num_particles=50)
    """
    return MonteCarloObjective(bounds.IWAE(), gradients.Pathwise(), num_particles, **settings)


def MIWAE(num_groups: int = 8, num_particles: int = 8, **settings: Any) -> MonteCarloObjective:
    """The mean of M = ``num_groups`` bounds of K = ``num_particles`` each (Rainforth et al., 2018).

    *Tighter variational bounds are not necessarily better*. It draws M K particles.

    Example:
        >>> MIWAE(num_groups=4, num_particles=8)
        MonteCarloObjective(MIWAE(num_groups=4), Pathwise(), num_particles=32)
    """
    bound = bounds.MIWAE(num_groups)
    return MonteCarloObjective(bound, gradients.Pathwise(), num_groups * num_particles, **settings)


def PIWAE(num_groups: int = 8, num_particles: int = 8, **settings: Any) -> MonteCarloObjective:
    """IWAE of all M K particles for the model, MIWAE of M groups of K for the guide.

    Rainforth and others, *Tighter variational bounds are not necessarily better*, 2018.

    Example:
        >>> PIWAE(num_groups=4, num_particles=8)
        MonteCarloObjective(IWAE(), Split(guide_bound=MIWAE(num_groups=4)), num_particles=32)
    """
    rule = gradients.Split(bounds.MIWAE(num_groups))
    return MonteCarloObjective(bounds.IWAE(), rule, num_groups * num_particles, **settings)


def CIWAE(beta: float = 0.05, num_particles: int = 64, **settings: Any) -> MonteCarloObjective:
    """β ELBO + (1 − β) IWAE (Rainforth and others, 2018).

    *Tighter variational bounds are not necessarily better*.

    Example:
        >>> CIWAE(beta=0.05)
        MonteCarloObjective(CIWAE(beta=0.05), Pathwise(), num_particles=64)
    """
    bound = bounds.CIWAE(beta)
    return MonteCarloObjective(bound, gradients.Pathwise(), num_particles, **settings)


def DReG(num_particles: int = 5, **settings: Any) -> MonteCarloObjective:
    """The IWAE, doubly reparameterised (Tucker, Lawson, Gu and Maddison, 2019).

    *Doubly reparameterized gradient estimators for Monte Carlo objectives*.

    Example:
        >>> DReG(num_particles=8)
        MonteCarloObjective(IWAE(), DoublyReparameterized(), num_particles=8)
    """
    rule = gradients.DoublyReparameterized()
    return MonteCarloObjective(bounds.IWAE(), rule, num_particles, **settings)


def Renyi(alpha: float = 0.5, num_particles: int = 5, **settings: Any) -> MonteCarloObjective:
    """The variational bound of Li and Turner, *Rényi divergence variational inference*, 2016.

    Example:
        >>> Renyi(alpha=0.5)
        MonteCarloObjective(Renyi(alpha=0.5), Pathwise(), num_particles=5)
    """
    bound = bounds.Renyi(alpha)
    return MonteCarloObjective(bound, gradients.Pathwise(), num_particles, **settings)


def CHIVI(n: float = 2.0, num_particles: int = 5, **settings: Any) -> MonteCarloObjective:
    """The guide lowers CUBO, the model raises the ELBO (Dieng and others, 2017).

    *Variational inference via χ upper bound minimization*.

    Example:
        >>> CHIVI(n=2)
        MonteCarloObjective(ELBO(), Split(guide_bound=CUBO(n=2)), num_particles=5)
    """
    rule = gradients.Split(bounds.CUBO(n))
    return MonteCarloObjective(bounds.ELBO(), rule, num_particles, **settings)


def TVO(num_intervals: int = 5, num_particles: int = 50, **settings: Any) -> MonteCarloObjective:
    """The thermodynamic variational objective (Masrani, Le and Wood, 2019).

    Example:
        >>> TVO(num_intervals=5).bound
        TVO(num_intervals=5, first=0.025)
    """
    bound = bounds.TVO(num_intervals)
    return MonteCarloObjective(bound, gradients.SelfNormalized(), num_particles, **settings)


def JVI(order: int = 1, num_particles: int = 5, **settings: Any) -> MonteCarloObjective:
    """The jackknife of the IWAE (Nowozin, *Debiasing evidence approximations*, 2018).

    Example:
        >>> JVI(order=2)
        MonteCarloObjective(Jackknife(order=2), Pathwise(), num_particles=5)
    """
    bound = bounds.Jackknife(order)
    return MonteCarloObjective(bound, gradients.Pathwise(), num_particles, **settings)


def REINFORCE(num_particles: int = 1, **settings: Any) -> MonteCarloObjective:
    """The ELBO by its score function alone, for every latent (Williams, 1992).

    *Simple statistical gradient-following algorithms for connectionist reinforcement learning*;
    Ranganath, Gerrish and Blei, *Black box variational inference*, 2014.

    Example:
        >>> REINFORCE().gradient
        ScoreFunction(baseline=NoBaseline(), everywhere=True)
    """
    rule = gradients.ScoreFunction(everywhere=True)
    return MonteCarloObjective(bounds.ELBO(), rule, num_particles, **settings)


def NVIL(
    net: nn.Module | None = None, num_particles: int = 1, **settings: Any
) -> MonteCarloObjective:
    """The ELBO by its score function, with a network's guess from x as baseline, or an average.

    Mnih and Gregor, *Neural variational inference and learning in belief networks*, 2014.

    Example:
        >>> NVIL().gradient.baseline
        MovingAverage(decay=0.9)
    """
    baseline = gradients.MovingAverage() if net is None else gradients.NetworkBaseline(net)
    rule = gradients.ScoreFunction(baseline)
    return MonteCarloObjective(bounds.ELBO(), rule, num_particles, **settings)


def VIMCO(num_particles: int = 5, **settings: Any) -> MonteCarloObjective:
    """The IWAE of discrete latents (Mnih and Rezende, 2016).

    *Variational inference for Monte Carlo objectives*.

    Example:
        >>> VIMCO(num_particles=5).bound
        IWAE()
    """
    return MonteCarloObjective(bounds.IWAE(), gradients.VIMCO(), num_particles, **settings)


def RWS(
    num_particles: int = 5, wake: float = 1.0, sleep: float = 0.0, **settings: Any
) -> MonteCarloObjective:
    """Reweighted wake-sleep (Bornschein and Bengio, *Reweighted wake-sleep*, 2015).

    Example:
        >>> RWS(num_particles=5).bound
        IWAE()
    """
    rule = gradients.WakeSleep(wake, sleep)
    return MonteCarloObjective(bounds.IWAE(), rule, num_particles, **settings)
