"""How fast do annealed chains move, and what does their cost grow with?

Gradients per second of annealed importance sampling (one for each row, that is chain of a datum)
against a bare loop that calls the decoder's forward and backward on as many rows and does nothing
else: no program, no likelihood, no acceptance. The loop is run as it is, and under
``torch.compile``. Decoder 50-200-200-784 (tanh), HMC with ten leapfrog steps. All run in turn. What
compiling takes is left out, and stands in a table of its own. Then time and peak memory as chains,
temperatures and data are doubled (two leapfrog steps, not compiled).
"""

from __future__ import annotations

import copy
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...inference import HMC, AnnealedImportanceSampling, NoGain
from ...models import VAE
from ..machine import clock
from .part import Part, Times, compared
from .subject import DATA_DIM, LATENT_DIM, build, by_torch, nets, noise

SIZES = ((16, 16, 100), (16, 64, 40), (16, 400, 10))  # chains, data, temperatures; the last a tile
SCALING = ((16, 100, 64), (32, 100, 64), (16, 200, 64), (16, 100, 128), (64, 200, 128))
BARE, COMPILED_BARE = "bare loop, eager", "bare loop, torch.compile"
OURS, COMPILED = "AIS", "AIS, compile=True"
LOOPS = 50


def _bare(vae: VAE, rows: int, compiled: bool) -> Callable[[], float]:
    """Microseconds a gradient of the decoder alone."""
    plain = copy.deepcopy(nets(vae)[1]).requires_grad_(False)  # only z has a gradient
    device = next(plain.parameters()).device
    slope = torch.ones(rows, DATA_DIM, device=device)
    decoder: Any = by_torch(plain, device) if compiled else plain

    def run() -> float:
        z = torch.randn(rows, LATENT_DIM, device=device)
        began = clock(device)
        for _ in range(LOOPS):
            at = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(decoder(at), at, slope)
            z = z + 1e-6 * gradient
        return 1e6 * (clock(device) - began) / (rows * LOOPS)

    return run


def _annealed(
    vae: VAE, x: Tensor, chains: int, temperatures: int, compiled: bool
) -> Callable[[], float]:
    """Microseconds a gradient of the whole call, its pilot run included."""
    estimator = AnnealedImportanceSampling(
        chains, temperatures, pilot_temperatures=5, memory=2**40, compile=compiled
    )

    def run() -> float:
        began = clock(x.device)
        found = estimator(vae.model, vae.guide, x).provenance
        seconds = clock(x.device) - began - float(found["compile_seconds"])
        return 1e6 * seconds / (float(found["gradients"]) * len(x))

    return run


def rates(rounds: int, device: str) -> dict[str, Times]:
    """All loops at each size, in turn: microseconds a gradient."""
    found: dict[str, Times] = {}
    for chains, size, temperatures in SIZES:
        vae, x = build(device), noise(size, device)
        running = {
            BARE: _bare(vae, chains * size, False),
            COMPILED_BARE: _bare(vae, chains * size, True),
            OURS: _annealed(vae, x, chains, temperatures, False),
            COMPILED: _annealed(vae, x, chains, temperatures, True),
        }
        for run in running.values():
            run()
        times: Times = {name: [] for name in running}
        for _ in range(rounds):
            for name, run in running.items():
                times[name].append(run())
        found[f"annealing, {chains} chains of {size} data"] = times
    return found


def cost(chains: int, temperatures: int, size: int) -> dict[str, Any]:
    """Seconds and peak memory of one call, in a process of its own."""
    code = (
        "from pyrovae.benchmarks.speed.annealing import cost_of\n"
        f"print(*cost_of({chains}, {temperatures}, {size}))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    seconds, before, after = map(float, out.stdout.split())
    return {
        "chains": chains,
        "temperatures": temperatures,
        "data": size,
        "seconds": seconds,
        "megabytes": (after - before) / 1024,
    }


def cost_of(chains: int, temperatures: int, size: int) -> tuple[float, int, int]:
    """Seconds of a call, and the peak memory of the process before and after it, in KiB."""
    vae, x = build(), noise(size)
    estimator = AnnealedImportanceSampling(
        chains, temperatures, pilot_temperatures=10, kernel=HMC(num_leapfrog=2)
    )
    # a first, small call: what any call loads is not what this one takes
    AnnealedImportanceSampling(2, 2, pilot_temperatures=2)(vae.model, vae.guide, x[:2])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    estimator(vae.model, vae.guide, x)
    seconds = time.perf_counter() - began
    return seconds, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(rounds: int, device: str) -> Part:
    """Time gradients, and on a CPU what a call's cost grows with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoGain)
        found = rates(rounds, device)
    costs = [cost(*size) for size in SCALING] if device == "cpu" else []
    lines = [
        "| chains × data | loop | gradients per second | µs, median | quartiles "
        "| eager bare / this | compiled bare / this |",
        "|---|---|---|---|---|---|---|",
    ]
    for (chains, size, _), times in zip(SIZES, found.values(), strict=True):
        lines += [
            f"| {chains} × {size} | {name} | {1e6 / middle:,.0f} | {middle:.2f} "
            f"| {low:.2f}–{high:.2f} | {bare:.2f} | {compiled:.2f} |"
            for name, middle, low, high, (bare, compiled) in compared(times, (BARE, COMPILED_BARE))
        ]
    if costs:
        lines += [
            "",
            "| chains | temperatures | data | seconds | µs per chain, temperature and datum "
            "| memory, MB |",
            "|---|---|---|---|---|---|",
        ]
    for one in costs:
        product = one["chains"] * one["temperatures"] * one["data"]
        lines.append(
            f"| {one['chains']} | {one['temperatures']} | {one['data']} | {one['seconds']:.1f} "
            f"| {1e6 * one['seconds'] / product:.0f} | {one['megabytes']:.0f} |"
        )
    note = (
        "The bare loop makes no use of the decoder's output. Cost is linear in chains, "
        "temperatures and data, memory flat; the second table is of two leapfrog steps, not "
        "compiled."
    )
    return Part(
        "annealing", "A chain's gradient", "\n".join(lines), note, found, "µs a gradient", costs
    )
