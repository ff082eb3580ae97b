"""What does a VQ-VAE's code cost, and what is its log p(x)?

A grid of codes costs its places times log M nats under a uniform prior, less under one that has
learned which codes come together. Papers end there: the ELBO of a guide that is sure of its code.
Here log p(x) is a sum over all grids where these are few (digits: 16 codes on 2 by 2 places, 65,536
grids), and an importance-sampling estimate from the softened guide elsewhere (MNIST: 64 codes on 7
by 7 places); on digits one checks the other. The temperature of that guide is chosen on validation
images, by the largest bound; the test images are scored with draws of their own.

    python -m pyrovae.benchmarks.studies.vector_quantised --output benchmarks/results

Codebook by moving averages, dead codes revived, commitment 0.25; the learned prior is trained
afterwards, on codes that stay. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...inference import Estimate, ImportanceSampling, Penalised, fit
from ...models import VQVAE
from ...models.likelihoods import Bernoulli
from ...models.nets import MLP, GridDecoder, GridEncoder
from ...models.priors import AutoregressivePrior, UniformCodes
from ...models.quantised import Codebook, VectorQuantiser
from ..datasets import Dataset, load
from ..diagnostics import paired_difference
from ..machine import describe_machine, keep
from ..pictures import codebook_use, reconstructions, samples, usage

TEMPERATURES = tuple(2.0**i for i in range(-14, 7))
CODE_DIM = 16


def digits_nets(data: Dataset) -> tuple[nn.Module, nn.Module, tuple[int, ...], int]:
    """Encoder, decoder, grid and number of codes: small enough to sum over all grids."""
    grid, size = (2, 2), data.train.shape[1]
    encoder = nn.Sequential(MLP(size, CODE_DIM * 4), nn.Unflatten(-1, (CODE_DIM, *grid)))
    return encoder, nn.Sequential(nn.Flatten(-3), MLP(CODE_DIM * 4, size)), grid, 16


def mnist_nets(data: Dataset) -> tuple[nn.Module, nn.Module, tuple[int, ...], int]:
    """Convolutions, 64 codes on 7 by 7 places."""
    encoder = GridEncoder(data.shape, CODE_DIM)
    decoder = GridDecoder(CODE_DIM, data.shape)
    return (
        nn.Sequential(nn.Unflatten(-1, data.shape), encoder),
        nn.Sequential(decoder, nn.Flatten(-3)),
        encoder.grid,
        64,
    )


@dataclass(frozen=True)
class Plan:
    """What is trained on a data set, for how long, and how it is scored."""

    nets: Callable[[Dataset], tuple[nn.Module, nn.Module, tuple[int, ...], int]]
    epochs: int
    prior_epochs: int
    num_test: int


PLANS = {
    "digits": Plan(digits_nets, epochs=400, prior_epochs=200, num_test=300),
    "mnist": Plan(mnist_nets, epochs=40, prior_epochs=20, num_test=1000),
}


def train(
    name: str, data: Dataset, epochs: int, prior_epochs: int, seed: int, folder: Path, device: str
) -> tuple[VQVAE, VQVAE]:
    """One autoencoder with a uniform prior, and the same with one learned afterwards."""
    torch.manual_seed(seed)
    encoder, decoder, grid, num_codes = PLANS[name].nets(data)
    quantiser = VectorQuantiser(encoder, Codebook(num_codes, CODE_DIM), grid)
    uniform = VQVAE(UniformCodes(grid, num_codes), quantiser, Bernoulli(decoder)).to(device)
    shared: dict[str, Any] = {
        "objective": Penalised(),
        "learning_rate": 1e-3,
        "transform": data.transform,
        "validation": data.validation,
        "seed": seed,
        "resume": True,
    }
    file = folder / f"vq-{name}-{seed}"
    fit(
        uniform.model,
        uniform.guide,
        data.train,
        epochs=epochs,
        patience=max(epochs // 4, 1),
        checkpoint=file.with_name(f"{file.name}-uniform.safetensors"),
        **shared,
    )
    prior = AutoregressivePrior(grid, num_codes).to(device)
    learned = VQVAE(prior, uniform.posterior, uniform.likelihood)
    learned.only_prior()
    fit(
        learned.model,
        learned.guide,
        data.train,
        epochs=prior_epochs,
        patience=max(prior_epochs // 4, 1),
        checkpoint=file.with_name(f"{file.name}-learned.safetensors"),
        **shared,
    )
    return uniform.eval(), learned.eval()


def best_temperature(model: VQVAE, x: Tensor, seed: int) -> float:
    """The one whose guide gives validation data ``x`` the largest bound of log p(x)."""
    score = ImportanceSampling(num_samples=200, seed=seed)

    def bound(temperature: float) -> float:
        soft = model.softened(temperature)
        return score(soft.model, soft.guide, x).mean().value

    return max(TEMPERATURES, key=bound)


@torch.no_grad()
def row(
    name: str, kind: str, model: VQVAE, data: Dataset, num_samples: int, seed: int, device: str
) -> tuple[dict[str, Any], Estimate]:
    """The numbers of one line of the table, in nats, and the estimate behind it."""
    size = PLANS[name].num_test
    test = data.subset("test", size, seed=0).to(device)
    codes = model.codes(test)
    rate = -model.prior().log_prob(codes).double()
    distortion = -model.decode(codes).log_prob(test).double()
    temperature = best_temperature(model, data.subset("validation", 100, seed=0).to(device), seed)
    soft = model.softened(temperature)
    estimate = ImportanceSampling(num_samples=num_samples, seed=seed, progress=True)(
        soft.model, soft.guide, test
    )
    mean = estimate.mean()
    num_codes = model.posterior.codebook.num_codes
    exact = None
    if num_codes ** codes[0].numel() <= 2**16:
        found = model.log_evidence(test)
        away = estimate.log_evidence.double() - found
        exact = {
            "log_p": float(found.mean()),
            "estimate_minus_exact": float(away.mean()),
            "data_stderr": float(found.std() / size**0.5),
        }
    return {
        "data": name,
        "prior": kind,
        "num_codes": num_codes,
        "grid": list(model.posterior.grid),
        "perplexity": usage(codes, num_codes)[1],
        "distortion": float(distortion.mean()),
        "rate": float(rate.mean()),
        "elbo": float(-(rate + distortion).mean()),
        "elbo_stderr": float((rate + distortion).std() / size**0.5),
        "temperature": temperature,
        "log_p": mean.value,
        "monte_carlo_stderr": mean.monte_carlo_stderr,
        "data_stderr": mean.data_stderr,
        "khat_above_threshold": mean.unreliable,
        "exact": exact,
        "scoring_seconds": estimate.provenance["seconds"],
    }, estimate


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line for each data set and prior."""
    lines = [
        "| data | prior | perplexity | −log p(x \\| code) | rate | ELBO | τ | log p(x) ≥ ± Monte "
        "Carlo ± test set | k̂ too high | exact log p(x) | estimate − exact |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        grid = "×".join(map(str, one["grid"]))
        exact, away = "", ""
        if one["exact"]:
            exact = f"{one['exact']['log_p']:.2f}"
            away = f"{one['exact']['estimate_minus_exact']:+.3f}"
        lines.append(
            f"| {one['data']}, {grid} of {one['num_codes']} | {one['prior']} "
            f"| {one['perplexity']:.1f} | {one['distortion']:.2f} | {one['rate']:.2f} "
            f"| {one['elbo']:.2f} ± {one['elbo_stderr']:.2f} | {one['temperature']:g} "
            f"| {one['log_p']:.2f} ± {one['monte_carlo_stderr']:.2f} ± {one['data_stderr']:.2f} "
            f"| {one['khat_above_threshold']:.0%} | {exact} | {away} |"
        )
    return "\n".join(lines)


@torch.no_grad()
def draw_pictures(
    name: str, uniform: VQVAE, learned: VQVAE, data: Dataset, seed: int, folder: Path, device: str
) -> None:
    """Reconstructions, draws from both priors, and the codebook's use."""
    torch.manual_seed(seed)
    test = data.subset("test", PLANS[name].num_test, seed=0).to(device)
    codes = uniform.codes(test)
    rebuilt = uniform.decode(codes[:12]).mean.cpu()
    file = folder / f"vector-quantised-{name}"
    reconstructions(
        test[:12].cpu(),
        {"from its codes": rebuilt},
        data.shape,
        file.with_name(f"{file.name}-reconstructions.png"),
    )
    drawn = {
        kind: model.decode(model.prior().sample(torch.Size((64,)))).mean.cpu()
        for kind, model in (("uniform prior", uniform), ("learned prior", learned))
    }
    samples(drawn, data.shape, file.with_name(f"{file.name}-samples.png"))
    num_codes = uniform.posterior.codebook.num_codes
    used = {name: codes}
    codebook_use(used, num_codes, file.with_name(f"{file.name}-codebook.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--epochs", type=int, help="by default 400 for digits, 40 for MNIST")
    parser.add_argument("--prior-epochs", type=int, help="by default 200 and 20")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/vector-quantised"))
    parser.add_argument("--output", type=Path, help="a folder for table, numbers and pictures")
    options = parser.parse_args()
    options.checkpoints.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    sentences = []
    for name in options.data:
        plan, data = PLANS[name], load(name)
        uniform, learned = train(
            name,
            data,
            options.epochs or plan.epochs,
            options.prior_epochs or plan.prior_epochs,
            options.seed,
            options.checkpoints,
            options.device,
        )
        estimates = []
        for kind, model in (("uniform", uniform), ("learned", learned)):
            one, estimate = row(
                name, kind, model, data, options.samples, options.seed, options.device
            )
            rows.append(one)
            estimates.append(estimate)
        gain, error = paired_difference(*estimates)
        sentences.append(
            f"{name}: the learned prior cuts the rate by "
            f"{rows[-2]['rate'] - rows[-1]['rate']:.2f} nats and raises log p(x) by {gain:.2f} ± "
            f"{error:.2f} (paired)."
        )
        if options.output is not None:
            options.output.mkdir(parents=True, exist_ok=True)
            draw_pictures(
                name, uniform, learned, data, options.seed, options.output, options.device
            )
    text = "\n\n".join((table(rows), "\n".join(sentences)))
    print(text)
    if options.output is not None:
        machine = describe_machine()
        command = (
            f"python -m pyrovae.benchmarks.studies.vector_quantised --data "
            f"{' '.join(options.data)} --samples {options.samples} --seed {options.seed}"
        )
        if options.epochs:
            command += f" --epochs {options.epochs}"
        if options.prior_epochs:
            command += f" --prior-epochs {options.prior_epochs}"
        told = (
            f"{text}\n\nNats per image. The ELBO is that of the nearest codes, less than log p(x) "
            "by what the other grids add. Where τ is next to 0 the guide is sure of them, and the "
            f"estimate is that ELBO: a bound, without noise of its own. `{command}`: "
            f"{machine['summary']}\n"
        )
        stem = "vector-quantised-" + "-".join(options.data)
        keep(options.output, stem, told, {"command": command, "machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
