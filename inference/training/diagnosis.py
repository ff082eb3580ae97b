"""What went wrong in a step, said in one line: data outside a support, or numbers not finite.

A failed batch is run once more, with the same random numbers and with Pyro's validation off, and
its sites are read one by one. Nothing here runs while training goes well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..support import outside_support


class NonFiniteLoss(FloatingPointError, ValueError):
    """The loss or its gradient became NaN or infinite; training stopped before the step.

    Attributes:
        epoch, batch: where, both counted from 1.
        sites: names of the sites whose value or log-probability is not finite.
        rows: which data of x made up the batch; None for a DataLoader.
    """

    def __init__(
        self, message: str, epoch: int, batch: int, sites: Iterable[str], rows: Tensor | None
    ) -> None:
        super().__init__(message)
        self.message, self.epoch, self.batch = message, epoch, batch
        self.sites = tuple(sites)
        self.rows = rows

    def __reduce__(self) -> tuple[Any, ...]:  # a worker process hands it on
        return type(self), (self.message, self.epoch, self.batch, self.sites, self.rows)


@dataclass(frozen=True)
class Finding:
    """One site with something wrong: ``where`` is model or guide."""

    site: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.site!r} in the {self.where} ({self.what})"


class _LastSite(Messenger):
    """Remembers the sample site that is being run: the one that failed, if one does."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.fn = "", None

    def _pyro_sample(self, msg: Message) -> None:
        self.name, self.fn = str(msg["name"]), msg["fn"]


def _run(program: Callable[..., Any], args: tuple[Any, ...], where: str) -> tuple[Trace, Any]:
    """A program's trace, as far as it runs, and what its failure shows, if it fails."""
    recorder, last = poutine.trace(), _LastSite()
    try:
        with recorder, last:
            program(*args)
    except (ValueError, RuntimeError, ArithmeticError):
        for name in getattr(last.fn, "arg_constraints", {}):
            value = getattr(last.fn, name, None)
            if isinstance(value, Tensor) and not value.isfinite().all():
                return recorder.trace, Finding(last.name, where, f"{name} not finite")
        return recorder.trace, True
    return recorder.trace, None


def _traces(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[dict[str, Trace], list[Finding]]:
    """Traces of the pair, as far as it runs, and the sites at which it fails."""
    unwrapped = poutine.unwrap(guide)
    if isinstance(unwrapped, Messenger):  # an effect-based guide runs its own model
        _, failure = _run(guide, args, "guide")
        if failure is not None:
            return {}, [failure] if isinstance(failure, Finding) else []
        model_trace, guide_trace = unwrapped.get_traces()
        return {"guide": guide_trace, "model": model_trace}, []
    traces: dict[str, Trace] = {}
    program = guide
    for where in ("guide", "model"):
        traces[where], failure = _run(program, args, where)
        if failure is not None:
            return traces, [failure] if isinstance(failure, Finding) else []
        program = poutine.replay(model, trace=traces["guide"])
    return traces, []


def _not_finite(site: Mapping[str, Any]) -> str | None:
    """What about a sample site is not finite, if anything."""
    value = site["value"]
    if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
        return f"value {value[~value.isfinite()].reshape(-1)[0].item()}"
    try:
        log_prob = site["fn"].log_prob(value, *site["args"], **site["kwargs"])
    except (ValueError, RuntimeError, NotImplementedError):
        return None
    log_prob = scale_and_mask(log_prob, 1.0, site["mask"])
    if isinstance(log_prob, Tensor) and not log_prob.isfinite().all():
        bad = log_prob[~log_prob.isfinite()].reshape(-1)
        return f"log-probability {bad[0].item()} for {len(bad)} of {log_prob.numel()}"
    return None


def examine(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], name: str
) -> tuple[ValueError | None, list[Finding]]:
    """Run a batch again and read its sites.

    Returns an error for a value outside a site's support (data there are called ``name``), or
    None, and the sites that are not finite.
    """
    with pyro.validation_enabled(False), torch.no_grad():
        traces, findings = _traces(model, guide, args)
        for where, trace in traces.items():
            for site_name, site in trace.nodes.items():
                if site["type"] != "sample" or site_is_subsample(site):
                    continue
                what = _not_finite(site)
                value = site["value"]
                finite = not isinstance(value, Tensor) or bool(value.isfinite().all())
                if finite and where == "model" and (outside := outside_support(site)):
                    if site["is_observed"]:
                        message = f"{name}: site {site_name!r} takes {outside}"
                    else:
                        message = f"guide: its draws at site {site_name!r} must be {outside}"
                    return ValueError(message), findings
                drawn_in_guide = any(finding.site == site_name for finding in findings)
                if what is not None and not drawn_in_guide:
                    findings.append(Finding(site_name, where, what))
    return None, findings


@dataclass(frozen=True)
class Where:
    """Which batch: epoch and number, from 1, and the rows of x that it holds."""

    epoch: int
    batch: int
    rows: Tensor | None

    def non_finite(
        self, what: str, findings: list[Finding], gradients: Iterable[str] = ()
    ) -> NonFiniteLoss:
        """The error for this batch, naming the sites, or else the gradients, that are wrong."""
        names = list(gradients)
        if findings:
            what += "; not finite: " + ", ".join(str(finding) for finding in findings)
        elif names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            what += f"; every site is finite, but the gradient of {shown} is not"
        return NonFiniteLoss(
            f"epoch {self.epoch}, batch {self.batch}: {what}. "
            "Training stopped before this step; the parameters are the last good ones",
            self.epoch,
            self.batch,
            [finding.site for finding in findings],
            self.rows,
        )


def explain(
    error: Exception,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    name: str,
    where: Where,
) -> Exception:
    """A failure in the programs in terms of its cause where that can be found, else itself."""
    if isinstance(error, torch.OutOfMemoryError):
        return error
    outside, findings = examine(model, guide, args, name)
    if outside is not None:
        return outside
    return where.non_finite("the programs fail", findings) if findings else error
