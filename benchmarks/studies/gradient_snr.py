r"""Does the encoder still learn when a bound takes more particles?

On the toy of Rainforth and others (*Tighter variational bounds are not necessarily better*, 2018),

.. math:: z \sim N(\mu, I), \quad x \mid z \sim N(z, I), \quad q(z \mid x) = N(A x + b, \tfrac23 I),

in 20 dimensions, with parameters a little off their optimum, the signal-to-noise ratio of the
gradient is measured for K from 1 to 1000. In theory that of the IWAE falls as :math:`K^{-1/2}` for
the guide and rises as :math:`K^{1/2}` for the model; doubly reparameterised, the guide's does not
fall (Tucker and others, *Doubly reparameterized gradient estimators*, 2019).

    python -m pyrovae.benchmarks.studies.gradient_snr --output benchmarks/results
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ...inference import MonteCarloObjective, bounds, gradient_statistics, gradients
from ..machine import describe_machine, keep
from ..pictures import power_laws

PARTICLES = (1, 3, 10, 30, 100, 300, 1000)
RULES = {
    "IWAE": gradients.Pathwise(),
    "IWAE, sticking the landing": gradients.StickingTheLanding(),
    "IWAE, doubly reparameterised": gradients.DoublyReparameterized(),
}
DIM, NUM_DATA = 20, 16


class Toy(nn.Module):
    """The toy, its parameters moved off their optimum by N(0, 0.01²)."""

    def __init__(self) -> None:
        super().__init__()
        off = torch.randn(2 * DIM + DIM * DIM) * 0.01
        self.mu = nn.Parameter(off[:DIM])
        self.shift = nn.Parameter(off[DIM : 2 * DIM])
        self.matrix = nn.Parameter(torch.eye(DIM) / 2 + off[2 * DIM :].reshape(DIM, DIM))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = x @ self.matrix.T + self.shift
            pyro.sample("z", dist.Normal(loc, (2 / 3) ** 0.5).to_event(1))


def measure(repeats: int, seed: int) -> list[dict[str, Any]]:
    """One row for each rule and number of particles: SNR of both programs, and its error."""
    torch.manual_seed(seed)
    toy = Toy().double()
    x = 2**0.5 * torch.randn(NUM_DATA, DIM, dtype=torch.float64)
    rows = []
    for name, rule in RULES.items():
        for count in PARTICLES:
            objective = MonteCarloObjective(bounds.IWAE(), rule, count)
            # a signal that falls as K^-1/2 takes more gradients to be seen
            drowns = isinstance(rule, gradients.Pathwise)
            number = repeats * min(max(count // 10, 1), 10) if drowns else repeats
            found = gradient_statistics(
                objective,
                toy.model,
                toy.guide,
                x,
                repeats=number,
                reference=objective,
                seed=seed,
            )
            row: dict[str, Any] = {"rule": name, "particles": count, "repeats": number}
            for group in ("theta", "phi"):
                one = found.sel(group=group)
                row[group] = {"snr": float(one.snr_pooled), "stderr": float(one.snr_pooled_stderr)}
            rows.append(row)
    return rows


def slope(rows: list[dict[str, Any]], rule: str, group: str) -> tuple[float, float]:
    """The exponent of K in the SNR, from K = 10 on, and its standard error; where it is seen."""
    mine = [row for row in rows if row["rule"] == rule and row["particles"] >= 10]
    kept = [row for row in mine if row[group]["snr"] > 0]
    if len(kept) < 4:
        return math.nan, math.nan
    log_k = np.log([row["particles"] for row in kept])
    log_snr = np.log([row[group]["snr"] for row in kept])
    weights = [row[group]["snr"] / row[group]["stderr"] for row in kept]
    (exponent, _), covariance = np.polyfit(log_k, log_snr, 1, w=weights, cov=True)
    return float(exponent), float(covariance[0, 0] ** 0.5)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: the guide's SNR by K, and the exponents of K for both programs."""
    head = "| rule | " + " | ".join(f"K = {count:,}" for count in PARTICLES)
    rows_ = [f"{head} | exponent, φ | exponent, θ |", "|---|" + "---|" * (len(PARTICLES) + 2)]
    for rule in RULES:
        cells = [
            f"{row['phi']['snr']:.3f} ± {row['phi']['stderr']:.3f}"
            for row in rows
            if row["rule"] == rule
        ]
        exponents = ["{:+.2f} ± {:.2f}".format(*slope(rows, rule, g)) for g in ("phi", "theta")]
        rows_.append(f"| {rule} | {' | '.join([*cells, *exponents])} |")
    return "\n".join(rows_)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a folder for table, numbers and picture")
    options = parser.parse_args()
    start = time.perf_counter()
    rows = measure(options.repeats, options.seed)
    print(table(rows))
    if options.output is None:
        return
    machine = describe_machine()
    command = (
        "python -m pyrovae.benchmarks.studies.gradient_snr "
        f"--repeats {options.repeats} --seed {options.seed}"
    )
    text = (
        "Signal-to-noise ratio of the guide's gradient (pooled over its parameters, ± jackknife "
        "error). Exponents of K from K = 10 on.\n\n"
        f"{table(rows)}\n\n`{command}`: {options.repeats} gradients each, of the plain IWAE "
        f"up to ten times as many; {NUM_DATA} data in {DIM} dimensions; "
        f"{time.perf_counter() - start:.0f} s; {machine['summary']}\n"
    )
    record = {"command": command, "machine": machine, "rows": rows}
    keep(options.output, "gradient-snr", text, record)
    curves = {
        rule: [
            (row["particles"], row["phi"]["snr"], row["phi"]["stderr"])
            for row in rows
            if row["rule"] == rule
        ]
        for rule in RULES
    }
    power_laws(
        curves,
        options.output / "gradient-snr.png",
        x="particles K",
        y="signal-to-noise ratio",
        title="Does the encoder's gradient drown in noise?",
    )


if __name__ == "__main__":
    main()
