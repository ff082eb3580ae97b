"""``pyrovae``: the command line.

Its commands parse what was typed, call the functions that do the work, and print. What a user can
have got wrong is told in one line on stderr; a fault of ours shows its traceback.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec

import typer

from ..inference import NonFiniteLoss, ProgramError, objectives
from ..inference.tables import aligned, table
from .bench import Bench, preview, run, shipped
from .claims import CLAIMS, claims
from .datasets import NAMES, DatasetError, available
from .demo import EPOCHS, demo
from .factories import FactoryError
from .gallery import gallery
from .options import parse_options
from .pairs import find_device
from .report import report
from .runs import Settings, default_output, going_on, open_run
from .schedules import SCHEDULES
from .scoring import ESTIMATORS, NUM_SAMPLES, Question, evidence, summary
from .speed import PARTS, bench
from .speed.bench import ROUNDS
from .torchrun import joined
from .training import Stopped, Trained, go_on, resume, train
from .zoo import MODELS

app = typer.Typer(
    name="pyrovae",
    help="Variational autoencoders as Pyro programs: train them, and know their log p(x).",
    epilog="PYROVAE_TRACEBACK=1 in the environment shows where an error comes from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
P = ParamSpec("P")
OWN = "your own as package.module:factory"
DEFAULTS = Settings()
ASKED = Question()
# always the user's or the machine's to mend; ValueError and TypeError only when we raised them
TOLD = (DatasetError, FactoryError, ProgramError, NonFiniteLoss, OSError)


def told(function: Callable[P, None]) -> Callable[P, None]:
    """A command whose errors are told in a line or two instead of a traceback."""

    @functools.wraps(function)
    def telling(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with warnings.catch_warnings():
                # Pyro's warning of a loss that is not finite: the error that follows says more
                warnings.filterwarnings("ignore", "Encountered ", UserWarning)
                function(*args, **kwargs)
            sys.stdout.flush()
        except Stopped as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail("interrupted", 130)
        except BrokenPipeError:
            # whoever read our output has enough; nothing may be flushed to them any more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except (*TOLD, ValueError, TypeError, ModuleNotFoundError) as error:
            if os.environ.get("PYROVAE_TRACEBACK"):
                traceback.print_exc()
            elif not (isinstance(error, TOLD) or _is_ours(error)):
                raise
            _fail(_message(error), 1)

    return telling


def _fail(message: str, code: int) -> NoReturn:
    print(f"pyrovae: {message}", file=sys.stderr)
    raise typer.Exit(code)


def _is_ours(error: BaseException) -> bool:
    """Whether it was raised in this package, on purpose then, and not in the code it called."""
    frames = list(traceback.walk_tb(error.__traceback__))
    package = __name__.partition(".")[0]
    return bool(frames) and frames[-1][0].f_globals.get("__name__", "").startswith(f"{package}.")


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
        return f"{error.filename}: {text}" if error.filename is not None else text
    # Pyro adds the shapes of the trace, lines of them
    return str(error).partition("\nTrace Shapes:")[0].rstrip()


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pyrovae {importlib.metadata.version('pyrovae')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _option(text: str, default: object = None) -> Any:
    """An option that knows whether it was given: None stands for the default that help shows."""
    return typer.Option(help=text if default is None else f"{text} [default: {default}]")


def _pairs(flag: str, of: str) -> Any:
    return typer.Option(flag, metavar="KEY=VALUE", help=f"Option of {of}; may be repeated.")


Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Trace the programs once and run compiled code. [default: no-compile]",
    ),
]
DataFolder = Annotated[
    Path | None,
    typer.Option(help="Folder that holds the data files; else PYROVAE_DATA, else a download."),
]


@app.command("demo")
@told
def _demo(
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to make. [default: first free of runs/demo, runs/demo-2, ...]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Makes the numbers reproducible.")] = 0,
    device: Device = "auto",
    epochs: Annotated[int, typer.Option(min=1, help="At most so many epochs.")] = EPOCHS,
) -> None:
    """Train two VAEs on digits, print one table, and write pictures."""
    demo(output, seed=seed, device=device, epochs=epochs)


@app.command("train")
@told
def _train(
    data: Annotated[str | None, _option(f"{', '.join(NAMES)}, or {OWN}.", DEFAULTS.data)] = None,
    model: Annotated[str | None, _option(f"{', '.join(MODELS)}, or {OWN}.", DEFAULTS.model)] = None,
    option: Annotated[list[str] | None, _pairs("--option", "the model's factory")] = None,
    objective: Annotated[
        str | None,
        _option(
            f"{', '.join(objectives.named.NAMES)}, an ELBO of pyro.infer by its name, or {OWN}.",
            DEFAULTS.objective,
        ),
    ] = None,
    objective_option: Annotated[
        list[str] | None, _pairs("--objective-option", "the objective")
    ] = None,
    epochs: Annotated[int | None, _option("At most so many.", DEFAULTS.epochs)] = None,
    batch_size: Annotated[int | None, _option("Data in a step.", DEFAULTS.batch_size)] = None,
    learning_rate: Annotated[float | None, _option("Of Adam.", DEFAULTS.learning_rate)] = None,
    warm_up: Annotated[
        int | None, _option("Epochs in which the weight of the KL rises to 1.", DEFAULTS.warm_up)
    ] = None,
    patience: Annotated[
        int | None,
        _option("Stop after so many epochs without a better validation ELBO; keep the best."),
    ] = None,
    clip: Annotated[float | None, _option("Largest norm of a gradient.")] = None,
    schedule: Annotated[
        str | None, _option(f"Of the learning rate: {', '.join(SCHEDULES)}, or {OWN}.")
    ] = None,
    seed: Annotated[int | None, _option("Makes the run reproducible.", DEFAULTS.seed)] = None,
    device: Annotated[str | None, _option("auto, cpu or cuda.", DEFAULTS.device)] = None,
    binarise: Annotated[
        bool | None,
        typer.Option(
            "--binarise/--no-binarise", help="Built-in images as bits, or grey. [default: binarise]"
        ),
    ] = None,
    compile_: Compile = None,
    data_folder: DataFolder = None,
    tensorboard: Annotated[
        bool | None,
        typer.Option("--tensorboard/--no-tensorboard", help="Log to RUN/tensorboard, too."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Run folder. [default: runs/DATA-MODEL]")
    ] = None,
    resume_: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --output, with its settings.")
    ] = False,
) -> None:
    """Train a model, built in or your own, into a run folder.

    torchrun --nproc-per-node N -m pyrovae train ... shares each batch out among N processes.
    """
    given: dict[str, Any] = {
        "data": data,
        "model": model,
        "options": None if option is None else parse_options(option),
        "objective": objective,
        "objective_options": None if objective_option is None else parse_options(objective_option),
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warm_up": warm_up,
        "patience": patience,
        "clip": clip,
        "schedule": schedule,
        "seed": seed,
        "device": device,
        "binarise": binarise,
        "compile": compile_,
        "data_folder": None if data_folder is None else str(data_folder),
        "tensorboard": tensorboard,
    }
    given = {name: value for name, value in given.items() if value is not None}
    settings = Settings(**given)
    if output is None:
        output = default_output(settings)
    with joined(settings.device) as group:
        if resume_:
            trained = resume(going_on(open_run(output), given), group=group)
        else:
            trained = train(settings, output, group=group)
        if trained.run.writes:
            _tell_training(trained)


def _tell_training(trained: Trained) -> None:
    run, history, result = trained.run, trained.history, trained.run.result
    assert result is not None
    stopped = ", stopped early" if history.stopped_early else ""
    plural = "" if len(history) == 1 else "s"
    print(f"{len(history)} epoch{plural}{stopped}; {history.seconds.sum():.0f} s")
    objective = run.settings.objective
    bound = "ELBO" if objective == DEFAULTS.objective else f"bound ({objective})"
    print(
        f"validation {bound}: {result['validation_elbo']:.3f} nats per datum, "
        f"at epoch {result['parameters_of_epoch']}, whose parameters are kept"
    )
    print(f"wrote {run.path}: {', '.join(file.name for file in trained.written)}")
    if trained.unsaved is not None:
        print(
            f"no {run.model.name}: {trained.unsaved}; pyrovae evidence calls the factory again and "
            "takes the parameters from the checkpoint"
        )
    print(f"next: pyrovae evidence {shlex.quote(str(run.path))}")


@app.command("evidence")
@told
def _evidence(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    num_samples: Annotated[
        int | None,
        _option("K, per datum, of estimators that have one; others by --option.", NUM_SAMPLES),
    ] = None,
    estimator: Annotated[
        str, typer.Option(help=f"{', '.join(ESTIMATORS)}, or {OWN}.")
    ] = ASKED.estimator,
    option: Annotated[list[str] | None, _pairs("--option", "the estimator")] = None,
    split: Annotated[str, typer.Option(help="test or validation.")] = ASKED.split,
    subset: Annotated[
        int | None, typer.Option(help="Only so many data, drawn at random by --subset-seed.")
    ] = None,
    subset_seed: Annotated[int, typer.Option(help="Which ones.")] = ASKED.subset_seed,
    seed: Annotated[int, typer.Option(help="Of the estimator's draws.")] = ASKED.seed,
    device: Device = ASKED.device,
    compile_: Compile = None,
    data_folder: DataFolder = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The result's file. [default: RUN/evidence-SETTINGS.nc]"),
    ] = None,
) -> None:
    """Estimate log p(x) of held-out data under the model of a run, with its errors."""
    question = Question(
        estimator=estimator,
        num_samples=num_samples,
        options=parse_options(option or ()) | ({} if compile_ is None else {"compile": compile_}),
        split=split,
        subset=subset,
        subset_seed=subset_seed,
        seed=seed,
        device=device,
        data_folder=None if data_folder is None else str(data_folder),
    )
    run = open_run(run_folder)
    if run.result is None:
        print(
            f"pyrovae: {run.path} is not finished: scoring its last checkpoint; {go_on(run)}",
            file=sys.stderr,
        )
    answer = evidence(run, question, output)
    print(f"{run.path}: {run.settings.model} on {run.settings.data}")
    print(summary(answer, question))
    print(f"wrote {answer.file}")


@app.command("pictures")
@told
def _pictures(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    device: Device = "auto",
    output: Annotated[
        Path | None, typer.Option(help="Folder to make. [default: RUN/pictures]")
    ] = None,
) -> None:
    """Draw what the model of a run has learned: samples, reconstructions, walks, codes."""
    written = gallery(open_run(run_folder), output, seed=seed, device=device)
    print("\n".join(aligned({str(file): what for file, what in written.items()})))


@app.command("bench")
@told
def _bench(
    study: Annotated[
        str,
        typer.Argument(
            metavar="STUDY", help=f"A study file, a shipped one ({', '.join(shipped())}), or speed."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="The study's folder. [default: runs/STUDY; of speed: nothing is kept]"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and what they will cost; run nothing.")
    ] = False,
    small: Annotated[
        bool, typer.Option("--small", help="The smaller schedule that the study file states.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try cells again that have failed.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Of this machine, of one thread each. [default: its cores]"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers of a Dask cluster on this machine.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of the scheduler of a Dask cluster.")
    ] = None,
    device: Annotated[str | None, _option("auto, cpu or cuda; of speed: cpu.", "auto")] = None,
    data_folder: DataFolder = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help=f"Of speed: of {', '.join(PARTS)}; may be repeated."),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Of speed: in each, all contenders have a turn.")
    ] = ROUNDS,
) -> None:
    """Run a study: train and score every cell of its grid, once. Or time this machine: speed."""
    if study == "speed":
        bench(part or tuple(PARTS), rounds, str(find_device(device or "cpu")), output)
        return
    if sum(one is not None for one in (processes, workers, scheduler)) > 1:
        raise ValueError("choose one of --processes, --workers and --scheduler")
    asked = Bench(
        study,
        output,
        device or "auto",
        None if data_folder is None else str(data_folder),
        retry,
        processes,
        workers,
        scheduler,
        small,
    )
    if dry_run:
        preview(asked)
    elif run(asked):
        raise typer.Exit(1)


@app.command("report")
@told
def _report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A study's folder.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for the report. [default: FOLDER]")
    ] = None,
) -> None:
    """Write a study's report: one page, its twin in Markdown, figures and LaTeX tables."""
    written = report(folder, output)
    print(f"wrote {written[0]}")
    print(f"beside it: {', '.join(str(f.relative_to(written[0].parent)) for f in written[1:])}")


@app.command("claims")
@told
def _claims(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CLAIM]...", help=f"Of {', '.join(c.name for c in CLAIMS)}."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for claims.md and claims.json.")
    ] = None,
) -> None:
    """Measure what the derivation of the VAE claims; exit code 1 where a claim does not hold."""
    if not claims(names, output):
        raise typer.Exit(1)


@app.command("datasets")
@told
def _datasets(data_folder: DataFolder = None) -> None:
    """List the built-in data sets, and where each would be taken from."""
    rows = [
        (
            one.name,
            *(f"{size:,}" for size in one.sizes),
            "x".join(str(side) for side in one.shape),
            "dynamic" if one.dynamic else "static",
            one.where,
        )
        for one in available(data_folder)
    ]
    headers = ("name", "train", "validation", "test", "shape", "binarisation", "where")
    print(table(headers, rows, left=(0, 5, 6)))
