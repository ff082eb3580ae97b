"""How fast do annealed chains move, and what does their cost grow with?

Gradients per second of annealed importance sampling (one for each row, that is chain of a datum)
against a bare loop that calls the decoder's forward and backward on as many rows and does nothing
else: no program, no likelihood, no acceptance. Decoder 50-200-200-784 (tanh), HMC with ten leapfrog
steps. Both run in turn, and are compared by the median of the rounds' ratios. Then time and peak
memory as chains, temperatures and data are doubled (two leapfrog steps).

    python -m pyrovae.benchmarks.speed.annealing --output benchmarks/results
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...inference import HMC, AnnealedImportanceSampling
from ...models import VAE
from ...models.likelihoods import Bernoulli
from ...models.nets import MLP
from ...models.posteriors import DiagonalNormal
from ...models.priors import StandardNormal
from ..machine import describe_machine, keep

DATA_DIM, LATENT_DIM = 784, 50
SIZES = ((16, 16), (16, 64), (64, 64), (16, 400))  # chains, data: the last is a default tile
TEMPERATURES = 10
SCALING = ((16, 100, 64), (32, 100, 64), (16, 200, 64), (16, 100, 128), (64, 200, 128))


def build(size: int) -> tuple[VAE, Tensor]:
    """A VAE as it is begun, and binary data."""
    torch.manual_seed(0)
    vae = VAE(
        StandardNormal(LATENT_DIM),
        DiagonalNormal(MLP(DATA_DIM, 2 * LATENT_DIM)),
        Bernoulli(MLP(LATENT_DIM, DATA_DIM)),
    )
    return vae, torch.bernoulli(torch.full((size, DATA_DIM), 0.3))


def bare(vae: VAE, rows: int, count: int) -> float:
    """Gradients per second of the decoder alone."""
    decoder = vae.likelihood.get_submodule("net")
    z = torch.randn(rows, LATENT_DIM)
    slope = torch.ones(rows, DATA_DIM)
    began = time.perf_counter()
    for _ in range(count):
        at = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(decoder(at), at, slope)
        z = z + 1e-6 * gradient
    return rows * count / (time.perf_counter() - began)


def annealed(vae: VAE, x: Tensor, chains: int, temperatures: int) -> tuple[float, float]:
    """Gradients per second of the whole call, its pilot run included; and its seconds."""
    estimator = AnnealedImportanceSampling(chains, temperatures, pilot_temperatures=5, memory=2**40)
    began = time.perf_counter()
    found = estimator(vae.model, vae.guide, x)
    seconds = time.perf_counter() - began
    return float(found.provenance["gradients"]) * len(x) / seconds, seconds


def rates(rounds: int) -> list[dict[str, Any]]:
    """Both loops at each size, in turn."""
    found = []
    for chains, size in SIZES:
        vae, x = build(size)
        record: dict[str, Any] = {"chains": chains, "data": size, "bare": [], "annealed": []}
        bare(vae, chains * size, 20)
        annealed(vae, x, chains, 5)
        for _ in range(rounds):
            record["bare"].append(bare(vae, chains * size, 50))
            record["annealed"].append(annealed(vae, x, chains, TEMPERATURES)[0])
        found.append(record)
    return found


def cost(chains: int, temperatures: int, size: int) -> dict[str, Any]:
    """Seconds and peak memory of one call, in a process of its own."""
    code = (
        "from pyrovae.benchmarks.speed.annealing import build, cost_of\n"
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
    vae, x = build(size)
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


def tables(found: list[dict[str, Any]], costs: list[dict[str, Any]]) -> str:
    """Medians and ratios as Markdown."""
    lines = [
        "| chains × data | bare loop, gradients per second | AIS | AIS / bare | quartiles |",
        "|---|---|---|---|---|",
    ]
    for one in found:
        ratios = [a / b for a, b in zip(one["annealed"], one["bare"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        lines.append(
            f"| {one['chains']} × {one['data']} | {statistics.median(one['bare']):,.0f} "
            f"| {statistics.median(one['annealed']):,.0f} | {middle:.2f} | {low:.2f}–{high:.2f} |"
        )
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
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="a folder for the table and the raw numbers")
    options = parser.parse_args()
    found, costs = rates(options.rounds), [cost(*size) for size in SCALING]
    print(tables(found, costs))
    if options.output is not None:
        machine = describe_machine()
        command = f"python -m pyrovae.benchmarks.speed.annealing --rounds {options.rounds}"
        text = f"{tables(found, costs)}\n\n`{command}`, interleaved, {machine['summary']}\n"
        record = {"command": command, "machine": machine, "rates": found, "costs": costs}
        keep(options.output, "annealing", text, record)


if __name__ == "__main__":
    main()
