"""Whether a part of the data has, alone, the densities that it has among all of them.

Estimators take the data in parts where that is so. It is found out by running the pair: on a few
data, on more, and on some of these again in another order. What no run of a part can show, latents
that only other data have, is met when it comes (:class:`~.programs.StructureVaries`).
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import torch
from torch import Tensor

from .agreement import agree
from .layout import Layout, inspect_programs
from .programs import Program, ProgramError, StructureVaries, map_tensors, num_data
from .ways import Evaluation, data_axis, evaluate

_TRIAL_DATA = 4
_COUPLING_DATA = 256


def take(args: tuple, index: slice | Tensor) -> tuple:
    """Select data from ``(x, *context)``: every tensor that has one entry per datum is indexed."""
    size = num_data(args[0])
    return map_tensors(lambda t: t[index] if t.dim() and len(t) == size else t, args)


def inspect_part(model: Program, guide: Program | None, args: tuple) -> tuple[Layout, tuple] | None:
    """Layout and arguments of a few data that can stand for all; None where no part can.

    Raises:
        ProgramError: the pair has no per-datum weights.
        StructureVaries: parts of the data have different latents.
    """
    if (found := _inspect_few(model, guide, args)) is None:
        return None
    layout, few = found
    many = args
    if not _context_may_be_shared(model, guide, args, few, layout):
        many = take(args, slice(0, _COUPLING_DATA))
    return (layout, few) if _rows_stand_alone(model, guide, many, layout) else None


def _inspect_few(model: Program, guide: Program | None, args: tuple) -> tuple[Layout, tuple] | None:
    """Layout and arguments of the first few data; None where the programs take only all."""
    size = num_data(args[0])
    few = take(args, slice(0, _TRIAL_DATA if size > _TRIAL_DATA else max(size - 1, 1)))
    store = pyro.get_param_store()
    before = set(store.keys())
    try:
        layout = inspect_programs(model, guide, few)
        if set(store.keys()) == before:
            return layout, few
    except ProgramError:
        pass  # perhaps only because data are missing: the run on all of them decides
    # parameters made to the measure of a part must not outlive it
    for name in set(store.keys()) - before:
        del store[name]
    inspect_programs(model, guide, args)
    try:
        return inspect_programs(model, guide, few), few
    except ProgramError:
        return None


def _context_may_be_shared(
    model: Program, guide: Program | None, args: tuple, few: tuple, layout: Layout
) -> bool:
    """Whether a context as long as the data might belong to all of them, and not be theirs.

    A context of theirs fails, uncut, beside a part of the data. One that runs so shows only among
    all data whether it may be cut.
    """
    size = num_data(args[0])
    for number, whole in enumerate(args[1:], start=1):
        if not has_length(whole, size):
            continue
        if num_data(few[0]) < 2:  # one datum takes any length
            return True
        uncut = (*few[:number], whole, *few[number + 1 :])
        try:
            with torch.no_grad():
                evaluate("loop", model, guide, uncut, layout, 1, prior=guide is None)
        except Exception:  # a program may raise anything at shapes it was not made for
            continue
        return True
    return False


def has_length(context: object, size: int) -> bool:
    """Whether a context, or a part of it, has one entry for each of so many data."""
    parts = context if isinstance(context, tuple) else (context,)
    return any(isinstance(part, Tensor) and part.dim() and len(part) == size for part in parts)


def _rows_stand_alone(model: Program, guide: Program | None, args: tuple, layout: Layout) -> bool:
    """Whether some data, in another order, get the same densities alone as among all."""
    size, prior = num_data(args[0]), guide is None
    count = min(_TRIAL_DATA, size - 1)
    if count == 0:
        return True
    # not the first ones: what is cut to a part that begins alike would look the same
    rows = torch.linspace(size - 1, max(size // 4, 1), count).long()
    rows = rows.to(args[0][0].device if isinstance(args[0], tuple) else args[0].device)
    with torch.no_grad():
        among = evaluate("loop", model, guide, args, layout, 1, prior=prior)
        values = {
            name: value.index_select(data_axis(value, name, layout), rows.to(value.device))
            for name, value in among.values.items()
        }
        try:
            alone = evaluate("loop", model, guide, take(args, rows), layout, 1, values, prior=prior)
        except StructureVaries:
            raise
        except Exception:  # a table that was cut has no row for a label, say
            return False
    return agree(alone, _select(among, rows))


def _select(run: Evaluation, rows: Tensor) -> Evaluation:
    """The log-probabilities of some of the data."""

    def pick(sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: term[:, rows.to(term.device)] for name, term in sites.items()}

    return Evaluation(pick(run.model_sites), pick(run.guide_sites), run.values)
