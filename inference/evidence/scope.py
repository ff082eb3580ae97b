"""Scoring leaves no trace, and refuses what would make its numbers wrong.

Inside the scope no gradient is kept, distributions are not validated (the data are checked once,
before), and torch draws from seeds of its own; afterwards the random state, the validation
flags and the parameter store are as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pyro
import torch
from torch import Tensor

from ..modules import Buffers, Modules
from ..particles import ParticlePlan
from ..programs import Program, ProgramError, map_tensors
from ..support import not_finite
from ..ways import evaluate


@contextmanager
def scoring_scope(model: Program, guide: Program | None) -> Iterator[Callable[[int], None]]:
    """Enter the scope; yields a function that seeds the generators inside it."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()

    def manual_seed(seed: int) -> None:
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)

    store = pyro.get_param_store()
    before = set(store.keys())
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # whose tensors know no gradients
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=list(devices)))
        stack.enter_context(pyro.validation_enabled(False))
        modules = Modules(model, model if guide is None else guide)
        buffers = Buffers(modules.buffers())  # a layer that is refused has changed its own by then
        buffers.keep()
        stack.callback(buffers.put_back)
        if modules.local:
            # the programs' modules hold their parameters: the store need not hear of them
            stack.enter_context(pyro.settings.context(module_local_params=True))
        try:
            yield manual_seed
        finally:
            for name in set(store.keys()) - before:
                del store[name]


def check_plan(plan: ParticlePlan) -> None:
    """Refuse programs whose weights are not a function of one datum and its latents.

    Raises:
        ProgramError: a layer in training mode, or chance outside the sample sites.
    """
    if plan.layout.active:
        raise ProgramError(
            f"{', '.join(sorted(set(plan.layout.active)))} in training mode makes the score of a "
            "datum depend on chance or on the other data: call .eval() first"
        )
    if not plan.reproducible:
        raise ProgramError(
            "equal latents got different densities in two runs: something random stands outside "
            "the sample sites (functional dropout?)"
        )


def check_support(model: Program, guide: Program | None, args: tuple, plan: ParticlePlan) -> None:
    """Run one particle with Pyro's validation on: is every observation in its site's support?

    Raises:
        ProgramError: it is not; names the site, or repeats the complaint of a distribution.
    """
    with pyro.validation_enabled(True):
        try:
            evaluate("loop", model, guide, args, plan.layout, 1, prior=guide is None)
        except ProgramError:
            raise
        except ValueError as error:
            raise ProgramError(str(error).partition(", but found")[0].splitlines()[0]) from error


def device_of(model: Program, guide: Program | None) -> torch.device | None:
    """Where the parameters of the pair's modules are; None when it has no modules."""
    roots = Modules(model, model if guide is None else guide).roots()
    return next((value.device for root in roots for value in root.parameters()), None)


def move(args: tuple, device: torch.device | None) -> tuple:
    """Bring data and context to the device of the parameters, fit to take part in gradients."""

    def bring(value: Tensor) -> Tensor:
        here = value if device is None else value.to(device)
        return here.clone() if here.is_inference() else here

    return map_tensors(bring, args)


def check_finite(args: tuple) -> None:
    """Refuse NaN and infinity in the data and their context.

    Raises:
        ValueError: names the argument, the datum and the value.
    """
    names = ("x", *(f"context[{i}]" for i in range(len(args) - 1)))
    for name, arg in zip(names, args, strict=True):
        for part in arg if isinstance(arg, tuple) else (arg,):
            if isinstance(part, Tensor) and (fault := not_finite(part)):
                raise ValueError(f"{name} must be finite, but {fault}")
