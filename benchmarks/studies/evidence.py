"""Where importance sampling is low: which estimator says so, and at what cost?

A trained VAE is scored on the same test images by every estimator, on one table: digits (8x8,
trained here in seconds) and Fashion-MNIST (dynamically binarised, gated 300-300 nets, z = 40,
thirty epochs: the standard normal row of ``studies.fashion_prior``, whose folder of checkpoints is
taken up where it is there). The sandwich of bidirectional Monte Carlo is that of data simulated
from the model: it tells how far off the annealed numbers can be.

    python -m pyrovae.benchmarks.studies.evidence --output benchmarks/results
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...inference import (
    AnnealedImportanceSampling,
    BidirectionalMonteCarlo,
    BridgeSampling,
    ChiUpperBound,
    EqualLength,
    EvidenceComparison,
    EvidenceUpperBound,
    HarmonicMean,
    ImportanceSampling,
    JackknifeImportanceSampling,
    RefinedImportanceSampling,
    Sandwich,
    SequentialMonteCarlo,
    StudentT,
    ThermodynamicIntegration,
    compare_evidence,
    elbo_surgery,
    fit,
    inference_gaps,
)
from ...inference.information import InferenceGaps
from ...models import VAE
from ..datasets import load
from ..machine import describe_machine, keep
from ..zoo import vae
from .fashion_prior import train as train_fashion

ESTIMATORS: dict[str, Callable[[], Any]] = {
    "L_5000": ImportanceSampling,
    "L_5000, PSIS": lambda: ImportanceSampling(smooth=True),
    "L_5000, Student-t": lambda: ImportanceSampling(proposal=StudentT(5.0, 1.1)),
    "jackknife": JackknifeImportanceSampling,
    "refined": RefinedImportanceSampling,
    "refined, full rank": lambda: RefinedImportanceSampling(full_rank=True),
    "AIS from the guide": lambda: AnnealedImportanceSampling(num_temperatures=400),
    "AIS from the prior": lambda: AnnealedImportanceSampling(
        num_temperatures=800, start="prior", schedule=EqualLength()
    ),
    "SMC": lambda: SequentialMonteCarlo(num_chains=128, num_temperatures=50),
    "bridge": BridgeSampling,
    "TI": ThermodynamicIntegration,
    "CUBO": ChiUpperBound,
    "EUBO": EvidenceUpperBound,
    "harmonic mean": HarmonicMean,
}


def digits(folder: Path) -> tuple[VAE, Tensor]:
    """A VAE of digits, and the test images."""
    data = load("digits")
    torch.manual_seed(0)
    model = vae(data.train, latent_dim=8, hidden=(200, 200))
    fit(
        model.model,
        model.guide,
        data.train,
        epochs=300,
        batch_size=100,
        transform=data.transform,
        seed=0,
        checkpoint=folder / "evidence-digits.safetensors",
        resume=True,
    )
    return model, data.test


def fashion(folder: Path) -> tuple[VAE, Tensor]:
    """A VAE of Fashion-MNIST, and the test images."""
    data = load("fashion-mnist")
    model, _, _ = train_fashion("standard normal", data, 30, 0, folder)
    return model, data.test


MODELS: dict[str, Callable[[Path], tuple[VAE, Tensor]]] = {"digits": digits, "fashion": fashion}


def score(
    model: VAE, x: Tensor, seed: int, folder: Path, name: str
) -> tuple[EvidenceComparison, Sandwich, InferenceGaps]:
    """Every estimator on the same images; each goes on where it was interrupted."""
    found = {}
    for label, make in ESTIMATORS.items():
        began = time.perf_counter()
        safe = label.replace(" ", "-").replace(",", "")
        settings = {"seed": seed, "checkpoint": folder / f"evidence-{name}-{safe}.pt"}
        estimator = make()
        estimator = type(estimator)(**{**vars(estimator), **settings})
        found[label] = estimator(model.model, model.guide, x)
        print(f"{name}: {label} {time.perf_counter() - began:.0f} s: {found[label]}", flush=True)
    bdmc = BidirectionalMonteCarlo(num_temperatures=400, seed=seed)
    sandwich = bdmc(model.model, model.guide, x)
    gaps = inference_gaps(found["refined"], found["AIS from the guide"])
    return compare_evidence(**found), sandwich, gaps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="for checkpoints")
    parser.add_argument("--output", type=Path, help="a folder for the table and the raw numbers")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    for name in options.models:
        began = time.perf_counter()
        model, test = MODELS[name](options.folder)
        chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(options.seed))
        x = test[chosen[: options.images]]
        comparison, sandwich, gaps = score(model, x, options.seed, options.folder, name)
        surgery = elbo_surgery(model.model, model.guide, test[:1000], seed=options.seed)
        seconds = time.perf_counter() - began
        command = (
            f"python -m pyrovae.benchmarks.studies.evidence --models {name} "
            f"--images {options.images} --seed {options.seed}"
        )
        text = "\n\n".join(
            [
                f"# Evidence of a VAE of {name}, {len(x)} test images",
                f"```\n{comparison}\n```",
                f"On data simulated from the model: {sandwich}",
                f"{gaps}",
                f"{surgery}",
                f"`{command}`, {seconds:.0f} s with training, {machine['summary']}\n",
            ]
        )
        print(text)
        if options.output is not None:
            dataset = comparison.to_dataset()
            record = {
                "command": command,
                "machine": machine,
                "images": chosen[: options.images].tolist(),
                "verdict": comparison.verdict(),
                "sandwich": {"gap": sandwich.gap.tolist(), "mean": sandwich.mean_gap()},
                "gaps": {g: gaps.mean(g) for g in ("approximation", "amortisation")},
                "estimates": {
                    str(one): {
                        key: dataset[key].sel(estimate=one).values.tolist()
                        for key in dataset.data_vars
                    }
                    for one in dataset["estimate"].values
                },
                "provenance": {n: dict(e.provenance) for n, e in comparison.estimates.items()},
            }
            keep(options.output, f"evidence-{name}", text, record)


if __name__ == "__main__":
    main()
