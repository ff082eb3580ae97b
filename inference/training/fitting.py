"""Train any Pyro program pair on data, under any of Pyro's objectives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from .history import History
from .loop import Training
from .settings import Settings, as_path

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor | tuple[Tensor, ...] | DataLoader[Any],
    *context: Any,
    objective: Any = None,
    epochs: int,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    optimizer: Callable[[list[Tensor]], Optimizer] | None = None,
    schedule: Callable[[Optimizer], Any] | None = None,
    validation: Any = None,
    patience: int | None = None,
    warm_up: int = 0,
    clip: float | None = None,
    transform: Callable[..., Any] | None = None,
    seed: int | None = None,
    device: torch.device | str | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    progress: bool = True,
    compile: bool = False,
    tensorboard: str | Path | None = None,
    group: ProcessGroup | None = None,
) -> History:
    r"""Train a program pair on data.

    All parameters move together under one optimizer: those of the modules whose methods the
    programs are, those of ``pyro.module`` and those of ``pyro.param``. What is minimised is the
    objective's loss in nats per datum, averaged over the batch.

    Args:
        model: ``model(x, *context)``, a function, a module or a bound method of one.
        guide: ``guide(x, *context)``, likewise.
        x: the data, ``(N, ...)``, or a tuple of tensors that the programs get as one argument, or
            a DataLoader whose items are a tensor or a tuple of the programs' arguments.
        context: further arguments. Tensors with leading dimension N are cut into batches with x,
            anything else is passed as it is.
        objective: any ``pyro.infer.ELBO``; ``Trace_ELBO()`` by default. One of ours begins anew:
            its warm-up and moving averages are the run's. A network baseline is trained along.
        epochs: how often to go through the data.
        batch_size: data in a step; the last batch of an epoch may be smaller. A DataLoader's own
            counts instead.
        learning_rate: of the default optimizer, Adam.
        optimizer: makes another one: ``optimizer(parameters)``.
        schedule: makes a learning-rate schedule, ``schedule(optimizer)``, stepped after each epoch;
            ``ReduceLROnPlateau`` is given the validation loss.
        validation: held-out data, x alone or the tuple ``(x, *context)`` if there is a context.
        patience: stop after so many epochs without a better validation ELBO, and return to the
            best parameters at the end, whether stopped early or not. What is compared is the
            objective's own bound, at β = 1 and without free bits.
        warm_up: epochs of KL warm-up, :math:`\beta_e = \min(1, e / \mathrm{warm\_up})`. Until beta
            is 1, no epoch is the best and patience does not run.
        clip: the largest norm of the gradient (nats per datum); larger ones are scaled down.
        transform: ``transform(x, generator)``, applied to all of x at the start of each epoch, for
            instance to binarise anew. It must draw from the generator it is given.
        seed: makes the run reproducible. By default one is drawn from torch's generator.
        device: where x goes: by default to the parameters. They are never moved.
        checkpoint: a file to save the state to.
        checkpoint_every: how many epochs between savings.
        resume: go on from ``checkpoint``, if it is there: exactly as if never stopped.
        progress: show a bar, on a terminal or in a notebook.
        compile: trace the programs and the objective once for each size of a batch, compile what
            they do, and replay it: the same steps, from the same random numbers, sooner. It takes
            some seconds (``compile_seconds`` of the history), and
            :class:`~pyrovae.inference.NoGain` says where a run was too short for that. Code and
            program are compared when it is made, in every epoch, and after 2, 4, 8, ... steps: so
            what a program stands on besides its data, its parameters and torch's random numbers
            is found out. Such a program, and one whose run depends on values, is run as it is,
            and :class:`~pyrovae.inference.NotCompiled` says why. While one is traced, no other
            thread may run Pyro's.
        tensorboard: a folder for TensorBoard's event files, one row of the history an epoch. Needs
            the package ``tensorboard``.
        group: of processes that make the same call, say ``torch.distributed.group.WORLD`` under
            ``torchrun``. Each takes a part of every batch, and all end with the same parameters:
            those of one process with the same batches, but for the order of sums. Random numbers
            are drawn for the whole batch by everyone. That a batch is the sum of its parts is
            looked at with the first one; where data are looked at across it (batch norm, a moving
            average), the call is refused. The first process alone writes, shows and warns. The
            number of processes may be another one when a run goes on.

    Returns:
        What happened in each epoch. The parameters are left where training brought them. A latent
        that ends up telling nothing about the data is warned of (:class:`PosteriorCollapse`).

    Raises:
        TypeError, ValueError: an argument is not as it must be; raised before any work.
        FileExistsError: ``checkpoint`` exists, and ``resume`` is False.
        NonFiniteLoss: the loss or its gradient is not finite. The parameters are the last good
            ones.
        TrainingInterrupted: Ctrl-C or SIGTERM. The state after the last step is saved.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(loc, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     slope = pyro.param("slope", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))
        >>> x = torch.linspace(-2, 2, 100)
        >>> history = fit(model, guide, x, epochs=20, learning_rate=0.05, seed=0, progress=False)
        >>> history
        History(20 epochs, loss=1...)
    """
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
        schedule=schedule,
        patience=patience,
        warm_up=warm_up,
        clip=clip,
        transform=transform,
        seed=seed,
        checkpoint=as_path("checkpoint", checkpoint),
        checkpoint_every=checkpoint_every,
        resume=resume,
        progress=progress,
        compile=compile,
        tensorboard=as_path("tensorboard", tensorboard),
    )
    objective = Trace_ELBO() if objective is None else objective
    return Training(settings, model, guide, x, context, objective, validation, device, group).run()
