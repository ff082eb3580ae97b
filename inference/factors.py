r"""From the sites of a trace to one number per particle and datum.

Without enumeration the log-density of datum n under particle k is a plain sum over its sites s
and over the plates t nested inside the data plate,

.. math:: \log p_{kn} = \sum_s \sum_{t} \log p_s[k, t, n],

in unscaled log-probabilities with the masks applied again. A latent y marked for enumeration is
summed out first,

.. math:: \log p_{kn} = \log \sum_y \prod_s p_s[y, k, n],

by tensor variable elimination, so that a component drawn per pixel or per step costs a sum over
pixels and not over all their combinations (Obermeyer, Bingham, Jankowiak, Chiu, Pradhan, Rush and
Goodman, *Tensor variable elimination for plated factor graphs*, 2019).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping

from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from torch import Tensor

from .programs import ProgramError
from .support import outside_support, support_varies, unbounded, unvalidated

SUMMED_OUT = "summed out"


def site_log_prob(
    site: dict, *, masked: bool = True, latent: bool = False, slope: bool = False
) -> Tensor:
    """Unscaled log-probability of a site, with its mask applied again.

    With ``slope`` only its gradient is wanted: a distribution that has a ``log_prob_slope`` (as our
    Bernoulli does) need not find the value.

    A latent that its guide drew outside the model's support has density zero, and so has an
    observation where the support depends on a latent: −infinity there, whatever the formula of the
    distribution gives. An observation outside a support that is fixed is a fault of the data.

    Raises:
        ProgramError: validation is on and an observation lies outside the site's fixed support.
    """
    fn, value = site["fn"], site["value"]
    if (latent or support_varies(fn)) and not unbounded(fn):
        with unvalidated(fn):
            log_prob = fn.log_prob(value, *site["args"], **site["kwargs"])
        log_prob = log_prob.masked_fill(~fn.support.check(value), -math.inf)
    else:
        only_slope = getattr(fn, "log_prob_slope", None) if slope else None
        try:
            if only_slope is not None:
                log_prob = only_slope(value)
            else:
                log_prob = fn.log_prob(value, *site["args"], **site["kwargs"])
        except ValueError as error:
            name, fault = site["name"], outside_support(site)
            raise ProgramError(
                f"site '{name}' takes {fault}" if fault else f"site '{name}': {error}"
            ) from error
    return scale_and_mask(log_prob, mask=site["mask"] if masked else None)


def per_datum(log_prob: Tensor, data_dim: int, rank: int, shape: tuple[int, int]) -> Tensor:
    """Sum a log-probability over all but particle and datum, in float64: ``(K, N)``.

    The particles stand at the leftmost of ``rank`` dimensions; a tensor that does not reach it is
    the same for every particle.

    Example:
        >>> import torch
        >>> nested = torch.ones(3, 5)  # a plate of 3 inside the plate of 5 data
        >>> per_datum(nested, data_dim=-1, rank=3, shape=(2, 5))[0]
        tensor([3., 3., 3., 3., 3.], dtype=torch.float64)
    """
    padded = log_prob.reshape((1,) * (rank - log_prob.dim()) + log_prob.shape)
    others = [dim for dim in range(1, rank) if dim != rank + data_dim]
    if others:
        padded = padded.sum(others)
    total = padded.double()
    return total if total.shape == shape else total.expand(shape)


def sum_out(
    model: tuple[poutine.Trace, Mapping[str, Tensor]],
    guide: tuple[poutine.Trace, Mapping[str, Tensor]] | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Eliminate the enumerated dimensions from the log-probabilities of a trace pair.

    Args:
        model: the trace and the log-probabilities by site.
        guide: the same, sampled sites only; None when the guide takes no part.

    Returns:
        The log-probabilities of the model and of the guide. Sites that met an enumerated latent
        are gathered under one name, "summed out". Where the guide draws a latent given an
        enumerated one the ratio p/q must be summed as a whole: then all of it stands there, and
        the guide's share of those sites is gone from its own.
    """
    plates: dict[str, str] = {}
    packed_terms: list[tuple[str, frozenset, Tensor, bool]] = []
    to_dim: dict[str, int] = {}
    for part, negative in ((guide, True), (model, False)):
        if part is None:
            continue
        trace, log_probs = part
        trace.symbolize_dims(plates)
        plates = trace.plate_to_symbol
        to_dim |= trace.symbol_to_dim
        for name, log_prob in log_probs.items():
            site = trace.nodes[name]
            ordinal = frozenset(plates[f.name] for f in site["cond_indep_stack"] if f.vectorized)
            term = packed.pack(log_prob, site["infer"]["_dim_to_symbol"])
            packed_terms.append((name, ordinal, term, negative))
    plate_symbols = set(plates.values())
    tree: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
    enumerated: set[str] = set()
    kept: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, ordinal, term, negative in packed_terms:
        symbols = set(vars(term)["_pyro_dims"]) - plate_symbols  # pyro notes a tensor's dims on it
        if symbols:
            enumerated |= symbols
            tree.setdefault(ordinal, []).append(packed.neg(term) if negative else term)
        else:
            kept[negative][name] = packed.unpack(term, to_dim)
    if tree:
        terms = [t for ts in contract_tensor_tree(tree, enumerated, cache={}).values() for t in ts]
        for index, term in enumerate(terms):
            key = SUMMED_OUT if len(terms) == 1 else f"{SUMMED_OUT} {index}"
            kept[False][key] = packed.unpack(term, to_dim)
    return kept
