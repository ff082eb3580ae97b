"""What an estimator of log p(x) returns: a number per datum with its error, side and diagnosis."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .fingerprint import joined

RELIABLE_RHAT = 1.05
LEAST_FOR_KHAT = 21  # weights, whose tail holds five


def khat_threshold(num_samples: int) -> float:
    """The k̂ above which K samples say nothing: min(1 − 1/log10 K, 0.7).

    Vehtari, Simpson, Gelman, Yao and Gabry, *Pareto smoothed importance sampling*, 2024.

    Example:
        >>> round(khat_threshold(100), 2), khat_threshold(10_000)
        (0.5, 0.7)
    """
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 1 else -math.inf


@dataclass(frozen=True)
class MeanEstimate:
    """The mean of log p(x) over data, its two errors apart.

    Attributes:
        value: the mean, in nats.
        monte_carlo_stderr: from the finite number of samples; shrinks with K.
        data_stderr: from the finite number of data, Monte Carlo noise taken out; shrinks with N.
            NaN for a single datum.
        unreliable: the share of data whose k̂ is at or above its threshold, or unknown, so that
            nothing vouches for their numbers.
    """

    value: float
    monte_carlo_stderr: float
    data_stderr: float
    unreliable: float

    def __str__(self) -> str:
        return (
            f"{self.value:.3f} ± {self.monte_carlo_stderr:.3f} (Monte Carlo) "
            f"± {self.data_stderr:.3f} (data)"
        )


@dataclass(frozen=True)
class Estimate:
    r"""Estimates of log p(x) for N data; tensors of shape ``(N,)`` in nats, float64, on the CPU.

    Attributes:
        log_evidence: the estimates.
        stderr: Monte Carlo standard error of each, by the delta method
            :math:`\sqrt{1/\mathrm{ESS} - 1/K}`; NaN for K = 1. Means nothing where k̂ is high.
        ess: effective sample size :math:`(\sum w)^2 / \sum w^2`, between 1 and K; NaN for an
            estimate that is made of no weights.
        khat: Pareto shape of the weights' tail; NaN where too few weights differ to tell.
        direction: "lower", "upper" or "consistent": the side of log p(x) on which the estimate's
            expectation lies. Of the upper ones that holds for what they converge to: samples that
            have not met the largest weights, or chains that have not mixed, may fall below.
        num_samples: K.
        elbo: mean log-weight of the same samples: an unbiased estimate of the ELBO.
        elbo_stderr: its Monte Carlo standard error; NaN for K = 1, and where a weight of zero makes
            the ELBO −infinity.
        diagnostics: what else the estimator found out, per datum, by name.
        bias_weight: what stderr² is to be multiplied by for the leading term of the bias: −1/2 for
            the log of a mean, 1/2 for its negative, 0 where none is known.
        provenance: estimator, settings, seed, tiles, versions, seconds, and the cost: how often the
            model was run (``evaluations``) and its gradient taken (``gradients``), per datum.
    """

    CORE: ClassVar[tuple[str, ...]] = (
        "log_evidence",
        "stderr",
        "ess",
        "khat",
        "elbo",
        "elbo_stderr",
    )

    log_evidence: Tensor
    stderr: Tensor
    ess: Tensor
    khat: Tensor
    direction: str
    num_samples: int
    elbo: Tensor
    elbo_stderr: Tensor
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)
    bias_weight: float = -0.5
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.log_evidence)

    @property
    def bias(self) -> Tensor:
        """The leading term of the bias, ``(N,)``: subtract it for a better centre.

        It is that of the estimate about its own limit, log p(x) or an upper bound of it.
        """
        return self.bias_weight * self.stderr**2

    @property
    def reliable(self) -> Tensor:
        """Where the diagnosis speaks for the estimate, ``(N,)`` of bool.

        That is k̂, known and below its threshold for K samples; and of chains R̂, below 1.05, in its
        place or beside it.
        """
        fits = self.khat < khat_threshold(self.num_samples)
        rhat = self.diagnostics.get("rhat")
        if rhat is None:
            return fits
        return (fits | self.khat.isnan()) & (rhat < RELIABLE_RHAT)

    def warnings(self) -> list[str]:
        """What the diagnoses say against the estimate, in words; nothing where they do not."""
        found = [
            f"the guide cannot draw all values of latent '{name}', of which no weight tells"
            for name in self.provenance.get("unreached", ())
        ]
        if (single := self.diagnostics.get("log_evidence_float32")) is not None:
            shift = (self.log_evidence - single)[single.isfinite()]
            error = float(shift.std()) / math.sqrt(len(shift)) if len(shift) > 1 else math.nan
            found.append(
                f"bfloat16 shifts it by {float(shift.mean()):+.4f} ± {error:.4f} (of the first "
                f"{len(shift)} data, with the same draws)"
            )
        weighted = not bool(self.ess.isnan().all())  # without weights there is no k̂ to miss
        unknown = float(self.khat.isnan().double().mean()) if weighted else 0.0
        limit = khat_threshold(self.num_samples)
        if too_high := float((self.khat >= limit).double().mean()):
            found.append(f"k̂ too high for {_percent(too_high)}")
        rhat = self.diagnostics.get("rhat")
        if rhat is not None:
            if unmixed := float((~(rhat < RELIABLE_RHAT)).double().mean()):
                found.append(f"R̂ too high for {_percent(unmixed)}")
        elif unknown and self.num_samples < LEAST_FOR_KHAT:
            found.append(
                f"k̂ unknown: it needs {LEAST_FOR_KHAT} weights, and these are {self.num_samples}"
            )
        elif unknown:
            found.append(f"k̂ unknown for {_percent(unknown)}: too few different weights")
        return found

    def mean(self) -> MeanEstimate:
        """The mean over data with its Monte Carlo and its data-set error."""
        size = len(self)
        noise = float(self.stderr.square().mean())
        spread = float(self.log_evidence.var()) if size > 1 else math.nan
        return MeanEstimate(
            value=float(self.log_evidence.mean()),
            monte_carlo_stderr=math.sqrt(noise / size),
            # the variance over data holds the Monte Carlo noise as well
            data_stderr=math.sqrt(max(spread - noise, 0.0) / size) if size > 1 else math.nan,
            unreliable=float((~self.reliable).double().mean()),
        )

    def mean_elbo(self) -> MeanEstimate:
        """The mean ELBO over data, likewise."""
        size = len(self)
        noise = float(self.elbo_stderr.square().mean())
        spread = float(self.elbo.var()) if size > 1 else math.nan
        return MeanEstimate(
            value=float(self.elbo.mean()),
            monte_carlo_stderr=math.sqrt(noise / size),
            data_stderr=math.sqrt(max(spread - noise, 0.0) / size) if size > 1 else math.nan,
            unreliable=0.0,
        )

    def to_dataset(self) -> xr.Dataset:
        """As an ``xarray.Dataset`` over ``datum``; the provenance is in its attributes, as JSON."""
        columns = {name: getattr(self, name) for name in self.CORE} | dict(self.diagnostics)
        dataset = xr.Dataset(
            {name: ("datum", column.numpy()) for name, column in columns.items()},
            coords={"datum": np.arange(len(self))},
            attrs={
                "direction": self.direction,
                "num_samples": self.num_samples,
                "units": "nats",
                "khat_threshold": khat_threshold(self.num_samples),
                "provenance": json.dumps(dict(self.provenance)),
            },
        )
        return dataset

    def __repr__(self) -> str:
        warning = "".join(f", {one}" for one in self.warnings())
        return (
            f"Estimate({len(self)} data, K={self.num_samples}, {self.direction}: mean log p(x) = "
            f"{self.mean()}{warning})"
        )


def concatenate(estimates: Sequence[Estimate]) -> Estimate:
    """Join the estimates of successive batches of data, made by one estimator.

    Costs per datum are those of the dearest batch; the seconds add up.
    """
    first = estimates[0]
    provenance = dict(first.provenance)
    for name in ("seconds", "compile_seconds"):
        if all(name in one.provenance for one in estimates):
            provenance[name] = sum(one.provenance[name] for one in estimates)
    if all("data" in one.provenance for one in estimates):
        provenance["data"] = joined(one.provenance["data"] for one in estimates)
    for name in ("evaluations", "gradients"):
        if name in first.provenance:
            provenance[name] = max(one.provenance[name] for one in estimates)
    return Estimate(
        **{name: torch.cat([getattr(one, name) for one in estimates]) for name in Estimate.CORE},
        diagnostics={
            name: torch.cat([one.diagnostics.get(name, _unknown(one)) for one in estimates])
            for name in first.diagnostics  # some are of the first data alone
        },
        bias_weight=first.bias_weight,
        direction=first.direction,
        num_samples=first.num_samples,
        provenance=provenance,
    )


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "under 1%"


def _unknown(estimate: Estimate) -> Tensor:
    return torch.full_like(estimate.log_evidence, torch.nan)


def versions() -> dict[str, str]:
    """Versions of what a number depends on."""
    packages = ("pyrovae", "pyro-ppl", "torch", "numpy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
