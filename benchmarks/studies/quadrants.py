"""How well is the rest of a digit predicted from one, two or three of its quadrants?

The task of *Learning structured output representation using deep conditional generative models*
(Sohn, Lee and Yan, 2015), on the static bits of MNIST, with nets of two hidden layers of 500 and 50
latents. The baseline is the same net without a latent: it predicts every pixel by itself, and its
log p(x | y) is exact. A conditional VAE's is estimated, by importance sampling on more images and
by annealed importance sampling on some of them, from the conditional prior on; where the first is
low, the difference shows it.

    python -m pyrovae.benchmarks.studies.quadrants --output benchmarks/results

A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ...inference import AnnealedImportanceSampling, ImportanceSampling, fit
from ...models import ConditionalVAE
from ...models.likelihoods import Bernoulli
from ...models.nets import MLP, EncodedContext
from ...models.posteriors import DiagonalNormal
from ..datasets import Dataset, load
from ..diagnostics import paired_difference
from ..machine import describe_machine, keep
from ..pictures import image_grid

HIDDEN, LATENT_DIM = (500, 500), 50
NUM_TEST, NUM_ANNEALED = 1000, 100
OBSERVED = {1: "the lower left", 2: "the left half", 3: "all but the upper right"}


def observed(quadrants: int) -> Tensor:
    """Which of the 784 pixels are seen."""
    seen = torch.zeros(28, 28, dtype=torch.bool)
    seen[14:, :14] = True
    if quadrants >= 2:
        seen[:14, :14] = True
    if quadrants == 3:
        seen[14:, 14:] = True
    return seen.flatten()


class Independent(nn.Module):
    """The baseline: each pixel by itself, given what is seen."""

    def __init__(self, likelihood: Bernoulli) -> None:
        super().__init__()
        self.likelihood = likelihood

    def model(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.likelihood(y), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """There is nothing to infer."""


def build(kind: str, num_seen: int) -> Independent | ConditionalVAE:
    """The net of the baseline, or the three of the conditional VAE."""
    unseen = 784 - num_seen
    if kind == "baseline":
        return Independent(Bernoulli(MLP(num_seen, unseen, HIDDEN, nn.ReLU)))
    prior = MLP(num_seen, 2 * LATENT_DIM, HIDDEN, nn.ReLU)
    return ConditionalVAE(
        DiagonalNormal(EncodedContext(prior, [nn.Identity()], alone=True)),
        DiagonalNormal(MLP(784, 2 * LATENT_DIM, HIDDEN, nn.ReLU)),
        Bernoulli(MLP(LATENT_DIM + num_seen, unseen, HIDDEN, nn.ReLU)),
        conditional_prior=True,
    )


def train(
    kind: str, quadrants: int, data: Dataset, epochs: int, seed: int, folder: Path, device: str
) -> tuple[Independent | ConditionalVAE, int]:
    """Returns the model and the number of epochs it took."""
    seen = observed(quadrants)
    torch.manual_seed(seed)
    model = build(kind, int(seen.sum())).to(device)
    history = fit(
        model.model,
        model.guide,
        data.train[:, ~seen],
        data.train[:, seen],
        epochs=epochs,
        learning_rate=5e-4,
        validation=(data.validation[:, ~seen], data.validation[:, seen]),
        patience=10,
        seed=seed,
        checkpoint=folder / f"quadrants-{kind}-{quadrants}-{seed}.safetensors",
        resume=True,
    )
    return model.eval(), len(history)


def row(
    quadrants: int,
    models: tuple[Independent, ConditionalVAE],
    data: Dataset,
    num_samples: int,
    temperatures: int,
    seed: int,
    device: str,
) -> dict[str, Any]:
    """The numbers of one line of the table, in nats."""
    baseline, conditional = models
    seen = observed(quadrants)
    test = data.subset("test", NUM_TEST, seed=0).to(device)
    x, y = test[:, ~seen], test[:, seen]
    with torch.no_grad():
        exact = baseline.likelihood(y).log_prob(x).double()
    estimate = ImportanceSampling(num_samples=num_samples, seed=seed, progress=True)(
        conditional.model, conditional.guide, x, y
    )
    some = ImportanceSampling(num_samples=num_samples, seed=seed)(
        conditional.model, conditional.guide, x[:NUM_ANNEALED], y[:NUM_ANNEALED]
    )
    annealed = AnnealedImportanceSampling(
        num_chains=16, num_temperatures=temperatures, start="prior", seed=seed, progress=True
    )(conditional.model, conditional.guide, x[:NUM_ANNEALED], y[:NUM_ANNEALED])
    mean, chains = estimate.mean(), annealed.mean()
    gain = estimate.log_evidence.double().cpu() - exact.cpu()
    raised, error = paired_difference(some, annealed)
    return {
        "quadrants": quadrants,
        "baseline": float(exact.mean()),
        "baseline_stderr": float(exact.std()) / math.sqrt(NUM_TEST),
        "elbo": estimate.mean_elbo().value,
        "log_p": mean.value,
        "monte_carlo_stderr": mean.monte_carlo_stderr,
        "data_stderr": mean.data_stderr,
        "khat_above_threshold": mean.unreliable,
        "gain": float(gain.mean()),
        "gain_stderr": float(gain.std()) / math.sqrt(NUM_TEST),
        "annealed": chains.value,
        "annealed_stderr": chains.monte_carlo_stderr,
        "importance_on_the_same": some.mean().value,
        "annealed_minus_importance": raised,
        "annealed_minus_importance_stderr": error,
        "scoring_seconds": estimate.provenance["seconds"],
        "annealing_seconds": annealed.provenance["seconds"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line for each number of quadrants."""
    lines = [
        "| seen | pixels to predict | baseline log p(x \\| y), exact ± test set | ELBO | "
        "log p(x \\| y) ≥ ± Monte Carlo ± test set | gain (paired) | k̂ too high | "
        f"AIS on {NUM_ANNEALED} ± Monte Carlo | AIS − L_K on these (paired) | epochs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        lines.append(
            f"| {one['quadrants']}: {OBSERVED[one['quadrants']]} "
            f"| {int((~observed(one['quadrants'])).sum())} "
            f"| {one['baseline']:.2f} ± {one['baseline_stderr']:.2f} | {one['elbo']:.2f} "
            f"| {one['log_p']:.2f} ± {one['monte_carlo_stderr']:.2f} ± {one['data_stderr']:.2f} "
            f"| {one['gain']:+.2f} ± {one['gain_stderr']:.2f} "
            f"| {one['khat_above_threshold']:.0%} "
            f"| {one['annealed']:.2f} ± {one['annealed_stderr']:.2f} "
            f"| {one['annealed_minus_importance']:+.2f} ± "
            f"{one['annealed_minus_importance_stderr']:.2f} "
            f"| {' and '.join(map(str, one['epochs']))} |"
        )
    return "\n".join(lines)


@torch.no_grad()
def draw_picture(
    quadrants: int,
    models: tuple[Independent, ConditionalVAE],
    data: Dataset,
    seed: int,
    path: Path,
    device: str,
) -> None:
    """What is seen in grey, and below it the truth, the baseline and draws."""
    baseline, conditional = models
    torch.manual_seed(seed)
    seen = observed(quadrants)
    test = data.subset("test", 10, seed=1)
    y = test[:, seen].to(device)

    def whole(rest: Tensor) -> Tensor:
        image = torch.empty_like(test)
        image[:, seen], image[:, ~seen] = test[:, seen], rest.cpu()
        return image

    blank = torch.full((len(test), int((~seen).sum())), 0.25)
    rows = {
        "seen": whole(blank),
        "truth": test,
        "baseline": whole(baseline.likelihood(y).mean),
    }
    for number in range(1, 5):
        z = conditional._prior(y).sample()
        rows[f"draw {number}"] = whole(conditional.likelihood(z, y).mean)
    title = f"The rest of a digit from {quadrants} quadrant{'s' * (quadrants > 1)}"
    image_grid(rows, data.shape, path, title)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quadrants", type=int, nargs="+", choices=OBSERVED, default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--temperatures", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/quadrants"))
    parser.add_argument("--output", type=Path, help="a folder for table, numbers and pictures")
    options = parser.parse_args()
    options.checkpoints.mkdir(parents=True, exist_ok=True)
    data = load("static-mnist")
    rows = []
    for quadrants in options.quadrants:
        (baseline, first), (conditional, second) = (
            train(
                kind,
                quadrants,
                data,
                options.epochs,
                options.seed,
                options.checkpoints,
                options.device,
            )
            for kind in ("baseline", "conditional")
        )
        assert isinstance(baseline, Independent)
        assert isinstance(conditional, ConditionalVAE)
        models = (baseline, conditional)
        found = row(
            quadrants,
            models,
            data,
            options.samples,
            options.temperatures,
            options.seed,
            options.device,
        )
        rows.append(found | {"epochs": [first, second]})
        print(table(rows[-1:]), flush=True)
        if options.output is not None:
            options.output.mkdir(parents=True, exist_ok=True)
            draw_picture(
                quadrants,
                models,
                data,
                options.seed,
                options.output / f"quadrants-{quadrants}.png",
                options.device,
            )
    print(table(rows))
    if options.output is not None:
        machine = describe_machine()
        command = (
            "python -m pyrovae.benchmarks.studies.quadrants --quadrants "
            f"{' '.join(map(str, options.quadrants))} --epochs {options.epochs} --samples "
            f"{options.samples} --temperatures {options.temperatures} --seed {options.seed}"
        )
        text = (
            f"{table(rows)}\n\nNats for the pixels that are not seen; K = {options.samples} on "
            f"{NUM_TEST} test images drawn with seed 0; AIS of 16 chains and "
            f"{options.temperatures} temperatures from the conditional prior on the first "
            f"{NUM_ANNEALED} of them. `{command}`: {machine['summary']}\n"
        )
        stem = "quadrants" + ("" if len(rows) == len(OBSERVED) else f"-{rows[0]['quadrants']}")
        keep(options.output, stem, text, {"command": command, "machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
