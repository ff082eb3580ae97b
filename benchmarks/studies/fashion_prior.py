"""What does a learned prior gain on Fashion-MNIST, and how far do thirty epochs get?

Gated 300-300 nets, z = 40, training images binarised anew each epoch, validation and test images
once (seed 777), Adam at 5e-4, batches of 100: the protocol behind the published 228.70 ± 0.15
(standard normal prior) and 227.35 ± 0.05 (VampPrior, 500 pseudo-inputs) nats of Norouzi, Fleet and
Norouzi, *Exemplar VAE*, 2020, which trains with a warm-up of 100 epochs until it stops early. Here
the schedule is short, so the published numbers are where the curves should be heading; the row
says how far they got.

    python -m pyrovae.benchmarks.studies.fashion_prior --output benchmarks/results

A run that was stopped goes on where it was when started again with the same folder of checkpoints.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import torch

from ...inference import Estimate, History, ImportanceSampling, fit
from ...models import VAE
from ..datasets import Dataset, load
from ..diagnostics import active_units, paired_difference, posterior_means
from ..machine import describe_machine, keep
from ..zoo import gated_vae, gated_vamp_vae

PUBLISHED = {"standard normal": (228.70, 0.15), "VampPrior(500)": (227.35, 0.05)}
FACTORIES = {"standard normal": gated_vae, "VampPrior(500)": gated_vamp_vae}
NUM_SAMPLES, NUM_TEST = 1000, 1000


def train(
    name: str, data: Dataset, epochs: int, seed: int, folder: Path
) -> tuple[VAE, History, float]:
    """Train one model, or go on training it; returns it with its history and its seconds."""
    torch.manual_seed(seed)
    vae = FACTORIES[name](data.train, latent_dim=40, hidden=(300, 300))
    history = fit(
        vae.model,
        vae.guide,
        data.train,
        epochs=epochs,
        batch_size=100,
        learning_rate=5e-4,
        transform=data.transform,
        validation=data.validation,
        seed=seed,
        checkpoint=folder / f"fashion-{name.split('(')[0].replace(' ', '-')}-{seed}.safetensors",
        resume=True,
    )
    return vae, history, float(history.to_xarray()["seconds"].sum())


def row(
    name: str, vae: VAE, history: History, seconds: float, estimate: Estimate, data: Dataset
) -> dict[str, Any]:
    """The numbers of one line of the table, in nats."""
    score, elbo = estimate.mean(), estimate.mean_elbo()
    record = history.to_xarray()
    validation = [float(value) for value in record["validation_elbo"]]
    published, spread = PUBLISHED[name]
    return {
        "prior": name,
        "validation_elbo": validation[-1],
        "validation_elbo_by_epoch": validation,
        "train_elbo_by_epoch": [-float(value) for value in record["loss"]],
        "last_5_epochs_gained": validation[-1] - validation[max(len(validation) - 6, 0)],
        "test_elbo": elbo.value,
        "test_log_p": score.value,
        "monte_carlo_stderr": score.monte_carlo_stderr,
        "data_stderr": score.data_stderr,
        "khat_above_threshold": score.unreliable,
        "active_units": active_units(posterior_means(vae.posterior, data.validation)),
        "published_nll": published,
        "published_spread": spread,
        "short_of_published": -score.value - published,
        "training_seconds": seconds,
        "scoring_seconds": estimate.provenance["seconds"],
    }


def table(rows: list[dict[str, Any]], difference: tuple[float, float]) -> str:
    """Markdown: one line per prior, and the paired difference."""
    lines = [
        "| prior | validation ELBO | gained in the last 5 epochs | test ELBO | test log p(x) "
        "± Monte Carlo ± test set | k̂ too high | active units | published −log p(x) | still short "
        "by | training |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        lines.append(
            f"| {one['prior']} | {one['validation_elbo']:.2f} | {one['last_5_epochs_gained']:+.2f} "
            f"| {one['test_elbo']:.2f} | {one['test_log_p']:.2f} ± {one['monte_carlo_stderr']:.2f} "
            f"± {one['data_stderr']:.2f} | {one['khat_above_threshold']:.0%} "
            f"| {one['active_units']} | {one['published_nll']:.2f} ± {one['published_spread']:.2f} "
            f"| {one['short_of_published']:.2f} | {one['training_seconds']:.0f} s |"
        )
    mean, stderr = difference
    lines.append(
        f"\nOn the same {NUM_TEST} test images the VampPrior's log p(x) is higher by "
        f"{mean:.2f} ± {stderr:.2f} nats (paired)."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/fashion-prior"))
    parser.add_argument("--output", type=Path, help="a folder for the table and the raw numbers")
    options = parser.parse_args()
    options.checkpoints.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    data = load("fashion-mnist")
    test = data.subset("test", NUM_TEST, seed=0)
    rows, estimates = [], []
    score = functools.partial(ImportanceSampling, num_samples=NUM_SAMPLES, progress=True)
    for name in FACTORIES:
        vae, history, seconds = train(name, data, options.epochs, options.seed, options.checkpoints)
        estimate = score(seed=options.seed)(vae.model, vae.guide, test)
        rows.append(row(name, vae, history, seconds, estimate, data))
        estimates.append(estimate)
    difference = paired_difference(*estimates)
    print(table(rows, difference))
    if options.output is not None:
        machine = describe_machine()
        command = (
            "python -m pyrovae.benchmarks.studies.fashion_prior "
            f"--epochs {options.epochs} --seed {options.seed}"
        )
        text = (
            f"{table(rows, difference)}\n\n`{command}`: {options.epochs} epochs, seed "
            f"{options.seed}, log p(x) from K = {NUM_SAMPLES} on {NUM_TEST} test images drawn with "
            f"seed 0; {time.perf_counter() - start:.0f} s in all; {machine['summary']}\n"
        )
        record = {"command": command, "machine": machine, "rows": rows, "paired": difference}
        keep(options.output, "fashion-prior", text, record)


if __name__ == "__main__":
    main()
