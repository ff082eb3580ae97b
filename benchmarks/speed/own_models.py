"""What ``compile=True`` makes of models that cost more than the plain one.

Milliseconds of a step of ``fit``, not compiled and compiled, in turn: a VampPrior of 500
pseudo-inputs (Tomczak and Welling, *VAE with a VampPrior*, 2018), whose encoder sees them in every
step, at its paper's batch size; and two layers of latents, 784-200-100 and 100-100-50 (Burda,
Grosse and Salakhutdinov, *Importance weighted autoencoders*, 2016).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...inference import fit
from ...models import VAE, HierarchicalVAE
from ...models.likelihoods import Bernoulli
from ...models.nets import MLP
from ...models.posteriors import DiagonalNormal
from ...models.priors import StandardNormal, VampPrior
from .part import Part, Times, compared
from .subject import DATA_DIM, noise

PLAIN, COMPILED = "fit", "fit, compile=True"
STEPS, EPOCHS = 200, 2


def vamp() -> nn.Module:
    """40 latents and 500 pseudo-inputs."""
    torch.manual_seed(0)
    posterior = DiagonalNormal(MLP(DATA_DIM, 80, hidden=(300, 300)))
    prior = VampPrior(posterior, torch.rand(500, DATA_DIM))
    return VAE(prior, posterior, Bernoulli(MLP(40, DATA_DIM, hidden=(300, 300))))


def two_layers() -> nn.Module:
    """100 latents by 200 hidden units, and 50 by 100."""
    torch.manual_seed(0)
    lower, upper = (200, 200), (100, 100)
    return HierarchicalVAE(
        StandardNormal(50),
        [DiagonalNormal(MLP(50, 200, hidden=upper))],
        [
            DiagonalNormal(MLP(DATA_DIM, 200, hidden=lower)),
            DiagonalNormal(MLP(100, 100, hidden=upper)),
        ],
        Bernoulli(MLP(100, DATA_DIM, hidden=lower)),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "VampPrior(500)": (vamp, 100),
    "two layers": (two_layers, 20),
}


def measure(rounds: int, device: str) -> Part:
    """Time the steps of both."""
    found: dict[str, Times] = {}
    lines = ["| model | step | ms, median | quartiles | fit / this |", "|---|---|---|---|---|"]
    for model, (make, batch) in MODELS.items():
        times: Times = {PLAIN: [], COMPILED: []}
        x = noise(STEPS * batch, device)
        for _ in range(rounds):
            for name in times:
                made: Any = make().to(device)
                history = fit(
                    made.model,
                    made.guide,
                    x,
                    epochs=1 + EPOCHS,
                    batch_size=batch,
                    seed=0,
                    progress=False,
                    compile=name == COMPILED,
                )
                times[name] += [1e3 * seconds / STEPS for seconds in history.seconds[1:]]
        found[f"training, {model}, batch {batch}"] = times
        lines += [
            f"| {model}, batch {batch} | {name} | {middle:.2f} | {low:.2f}–{high:.2f} "
            f"| {ratio:.2f} |"
            for name, middle, low, high, (ratio,) in compared(times, (PLAIN,))
        ]
    note = "The first epoch of a run, in which programs are compiled, does not count."
    return Part("models", "A step of larger models", "\n".join(lines), note, found, "ms a step")
