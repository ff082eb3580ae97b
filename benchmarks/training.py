"""A training run from its settings: data, model and objective by name, `fit`, and what is kept."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro.infer
import torch.distributed

from ..inference import History, TrainingInterrupted, fit, objectives
from ..inference.evidence.estimate import versions
from ..inference.files import write_atomically
from ..models import save
from . import datasets
from .datasets import Dataset
from .hearing import heard
from .options import call, look_up, resolved
from .pairs import Pair, build, find_device, model_options
from .pictures import learning_curve
from .runs import Run, Settings, new_folder
from .schedules import SCHEDULES
from .zoo import MODELS

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

OBJECTIVES: dict[str, Callable[..., Any]] = {
    **{name: getattr(objectives.named, name) for name in objectives.named.NAMES},
    **{
        name: cls
        for name, cls in sorted(vars(pyro.infer).items())
        if isinstance(cls, type) and issubclass(cls, pyro.infer.ELBO) and cls is not pyro.infer.ELBO
    },
}


@dataclass(frozen=True)
class Trained:
    """A finished run: its folder, what was trained on what, and how it went.

    ``unsaved`` says why there is no ``model.safetensors``, where there is none.
    """

    run: Run
    dataset: Dataset
    pair: Pair
    history: History
    unsaved: str | None

    @property
    def written(self) -> list[Path]:
        """The files of the run."""
        run = self.run
        files = [run.path / "run.json", run.checkpoint, run.model, run.history, run.learning_curve]
        return [file for file in files if file.exists()]


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM in training: the message says what is kept, and the command to go on.

    Attributes:
        exit_code: of a shell for a program that this signal ended.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def train(
    settings: Settings,
    output: str | Path,
    progress: bool = True,
    group: ProcessGroup | None = None,
) -> Trained:
    """Train in a new folder.

    Of a group of processes that train together, the first writes.

    Raises:
        FileExistsError: ``output`` holds something.
        DatasetError, FactoryError, ValueError, TypeError, OSError: settings, data or folder are
            not as they must be. Until a step was taken, no folder is left behind.
        NonFiniteLoss: the loss was not finite; the last good state is in the folder.
        Stopped: Ctrl-C.
    """
    with new_folder(output) if _writes(group) else nullcontext(Path(output)) as folder:
        make_objective(settings)
        make_schedule(settings)
        dataset = load_data(settings)
        options = model_options(settings.model, settings.options, dataset.shape)
        if ":" not in settings.model:
            check_bits(settings.model, dataset)
            options = resolved(look_up("model", settings.model, MODELS), options)
        settings = replace(settings, options=options)
        pair = build(settings.model, options, dataset.train, settings.seed)
        run = Run(folder, settings, writes=_writes(group)).write(
            dataset=describe(dataset), versions=versions(), started=_now()
        )
        return _fit(run, dataset, pair, resume=False, progress=progress, group=group)


def _writes(group: ProcessGroup | None) -> bool:
    return group is None or torch.distributed.get_rank(group) == 0


def resume(run: Run, progress: bool = True, group: ProcessGroup | None = None) -> Trained:
    """Go on with a run, exactly as if it had never stopped.

    Raises:
        ValueError: the data are not those that the run began with, or its checkpoint is damaged.
        Stopped: Ctrl-C.
    """
    run = replace(run, writes=_writes(group))
    dataset = load_data(run.settings)
    check_data(run, dataset)
    pair = build(run.settings.model, run.settings.options, dataset.train, run.settings.seed)
    if (done := run.epochs_done()) > run.settings.epochs:
        raise ValueError(
            f"epochs should be at least {done}, as many as {run.path} has behind it; "
            f"found {run.settings.epochs}"
        )
    before = _modified(run.checkpoint)
    try:
        # until training ends again, what counts is the checkpoint
        run = run.write(result=None)
        return _fit(run, dataset, pair, resume=True, progress=progress, group=group)
    except Exception:
        if _modified(run.checkpoint) == before:
            run.write()
        raise


def restore(run: Run, dataset: Dataset) -> Pair:
    """The pair of a run as its checkpoint has it: `fit`, going on for no epoch at all.

    Raises:
        ValueError: no epoch is finished yet, or the checkpoint is damaged.
    """
    done = run.epochs_done()
    if done < 1:
        raise ValueError(f"{run.path} has not finished an epoch: {go_on(run)}")
    pair = build(run.settings.model, run.settings.options, dataset.train, run.settings.seed)
    _call_fit(run, dataset, pair, epochs=done, resume=True, progress=False, logs=False)
    return pair


def make_objective(settings: Settings) -> Any:
    """The objective that the settings name."""
    return call(
        settings.objective,
        look_up("objective", settings.objective, OBJECTIVES),
        options=settings.objective_options,
    )


def make_schedule(settings: Settings) -> Callable[[Any], Any] | None:
    """The learning-rate schedule that the settings name."""
    if settings.schedule is None:
        return None
    return look_up("schedule", settings.schedule, SCHEDULES)


def go_on(run: Run) -> str:
    """How to go on with a run, in words."""
    return f"go on with: pyrovae train --output {shlex.quote(str(run.path))} --resume"


def load_data(settings: Settings) -> Dataset:
    """The data set that the settings name."""
    return datasets.load(
        settings.data,
        folder=settings.data_folder,
        binarise=settings.binarise or ":" in settings.data,
    )


def describe(dataset: Dataset) -> dict[str, Any]:
    """A data set for the record."""
    return {
        "name": dataset.name,
        "sizes": list(dataset.sizes),
        "shape": list(dataset.shape),
        "dynamic": dataset.dynamic,
        "fingerprint": dataset.fingerprint,
    }


def check_bits(model: str, dataset: Dataset) -> None:
    """Raise a ValueError where a built-in model, which is one of bits, would get other values."""
    if not dataset.dynamic:
        for x in (dataset.train, dataset.validation, dataset.test):
            other = x[(x != 0) & (x != 1)]
            if len(other):
                raise ValueError(
                    f"model '{model}' has a Bernoulli likelihood, which takes 0 and 1, but data "
                    f"set '{dataset.name}' holds {other[0]:g}: binarise it (a Dataset with "
                    "dynamic=True does so anew in every epoch), or bring a model of your own"
                )


def check_data(run: Run, dataset: Dataset) -> None:
    """Raise a ValueError where validation and test data are not those the run began with."""
    recorded = run.record.get("dataset", {}).get("fingerprint")
    if recorded != dataset.fingerprint:
        raise ValueError(
            f"data set '{dataset.name}' is not the one {run.path} was trained on: its fingerprint "
            f"should be {recorded}, but is {dataset.fingerprint}"
        )


def _call_fit(
    run: Run,
    dataset: Dataset,
    pair: Pair,
    epochs: int,
    resume: bool,
    progress: bool,
    group: ProcessGroup | None = None,
    logs: bool = True,
) -> History:
    settings = run.settings
    device = find_device(settings.device)
    pair.to(device)
    return fit(
        pair.model,
        pair.guide,
        dataset.train,
        objective=make_objective(settings),
        epochs=epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        validation=dataset.validation,
        patience=settings.patience,
        warm_up=settings.warm_up,
        clip=settings.clip,
        schedule=make_schedule(settings),
        transform=dataset.transform,
        seed=settings.seed,
        # "auto" leaves a program without modules where its parameters are
        device=device if settings.device != "auto" or pair.modules else None,
        checkpoint=run.checkpoint,
        resume=resume,
        progress=progress,
        compile=settings.compile,
        tensorboard=run.tensorboard if settings.tensorboard and logs else None,
        group=group,
    )


def _fit(
    run: Run,
    dataset: Dataset,
    pair: Pair,
    resume: bool,
    progress: bool,
    group: ProcessGroup | None,
) -> Trained:
    told = list(run.record.get("warnings", ()))
    try:
        with heard(told):
            history = _call_fit(run, dataset, pair, run.settings.epochs, resume, progress, group)
    except TrainingInterrupted as stop:
        run.write(warnings=told)
        what = str(stop).partition("; to go on")[0]
        raise Stopped(f"{what}\n{go_on(run)}", 128 + stop.signal) from stop
    if not run.writes:
        return Trained(run, dataset, pair, history, None)
    unsaved = _save_model(run, pair)
    table = history.to_pandas().to_csv()
    write_atomically(run.history, table.encode())
    name = f"{run.settings.model} on {dataset.name}"
    learning_curve({name: history}, run.learning_curve)
    best = len(history) if history.best_epoch is None else history.best_epoch
    kept = best if run.settings.patience is not None else len(history)
    run = run.write(
        warnings=told,
        result={
            "finished": _now(),
            "epochs": len(history),
            "stopped_early": history.stopped_early,
            "parameters_of_epoch": kept,
            "validation_elbo": float(history.validation_elbo[kept - 1]),
            "train_loss": float(history.loss[-1]),
            "seconds": float(history.seconds.sum()),
            "unsaved": unsaved,
        },
    )
    return Trained(run, dataset, pair, history, unsaved)


def _save_model(run: Run, pair: Pair) -> str | None:
    """Write the model where a file alone can bring it back; otherwise say why not."""
    if pair.whole is None:
        return "its programs are not the methods of one module"
    foreign = {type(part) for part in pair.whole.modules() if not _is_known(type(part))}
    if foreign:
        names = ", ".join(sorted(cls.__qualname__ for cls in foreign))
        return f"it is built of classes of your own ({names})"
    try:
        with pair.evaluating():
            save(pair.whole, run.model)
    except TypeError as error:
        return str(error)
    return None


def _is_known(cls: type) -> bool:
    ours = save.__module__.rpartition(".")[0]
    return cls.__module__.startswith((f"{ours}.", "torch.nn."))


def _modified(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.exists() else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
