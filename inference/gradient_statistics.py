r"""How noisy an objective's gradient is, for the model's parameters θ and the guide's φ apart.

From R independent estimates :math:`g_r` of one gradient, on the same data, with means
:math:`\bar g_i` and standard deviations :math:`s_i` of its components,

.. math:: \mathrm{variance} = \sum_i s_i^2, \qquad
          \mathrm{SNR} = \frac1P \sum_{i=1}^{P} \frac{|\bar g_i|}{s_i}, \qquad
          \mathrm{cosine} = \frac1R \sum_r \frac{g_r \cdot u}{\|g_r\| \, \|u\|},

where u is a reference, the mean gradient of the same objective with many more particles. The SNR of
pure noise is not 0 but :math:`\sqrt{2 / \pi R}` in expectation: ``snr_floor``. Far smaller ones are
seen by the pooled ratio of all components at once, whose numerator is without that bias,

.. math:: \mathrm{SNR}_\mathrm{pooled}^2 = \frac{\|\bar g\|^2 - \frac1R \sum_i s_i^2}
          {\sum_i s_i^2}.

Rainforth, Kosiorek, Le, Maddison, Igl, Wood and Teh, *Tighter variational bounds are not
necessarily better*, 2018.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from .modules import Modules, unnoticed
from .objectives import MonteCarloObjective
from .programs import Data, Program, check_count, num_data, run_program, sample_sites
from .rng import derive
from .training.objective import Loss
from .training.parameters import Parameters

_BLOCKS = 10
GROUPS = ("theta", "phi")


def gradient_statistics(
    objective: Any,
    model: Program,
    guide: Program,
    x: Data,
    *context: Any,
    repeats: int = 100,
    reference: Any = None,
    seed: int = 0,
) -> xr.Dataset:
    """Estimate one gradient many times over, and tell how its estimates scatter.

    Args:
        objective: any ``pyro.infer.ELBO``.
        model: the model.
        guide: the guide.
        x: the data, all of which every estimate takes.
        context: what else both programs take.
        repeats: R, at least 20.
        reference: the objective whose mean gradient gives the direction for the cosine; by default
            the same one with 20 times the particles, where it is one of ours.
        seed: of the draws.

    Returns:
        A dataset over ``group`` ("theta", "phi": what only the model reads, and what the guide
        reads) with ``norm`` (of the mean gradient), ``variance``, ``snr``, ``snr_pooled`` and
        ``cosine``, and their jackknife errors ``*_stderr``; over ``component`` with ``mean`` and
        ``std``, whose coordinates tell ``parameter`` and ``component_group``. Nats per datum.

    Raises:
        ValueError: too few repeats, or no parameters.

    Example:
        >>> from pyrovae.inference import STL, IWAE
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=4, latent_dim=2)
        >>> found = gradient_statistics(IWAE(5), linear.model, linear.guide, linear.sample(20))
        >>> found.sizes["group"], bool((found.snr > found.snr_floor).all())
        (2, True)
    """
    check_count("repeats", repeats)
    if repeats < 2 * _BLOCKS:
        raise ValueError(f"repeats must be at least {2 * _BLOCKS}, but is {repeats}")
    for name, value in (("objective", objective), ("reference", reference)):
        if not isinstance(value, PyroELBO) and not (name == "reference" and value is None):
            raise TypeError(f"{name} must be a pyro.infer.ELBO, but is {value!r}")
    args = (x, *context)
    modules = Modules(model, guide)
    parameters = Parameters(modules)
    device = parameters.device() or torch.device("cpu")
    size = num_data(x)
    with unnoticed(modules, device, derive(seed, "gradient statistics")):
        rows = _estimate(objective, model, guide, args, parameters, device, seed, repeats, size)
        if reference is None:
            reference = _with_more_particles(objective)
        aim = None
        if reference is not None:
            draws = max(repeats // 5, 2)
            aim = _estimate(
                reference, model, guide, args, parameters, device, seed, draws, size
            ).mean(0)
        groups = _groups(guide, args, parameters)
    names = [name for name, value in parameters.trainable.items() for _ in range(value.numel())]
    return _summary(rows, aim, np.array(groups), np.array(names), repr(objective), seed)


def _with_more_particles(objective: Any) -> MonteCarloObjective | None:
    if not isinstance(objective, MonteCarloObjective):
        return None
    count = 20 * objective.num_particles
    try:
        more = MonteCarloObjective(
            objective.bound, objective.gradient, count, objective.kl, objective.particles
        )
    except ValueError as error:
        raise ValueError(
            f"reference must be given for {objective!r}, which cannot have {count} particles: "
            f"{error}"
        ) from error
    more.load_state_dict(objective.state_dict())
    return more


def _estimate(
    objective: Any,
    model: Program,
    guide: Program,
    args: tuple,
    parameters: Parameters,
    device: torch.device,
    seed: int,
    repeats: int,
    size: int,
) -> NDArray[np.float64]:
    """Gradients in the direction of descent, ``(repeats, P)``."""
    loss = Loss(objective, model, guide, parameters, device, seed)
    loss.inspect(args, size)
    state = loss.state()
    tensors = list(parameters.trainable.values())
    network = getattr(objective, "network", None)
    others = [] if network is None else list(network.parameters())  # a baseline's own
    rows = []
    try:
        for _ in range(repeats):
            for tensor in tensors:
                tensor.grad = None
            loss.load_state(state)  # one objective, and not one that warms up as it is measured
            loss.gradients(args, size, 1.0)
            rows.append(torch.cat([_flat(tensor) for tensor in tensors]).cpu().numpy())
    finally:
        for tensor in (*tensors, *others):
            tensor.grad = None
        loss.load_state(state)
    return np.array(rows, dtype=np.float64)


def _flat(tensor: Tensor) -> Tensor:
    gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
    return gradient.detach().reshape(-1).double()


def _groups(guide: Program, args: tuple, parameters: Parameters) -> list[str]:
    """By component: "phi" where the guide's density depends on it, else "theta"."""
    with parameters:
        trace = run_program(guide, args)
        held = {name: site["value"].detach() for name, site in sample_sites(trace).items()}
        trace = run_program(guide, args, values=held)
    trace.compute_log_prob()
    density = sum(site["log_prob"].sum() for site in sample_sites(trace).values())
    tensors = list(parameters.trainable.values())
    found = torch.autograd.grad(density, tensors, allow_unused=True)
    return [
        "theta" if gradient is None else "phi"
        for tensor, gradient in zip(tensors, found, strict=True)
        for _ in range(tensor.numel())
    ]


def _measures(rows: NDArray[np.float64], aim: NDArray[np.float64] | None) -> dict[str, float]:
    mean, std = rows.mean(0), rows.std(0, ddof=1)
    moving = (std > 0) | (mean != 0)
    with np.errstate(divide="ignore"):
        ratios = np.abs(mean[moving]) / std[moving]
    measures = {
        "norm": float(np.linalg.norm(mean)),
        "variance": (variance := float((std**2).sum())),
        "snr_pooled": _ratio(float(mean @ mean) - variance / len(rows), variance),
        "snr": float(ratios.mean()) if moving.any() else math.nan,
    }
    if aim is not None:
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(aim)
        with np.errstate(divide="ignore", invalid="ignore"):
            measures["cosine"] = float(np.mean(rows @ aim / lengths))
    return measures


def _ratio(signal: float, noise: float) -> float:
    """The root of a ratio of squares; no signal where chance took more than there was."""
    if noise == 0:
        return math.inf if signal > 0 else math.nan
    return math.sqrt(max(signal, 0.0) / noise)


def _summary(
    rows: NDArray[np.float64],
    aim: NDArray[np.float64] | None,
    groups: NDArray[np.str_],
    names: NDArray[np.str_],
    objective: str,
    seed: int,
) -> xr.Dataset:
    """The dataset, errors by a jackknife over blocks of repeats."""
    columns: dict[str, list[float]] = {}
    blocks = np.array_split(np.arange(len(rows)), _BLOCKS)
    for group in GROUPS:
        inside = groups == group
        part, towards = rows[:, inside], None if aim is None else aim[inside]
        without = [_measures(np.delete(part, block, 0), towards) for block in blocks]
        for name, value in _measures(part, towards).items():
            left_out = np.array([one[name] for one in without])
            spread = ((left_out - left_out.mean()) ** 2).sum() * (_BLOCKS - 1) / _BLOCKS
            columns.setdefault(name, []).append(value)
            columns.setdefault(f"{name}_stderr", []).append(math.sqrt(spread))
    return xr.Dataset(
        {
            **{name: ("group", values) for name, values in columns.items()},
            "mean": ("component", rows.mean(0)),
            "std": ("component", rows.std(0, ddof=1)),
            "snr_floor": math.sqrt(2 / (math.pi * len(rows))),
        },
        coords={
            "group": list(GROUPS),
            "component_group": ("component", groups),
            "parameter": ("component", names),
        },
        attrs={"objective": objective, "repeats": len(rows), "seed": seed, "units": "nats"},
    )
