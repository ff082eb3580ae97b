"""How long does a training step take, through Pyro, through Pythae, by hand, and compiled?

Milliseconds of a step with Adam, the gather of its batch included: ``pyro.infer.SVI`` as its
examples use it; Pythae's trainer; PyTorch by hand, eager with fused Adam, and under
``torch.compile``; ours, ``fit`` without and with ``compile=True``; and the floor, the matrix
products alone that forward and backward need, as torch makes them of itself. A round is a short run
of each in turn, whose epochs are timed; the first, in which programs are compiled, does not count.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ...inference import ELBO, IWAE, fit
from ..machine import clock
from . import peers
from .part import FLOOR, Part, Times, compared
from .subject import DATA_DIM, HIDDEN, LATENT_DIM, build, by_torch, nets, noise

# batch, K, steps an epoch, turns a round: short ones, for a machine is not the same for long
SIZES = ((20, 1, 300, 4), (128, 1, 150, 2), (512, 1, 75, 1), (20, 50, 75, 1))
EPOCHS = 2  # of a round that count
PYRO, PYTHAE = "pyro.infer.SVI", "Pythae"
HAND, COMPILED_HAND = "by hand, eager", "by hand, torch.compile"
OURS, COMPILED = "fit", "fit, compile=True"

Contender = Callable[[Tensor, int, int], list[float]]  # x, batch, particles; seconds of epochs


def by_fit(compiled: bool) -> Contender:
    """Ours."""

    def run(x: Tensor, batch: int, particles: int) -> list[float]:
        vae = build(x.device)
        history = fit(
            vae.model,
            vae.guide,
            x,
            objective=ELBO() if particles == 1 else IWAE(particles),
            epochs=1 + EPOCHS,
            batch_size=batch,
            seed=0,
            progress=False,
            compile=compiled,
        )
        return list(history.seconds)

    return run


def by_svi(x: Tensor, batch: int, particles: int) -> list[float]:
    """Pyro's."""
    pyro.clear_param_store()
    vae = build(x.device)
    loss = Trace_ELBO(particles, vectorize_particles=particles > 1, max_plate_nesting=1)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss)
    with pyro.validation_enabled(False):
        return _epochs(x, batch, svi.step)


def by_pythae(x: Tensor, batch: int, particles: int) -> list[float]:
    """Pythae's, from its loader to its optimizer."""
    trainer = peers.trainer(build(x.device), x, batch, particles)
    times = []
    for epoch in range(1 + EPOCHS):
        start = clock(x.device)
        trainer.train_step(epoch + 1)
        times.append(clock(x.device) - start)
    return times


def by_hand(compiled: bool) -> Contender:
    """What one writes without Pyro."""

    def run(x: Tensor, batch: int, particles: int) -> list[float]:
        vae = build(x.device)
        encoder, decoder = nets(vae)

        def loss(x: Tensor) -> Tensor:
            loc, log_scale = encoder(x).chunk(2, -1)
            draws = torch.randn(particles, *loc.shape, device=x.device)
            z = loc + log_scale.exp() * draws
            logits = decoder(z)
            fit_to_x = -binary_cross_entropy_with_logits(
                logits, x.expand_as(logits), reduction="none"
            ).sum(-1)
            ratio = 0.5 * (draws.square() - z.square()).sum(-1) + log_scale.sum(-1)
            weight = fit_to_x + ratio
            bound = weight.logsumexp(0) if particles > 1 else weight[0]
            return -bound.mean()

        step = by_torch(loss, x.device) if compiled else loss
        optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)

        def take(rows: Tensor) -> None:
            optimizer.zero_grad()
            step(rows).backward()
            optimizer.step()

        return _epochs(x, batch, take)

    return run


def _epochs(x: Tensor, batch: int, step: Callable[[Tensor], object]) -> list[float]:
    times = []
    for _ in range(1 + EPOCHS):
        start = clock(x.device)
        for rows in torch.randperm(len(x), device=x.device).split(batch):
            step(x[rows])
        times.append(clock(x.device) - start)
    return times


def floor(x: Tensor, batch: int, particles: int) -> list[float]:
    """The matrix products of forward and backward: three of each layer, two of the first."""
    encoder = [(DATA_DIM, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2 * LATENT_DIM)]
    decoder = [(LATENT_DIM, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, DATA_DIM)]
    layers = [(batch, *shape) for shape in encoder]
    layers += [(batch * particles, *shape) for shape in decoder]
    tensors = [
        (
            torch.randn(rows, before, device=x.device),
            torch.randn(before, after, device=x.device),
            torch.randn(rows, after, device=x.device),
        )
        for rows, before, after in layers
    ]

    def products(_: Tensor) -> None:
        for number, (inputs, weight, slope) in enumerate(tensors):
            inputs @ weight
            inputs.T @ slope
            if number:
                slope @ weight.T

    return _epochs(x, batch, products)


def contenders() -> dict[str, Contender]:
    """All that can take part here."""
    found: dict[str, Contender] = {
        PYRO: by_svi,
        PYTHAE: by_pythae,
        HAND: by_hand(False),
        COMPILED_HAND: by_hand(True),
        OURS: by_fit(False),
        COMPILED: by_fit(True),
        FLOOR: floor,
    }
    if not peers.has_pythae():
        del found[PYTHAE]
    return found


def measure(rounds: int, device: str) -> Part:
    """Time the steps of all sizes."""
    found: dict[str, Times] = {}
    lines = [
        "| batch | K | step | ms, median | quartiles | SVI / this | eager by hand / this |",
        "|---|---|---|---|---|---|---|",
    ]
    for batch, particles, steps, turns in SIZES:
        x = noise(steps * batch, device)
        times: Times = {name: [] for name in contenders()}
        for _ in range(rounds * turns):
            for name, run in contenders().items():
                epochs = run(x, batch, particles)[1:]
                times[name] += [1e3 * seconds / steps for seconds in epochs]
        found[f"training, batch {batch}" + (f", K = {particles}" if particles > 1 else "")] = times
        lines += [
            f"| {batch} | {particles} | {name} | {middle:.3f} | {low:.3f}–{high:.3f} "
            f"| {svi:.2f} | {hand:.2f} |"
            for name, middle, low, high, (svi, hand) in compared(times, (PYRO, HAND))
        ]
    note = (
        "SVI runs as Pyro's examples run it, with Pyro's Adam, which is not fused; that by hand, "
        "and ours, is. At K = 50 SVI's objective is the ELBO of 50 particles, the others' the "
        "IWAE. The floor is "
        "what torch's own matrix products take; compiled code may choose faster ones."
    )
    if not peers.has_pythae():
        note += f" {peers.MISSING}"
    return Part("training", "A training step", "\n".join(lines), note, found, "ms a step")
