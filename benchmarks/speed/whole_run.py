"""What ``compile=True`` makes of a whole training run, and of its result.

The standard normal row of ``studies.fashion_prior``, for thirty epochs: gated 300-300 nets, z = 40,
Fashion-MNIST binarised anew each epoch, batches of 100, validation after every epoch. Each seed is
run without and with ``compile=True``, in turn, and log p(x) of 1,000 test images estimated by
importance sampling (K = 1,000). The same seed draws the same numbers either way; but rounding
differs, and so small a difference grows. So the results are held against what another seed changes.

    python -m pyrovae.benchmarks.speed.whole_run --output benchmarks/results
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import torch

from ...inference import ImportanceSampling, fit
from ..datasets import Dataset, load
from ..machine import clock, describe_machine, keep, suffix
from ..zoo import gated_vae

NUM_SAMPLES, NUM_TEST = 1000, 1000


def run(data: Dataset, epochs: int, seed: int, compiled: bool, device: str) -> dict[str, Any]:
    """Seconds of a run, its compilation included, and how good the model is, in nats."""
    torch.manual_seed(seed)
    vae = gated_vae(data.train, latent_dim=40, hidden=(300, 300)).to(device)
    began = clock(device)
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
        progress=False,
        compile=compiled,
    )
    seconds = clock(device) - began
    test = data.test[:NUM_TEST]
    score = ImportanceSampling(NUM_SAMPLES, seed=0, compile=True)(vae.model, vae.guide, test).mean()
    return {
        "seed": seed,
        "compiled": compiled,
        "seconds": seconds,
        "compile_seconds": history.compile_seconds,
        "epoch_seconds": history.seconds.tolist(),
        "validation_elbo": float(history.validation_elbo[-1]),
        "log_p": score.value,
        "monte_carlo_stderr": score.monte_carlo_stderr,
    }


def table(found: list[dict[str, Any]]) -> str:
    """The runs, their ratio, and what compiling and what another seed changes, as Markdown."""
    lines = [
        "| seed | compiled | seconds | of these compiling | validation ELBO "
        "| test log p(x) ± Monte Carlo |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one['seed']} | {'yes' if one['compiled'] else 'no'} | {one['seconds']:.1f} "
        f"| {one['compile_seconds']:.1f} | {one['validation_elbo']:.2f} "
        f"| {one['log_p']:.2f} ± {one['monte_carlo_stderr']:.2f} |"
        for one in found
    ]
    pairs = list(zip(found[::2], found[1::2], strict=True))
    ratio = statistics.median(plain["seconds"] / compiled["seconds"] for plain, compiled in pairs)
    lines += ["", f"Not compiled takes {ratio:.2f} times as long (median over seeds)."]
    for name, what in (("validation_elbo", "validation ELBO"), ("log_p", "test log p(x)")):
        moved = [compiled[name] - plain[name] for plain, compiled in pairs]
        error = statistics.stdev(moved) / math.sqrt(len(moved))
        of_seeds = statistics.stdev([plain[name] for plain, _ in pairs])
        lines.append(
            f"Compiling moves the {what} by {statistics.mean(moved):+.3f} ± {error:.3f} nats; "
            f"another seed by {math.sqrt(2) * of_seeds:.3f} (standard deviation of a difference)."
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="a folder for the table and the raw numbers")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds should be 2 or more, for an error; found {options.seeds}")
    data = load("fashion-mnist")
    found: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for compiled in (False, True):
            found.append(run(data, options.epochs, seed, compiled, options.device))
            print(found[-1], flush=True)
    print(table(found))
    if options.output is not None:
        machine = describe_machine()
        command = (
            f"python -m pyrovae.benchmarks.speed.whole_run --epochs {options.epochs} "
            f"--seeds {options.seeds} --device {options.device}"
        )
        text = f"{table(found)}\n\n`{command}`, {machine['summary']}\n"
        record = {"command": command, "machine": machine, "runs": found}
        keep(options.output, f"whole-run{suffix(options.device)}", text, record)


if __name__ == "__main__":
    main()
