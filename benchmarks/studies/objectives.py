"""Which ELBO variant trains the best model, at the same number of decoder evaluations per datum?

Twelve objectives, each with M K = 8 particles, train the same VAE (z = 16, tanh nets 100-100) on
digits whose bits are drawn anew in every epoch: Adam at 2e-3, batches of 100, the same number of
epochs for all. There is no early stopping: ``fit`` validates on the objective's own bound, which
differs between them, so that it would stop each by another rule. Runs of one seed begin with the
same parameters and see the same batches of the same bits. What is compared is log p(x) of the test
images, by importance sampling, which is no objective's own bound.

    python -m pyrovae.benchmarks.studies.objectives --output benchmarks/results

A finished run is kept in the folder of checkpoints and not run again when the study is started
again. Steps are timed at the end, in turn and on one thread: the runs get in each other's way.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...inference import (
    CIWAE,
    ELBO,
    IWAE,
    KL,
    MIWAE,
    PIWAE,
    RWS,
    STL,
    TVO,
    BetaVAE,
    DReG,
    FreeBits,
    History,
    ImportanceSampling,
    MonteCarloObjective,
    NonFiniteLoss,
    Renyi,
    fit,
)
from ...inference.files import write_atomically
from ...models import VAE
from ..datasets import load
from ..diagnostics import active_units, posterior_means
from ..machine import describe_machine
from ..zoo import vae
from .objectives_table import REFERENCE, summarise, table, write

PARTICLES = 8
VARIANTS: dict[str, Callable[[], MonteCarloObjective]] = {
    REFERENCE: partial(ELBO, PARTICLES),
    "STL": partial(STL, PARTICLES),
    "BetaVAE(2)": partial(BetaVAE, 2.0, PARTICLES),
    "FreeBits(0.1)": partial(ELBO, PARTICLES, kl=KL(free_bits=FreeBits(0.1))),
    "IWAE": partial(IWAE, PARTICLES),
    "MIWAE(4x2)": partial(MIWAE, 4, PARTICLES // 4),
    "PIWAE(4x2)": partial(PIWAE, 4, PARTICLES // 4),
    "CIWAE(0.5)": partial(CIWAE, 0.5, PARTICLES),
    "DReG": partial(DReG, PARTICLES),
    "Renyi(0.5)": partial(Renyi, 0.5, PARTICLES),
    "TVO(5)": partial(TVO, 5, PARTICLES),
    "RWS": partial(RWS, PARTICLES),
}
MODEL: dict[str, Any] = {"latent_dim": 16, "hidden": [100, 100]}
LEARNING_RATE, BATCH_SIZE, NUM_SAMPLES = 2e-3, 100, 5000
TIMED_EPOCHS = 6  # the first, in which Pyro checks its arguments, does not count


def train(name: str, seed: int, epochs: int, *, validate: bool = True) -> tuple[VAE, History]:
    """A model trained under the variant called ``name``."""
    digits = load("digits")
    torch.manual_seed(seed)
    built = vae(digits.train, **MODEL)
    history = fit(
        built.model,
        built.guide,
        digits.train,
        objective=VARIANTS[name](),
        epochs=epochs,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        transform=digits.transform,
        validation=digits.validation if validate else None,
        seed=seed,
        progress=False,
    )
    return built, history


def settings_of(name: str, seed: int, epochs: int) -> dict[str, Any]:
    """What makes a run the run it is: kept beside its numbers, and compared with them."""
    return {
        "variant": name,
        "objective": repr(VARIANTS[name]()),
        "particles": PARTICLES,
        "seed": seed,
        "epochs": epochs,
        "model": MODEL,
        "learning_rate": LEARNING_RATE,
        "batch_size": BATCH_SIZE,
        "num_samples": NUM_SAMPLES,
    }


def run(name: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train and score one model. Its draws for scoring are those of every variant's same seed."""
    try:
        trained, history = train(name, seed, epochs)
    except NonFiniteLoss as error:  # which does not know what was trained
        raise RuntimeError(f"{name}, seed {seed}: {error}") from error
    digits = load("digits")
    score = ImportanceSampling(num_samples=NUM_SAMPLES, seed=seed)
    estimate = score(trained.model, trained.guide, digits.test)
    log_p, elbo = estimate.mean(), estimate.mean_elbo()
    return {
        **settings_of(name, seed, epochs),
        "test_log_p": log_p.value,
        "monte_carlo_stderr": log_p.monte_carlo_stderr,
        "data_stderr": log_p.data_stderr,
        "test_elbo": elbo.value,
        "gap": log_p.value - elbo.value,
        "khat_too_high": log_p.unreliable,
        "active_units": active_units(posterior_means(trained.posterior, digits.validation)),
        "seconds": float(history.seconds.sum()),
        "best_epoch_by_own_bound": history.best_epoch,
        "own_bound_by_epoch": [round(float(value), 4) for value in history.validation_elbo],
        "log_p_by_image": [round(float(value), 4) for value in estimate.log_evidence],
    }


def run_path(folder: Path, name: str, seed: int) -> Path:
    """Where a run is kept."""
    return folder / f"run-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{seed}.json"


def run_and_keep(name: str, seed: int, epochs: int, folder: Path) -> str:
    """Write a run to its file; returns a line about it."""
    done = run(name, seed, epochs)
    write_atomically(run_path(folder, name, seed), json.dumps(done).encode())
    return f"{name}, seed {seed}: log p(x) {done['test_log_p']:.2f} after {done['seconds']:.0f} s"


def read_run(name: str, seed: int, epochs: int, folder: Path) -> dict[str, Any] | None:
    """A run that was kept, or None.

    Raises:
        SystemExit: it was made with other settings.
    """
    path = run_path(folder, name, seed)
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    for key, value in settings_of(name, seed, epochs).items():
        if (found := kept.get(key)) != value:
            raise SystemExit(f"{path} has {key} {found}, not {value}: name other --checkpoints")
    return kept


def run_missing(jobs: Sequence[tuple[str, int, int, Path]], workers: int) -> Iterator[str]:
    """Run what was not run yet; yields a line about each as it ends.

    Raises:
        ExceptionGroup: what went wrong, once all the others are done.
    """
    missing = [job for job in jobs if read_run(*job) is None]
    if workers == 1:
        for job in missing:
            yield run_and_keep(*job)
        return
    failures: list[Exception] = []
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for future in as_completed([pool.submit(run_and_keep, *job) for job in missing]):
            try:
                yield future.result()
            except Exception as error:  # whatever it is, the others go on; it is raised below
                failures.append(error)
                yield f"failed: {error}"
    finally:
        pool.shutdown(cancel_futures=True)
    if failures:
        raise ExceptionGroup("runs that failed, and will be run again", failures)


def time_steps(names: Sequence[str], rounds: int, folder: Path) -> dict[str, Any]:
    """Milliseconds per step by variant, taken in turn ``rounds`` times; kept like the runs."""
    path = folder / "timing.json"
    settings = {"variants": list(names), "rounds": rounds, "epochs": TIMED_EPOCHS}
    if path.exists() and (kept := json.loads(path.read_text()))["settings"] == settings:
        return kept
    steps = -(-len(load("digits").train) // BATCH_SIZE)
    times: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(rounds):
        for name in names:
            _, history = train(name, seed, TIMED_EPOCHS, validate=False)
            times[name].append(1000 * statistics.median(history.seconds[1:].tolist()) / steps)
    timing = {"settings": settings, "machine": describe_machine(), "milliseconds": times}
    write_atomically(path, json.dumps(timing).encode())
    return timing


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3, help="of timing")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--output", type=Path, help="a folder for table, numbers and picture")
    options = parser.parse_args(arguments)
    if REFERENCE not in options.variants:
        parser.error(f"--variants: {REFERENCE} must be among them, which others are compared to")
    options.checkpoints.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    jobs = [
        (name, seed, options.epochs, options.checkpoints)
        for seed in options.seeds
        for name in options.variants
    ]
    for line in run_missing(jobs, options.workers):
        print(line, flush=True)
    timing = time_steps(options.variants, options.rounds, options.checkpoints)
    runs = [done for job in jobs if (done := read_run(*job)) is not None]
    rows = summarise(runs, timing["milliseconds"])
    print(table(rows))
    if options.output is None:
        return
    command = "python -m pyrovae.benchmarks.studies.objectives"
    command += f" --epochs {options.epochs} --seeds {' '.join(map(str, options.seeds))}"
    if options.variants != list(VARIANTS):
        command += " --variants " + " ".join(f"'{name}'" for name in options.variants)
    write(rows, runs, timing, command, options.output)


if __name__ == "__main__":
    main()
