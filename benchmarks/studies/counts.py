"""Are the zeros of single-cell counts more than a negative binomial explains?

Two VAEs of 765 genes in 700 blood cells, alike but for the likelihood: negative binomial, and the
same with zeros added. Encoders see log(1 + x), decoders share out a cell's total, each gene has a
dispersion of its own, as in *Deep generative modeling for single-cell transcriptomics* (Lopez,
Regier, Cole, Jordan and Yosef, 2018). Each is trained from several seeds; what is compared is log
p(x | total) of held-out cells, cell by cell, by annealed importance sampling: k̂ warns of what the
encoder alone, which saw only 500 cells, can estimate.

    python -m pyrovae.benchmarks.studies.counts --output benchmarks/results
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...inference import HMC, AnnealedImportanceSampling, Estimate, ImportanceSampling, fit
from ...models import VAE
from ...models.likelihoods import (
    LearnedScale,
    NegativeBinomial,
    ZeroInflatedNegativeBinomial,
)
from ...models.nets import MLP, WithoutContext
from ...models.posteriors import DiagonalNormal
from ...models.priors import StandardNormal
from ..datasets import Counts, load_counts
from ..diagnostics import active_units, posterior_means
from ..machine import describe_machine, keep
from ..pictures import latent_space

LATENT_DIM, HIDDEN = 10, (128,)
KINDS = {"negative binomial": NegativeBinomial, "zero-inflated": ZeroInflatedNegativeBinomial}


class LogCounts(nn.Module):
    """log(1 + x), which counts of any size enter a network as."""

    def forward(self, x: Tensor) -> Tensor:
        return x.log1p()


def build(kind: str, num_genes: int) -> VAE:
    """A VAE whose last context is the cell's total."""
    encoder = nn.Sequential(LogCounts(), MLP(num_genes, 2 * LATENT_DIM, HIDDEN, nn.ReLU))
    outputs = num_genes if kind == "negative binomial" else 2 * num_genes
    decoder = MLP(LATENT_DIM, outputs, HIDDEN, nn.ReLU)
    dispersion = LearnedScale((num_genes,))
    return VAE(
        StandardNormal(LATENT_DIM),
        DiagonalNormal(WithoutContext(encoder)),
        KINDS[kind](decoder, dispersion=dispersion, size="total"),
    )


def train(kind: str, cells: Counts, epochs: int, seed: int) -> tuple[VAE, int]:
    """Returns the model and how many epochs it took."""
    torch.manual_seed(seed)
    data = cells.data
    vae = build(kind, data.train.shape[1])
    history = fit(
        vae.model,
        vae.guide,
        data.train,
        totals(data.train),
        epochs=epochs,
        batch_size=50,
        validation=(data.validation, totals(data.validation)),
        patience=50,
        seed=seed,
        progress=False,
    )
    return vae.eval(), len(history)


def totals(x: Tensor) -> Tensor:
    """What was read of the genes that are kept, ``(N, 1)``."""
    return x.sum(-1, keepdim=True)


def score(vae: VAE, x: Tensor, num_samples: int, seed: int) -> tuple[Estimate, Estimate]:
    """By importance sampling and by annealed chains."""
    sampled = ImportanceSampling(num_samples=num_samples, seed=seed)
    annealed = AnnealedImportanceSampling(
        num_chains=16, num_temperatures=100, kernel=HMC(num_leapfrog=5), seed=seed
    )
    return (
        sampled(vae.model, vae.guide, x, totals(x)),
        annealed(vae.model, vae.guide, x, totals(x)),
    )


def table(rows: list[dict[str, Any]], gains: list[dict[str, float]]) -> str:
    """Markdown: one line for each likelihood and seed, and what the zeros gain."""
    lines = [
        "| likelihood | seed | epochs | test ELBO | L_K ± Monte Carlo | k̂ too high "
        "| log p(x \\| total) ≥, by AIS, ± Monte Carlo ± test set | active units |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        lines.append(
            f"| {one['kind']} | {one['seed']} | {one['epochs']} | {one['elbo']:.2f} "
            f"| {one['sampled']:.2f} ± {one['sampled_stderr']:.2f} "
            f"| {one['khat_above_threshold']:.0%} "
            f"| {one['log_p']:.2f} ± {one['monte_carlo_stderr']:.2f} ± {one['data_stderr']:.2f} "
            f"| {one['active_units']} |"
        )
    lines.append("\n| seed | zero-inflated − negative binomial, paired ± test set |\n|---|---|")
    lines += [f"| {i} | {g['mean']:+.2f} ± {g['stderr']:.2f} |" for i, g in enumerate(gains)]
    mean = sum(g["mean"] for g in gains) / len(gains)
    if len(gains) > 1:
        spread = math.sqrt(sum((g["mean"] - mean) ** 2 for g in gains) / (len(gains) - 1))
        lines.append(f"| all | {mean:+.2f} ± {spread / math.sqrt(len(gains)):.2f} (seeds) |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a folder for table, numbers and a picture")
    options = parser.parse_args()
    cells = load_counts()
    test = cells.data.test
    rows: list[dict[str, Any]] = []
    gains: list[dict[str, float]] = []
    means: dict[str, Tensor] = {}
    for seed in range(options.seeds):
        estimates = []
        for kind in KINDS:
            vae, epochs = train(kind, cells, options.epochs, seed)
            sampled, annealed = score(vae, test, options.samples, seed)
            estimates.append(annealed.log_evidence.double())
            mean, found = annealed.mean(), posterior_means(vae.posterior, test)
            means.setdefault(kind, posterior_means(vae.posterior, cells.data.train))
            rows.append(
                {
                    "kind": kind,
                    "seed": seed,
                    "epochs": epochs,
                    "elbo": sampled.mean_elbo().value,
                    "sampled": sampled.mean().value,
                    "sampled_stderr": sampled.mean().monte_carlo_stderr,
                    "log_p": mean.value,
                    "monte_carlo_stderr": mean.monte_carlo_stderr,
                    "data_stderr": mean.data_stderr,
                    "khat_above_threshold": sampled.mean().unreliable,
                    "active_units": active_units(found),
                }
            )
        away = estimates[1] - estimates[0]
        gains.append(
            {"mean": float(away.mean()), "stderr": float(away.std()) / math.sqrt(len(away))}
        )
    print(table(rows, gains))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        labels = cells.data.train_labels
        assert labels is not None
        latent_space(
            means,
            labels,
            options.output / "counts-latent-space.png",
            what="cells",
            names=cells.kinds,
        )
        machine = describe_machine()
        command = (
            f"python -m pyrovae.benchmarks.studies.counts --epochs {options.epochs} "
            f"--samples {options.samples} --seeds {options.seeds}"
        )
        text = (
            f"{table(rows, gains)}\n\nNats per cell of {test.shape[1]} genes, given the total of "
            f"its counts; K = {options.samples} on {len(test)} held-out cells. `{command}`: "
            f"{machine['summary']}\n"
        )
        record = {"command": command, "machine": machine, "rows": rows, "gains": gains}
        keep(options.output, "counts", text, record)


if __name__ == "__main__":
    main()
