"""How long does one importance weight take, and how far is that from the least possible?

Microseconds per (sample, datum) for log p(x) with K = 5,000 samples on the model most used for it
(784-200-200-50, tanh, Bernoulli; Burda, Grosse and Salakhutdinov, *Importance weighted
autoencoders*, 2016): ours, Pythae's ``get_nll``, Pyro's ``vectorized_importance_weights``, and the
decoder's matrix products alone, which is the floor of any code in this precision. All share one
set of weights; each is run once per round, in turn, and medians over rounds are compared. Before
any is timed, their estimates are checked to agree.

    python -m pyrovae.benchmarks.speed.importance_weights --output benchmarks/results

needs ``pip install 'pyrovae[peers]'``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyro
import torch
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor, nn

from ...inference import ImportanceSampling
from ...models import VAE
from ...models.likelihoods import Bernoulli
from ...models.nets import MLP
from ...models.posteriors import DiagonalNormal
from ...models.priors import StandardNormal
from ..machine import describe_machine, keep

DATA_DIM, LATENT_DIM, NUM_SAMPLES, NUM_DATA = 784, 50, 5000, 20
OURS, PYRO, FLOOR = "pyrovae ImportanceSampling", "Pyro vectorized_importance_weights", "floor"


@dataclass(frozen=True)
class Setup:
    """The model, its networks, and a few binary images."""

    vae: VAE
    encoder: MLP
    decoder: MLP
    x: Tensor


Contender = Callable[[Setup], float]


def build() -> Setup:
    """The same setup for every contender."""
    torch.manual_seed(0)
    encoder, decoder = MLP(DATA_DIM, 2 * LATENT_DIM), MLP(LATENT_DIM, DATA_DIM)
    vae = VAE(StandardNormal(LATENT_DIM), DiagonalNormal(encoder), Bernoulli(decoder))
    with torch.no_grad():
        # weak nets make the prior nearly the posterior: estimates agree closely, at equal cost
        for net in (encoder, decoder):
            cast(nn.Linear, net.layers[-1]).weight.mul_(0.05)
    return Setup(vae, encoder, decoder, torch.bernoulli(torch.full((NUM_DATA, DATA_DIM), 0.3)))


def ours(setup: Setup) -> float:
    """Mean log p(x) by this project."""
    score = ImportanceSampling(num_samples=NUM_SAMPLES)
    return float(score(setup.vae.model, setup.vae.guide, setup.x).log_evidence.mean())


def pyros(setup: Setup) -> float:
    """The same by Pyro, one datum at a time: its weights are of the whole batch."""
    total = 0.0
    with torch.no_grad(), pyro.validation_enabled(False):
        for row in setup.x.split(1):
            log_weight, _, _ = vectorized_importance_weights(
                setup.vae.model,
                setup.vae.guide,
                row,
                num_samples=NUM_SAMPLES,
                max_plate_nesting=1,
                normalized=False,
            )
            total += float(log_weight.logsumexp(0)) - float(np.log(NUM_SAMPLES))
    return total / len(setup.x)


def make_pythaes(setup: Setup, batch_size: int) -> Contender:
    """Pythae's VAE around the same networks."""
    try:
        from pythae.models import VAE as PythaeVAE
        from pythae.models import VAEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
    except ModuleNotFoundError as error:
        raise SystemExit("this comparison needs pip install 'pyrovae[peers]'") from error

    class Encoder(BaseEncoder):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Any:
            loc, log_scale = self.net(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=2 * log_scale)

    class Decoder(BaseDecoder):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(z).sigmoid())

    config = VAEConfig(input_dim=(DATA_DIM,), latent_dim=LATENT_DIM, reconstruction_loss="bce")
    peer = PythaeVAE(config, Encoder(setup.encoder), Decoder(setup.decoder)).eval()

    def score(setup: Setup) -> float:
        with torch.no_grad():
            return float(peer.get_nll(setup.x, n_samples=NUM_SAMPLES, batch_size=batch_size))

    return score


def floor(setup: Setup) -> float:
    """The decoder's matrix products alone, in chunks of a thousand rows."""
    weights = [m.weight for m in setup.decoder.modules() if isinstance(m, nn.Linear)]
    chunk = 1000
    inputs = [torch.randn(chunk, weight.shape[1]) for weight in weights]
    with torch.no_grad():
        for _ in range(len(setup.x) * NUM_SAMPLES // chunk):
            for value, weight in zip(inputs, weights, strict=True):
                value @ weight.T
    return float("nan")


def measure(rounds: int) -> dict[str, list[float]]:
    """Microseconds per (sample, datum) by contender, one entry per round."""
    setup = build()
    contenders: dict[str, Contender] = {
        OURS: ours,
        "Pythae get_nll, batch 100": make_pythaes(setup, 100),
        "Pythae get_nll, batch 1000": make_pythaes(setup, 1000),
        PYRO: pyros,
        FLOOR: floor,
    }
    answers = {name: run(setup) for name, run in contenders.items()}  # warms up, too
    finite = [value for value in answers.values() if np.isfinite(value)]
    if max(finite) - min(finite) > 0.05:
        raise RuntimeError(f"the contenders disagree about log p(x): {answers}")
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run(setup)
            elapsed = time.perf_counter() - start
            times[name].append(1e6 * elapsed / (NUM_DATA * NUM_SAMPLES))
    return times


def table(times: dict[str, list[float]]) -> str:
    """Medians, spread and ratios as Markdown."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    lines = [
        "| µs per (sample, datum), K = 5000 | median | min–max | times ours | times the floor |",
        "|---|---|---|---|---|",
    ]
    for name, values in times.items():
        label = "decoder's matrix products alone (floor)" if name == FLOOR else name
        lines.append(
            f"| {label} | {medians[name]:.2f} | {min(values):.2f}–{max(values):.2f} "
            f"| {medians[name] / medians[OURS]:.2f} | {medians[name] / medians[FLOOR]:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--output", type=Path, help="a folder for the table and the raw numbers")
    options = parser.parse_args()
    times = measure(options.rounds)
    print(table(times))
    if options.output is not None:
        machine = describe_machine()
        command = f"python -m pyrovae.benchmarks.speed.importance_weights --rounds {options.rounds}"
        text = f"{table(times)}\n\n`{command}`, interleaved, {machine['summary']}\n"
        record = {"command": command, "machine": machine, "microseconds": times}
        keep(options.output, "importance-weights", text, record)


if __name__ == "__main__":
    main()
