"""How narrow is the sandwich of bidirectional Monte Carlo around an exact log p(x)?

A linear-Gaussian model with 50 latents and 784-dimensional data, whose log p(x) is known and whose
posterior can be drawn exactly, so that real data can be sandwiched too. Chains begin at the prior,
as those of a model without a guide would. For more and more temperatures: the mean gap, how often
log p(x) lies inside it (at three errors), and what it cost.

    python -m pyrovae.benchmarks.studies.sandwich --output benchmarks/results
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ...inference import HMC, BidirectionalMonteCarlo, EqualLength, Sandwich
from ...models import LinearGaussianVAE
from ..machine import describe_machine, keep

DATA_DIM, LATENT_DIM = 784, 50
TEMPERATURES = (125, 500, 2000)


def row(found: Sandwich, exact: torch.Tensor) -> dict[str, Any]:
    """The numbers of one line of the table, in nats."""
    low, high = found.lower, found.upper
    below = exact >= low.log_evidence - 3 * low.stderr
    above = exact <= high.log_evidence + 3 * high.stderr
    gap, error = found.mean_gap()
    return {
        "lower_error": float((low.log_evidence - exact).mean()),
        "upper_error": float((high.log_evidence - exact).mean()),
        "error_stderr": low.mean().monte_carlo_stderr,
        "gap": gap,
        "gap_stderr": error,
        "inside": float((below & above).double().mean()),
        "acceptance": float(low.diagnostics["acceptance"].mean()),
        "gradients": float(low.provenance["gradients"]),
        "seconds": float(low.provenance["seconds"]),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line for each number of temperatures."""
    lines = [
        "| temperatures | lower − exact | upper − exact | gap | exact inside | acceptance "
        "| gradients per datum | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        error = one["error_stderr"]
        lines.append(
            f"| {one['temperatures']:,} | {one['lower_error']:+.3f} ± {error:.3f} "
            f"| {one['upper_error']:+.3f} ± {error:.3f} "
            f"| {one['gap']:.3f} ± {one['gap_stderr']:.3f} | {one['inside']:.1%} "
            f"| {one['acceptance']:.2f} | {one['gradients']:,.0f} | {one['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=int, default=100)
    parser.add_argument("--chains", type=int, default=16)
    parser.add_argument("--temperatures", type=int, nargs="+", default=list(TEMPERATURES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a folder for the table and the raw numbers")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    linear = LinearGaussianVAE(DATA_DIM, LATENT_DIM).double()
    with torch.no_grad():
        x = linear.sample(options.data)
        exact = linear.log_evidence(x)
    rows = []
    for temperatures in options.temperatures:
        bdmc = BidirectionalMonteCarlo(
            num_chains=options.chains,
            num_temperatures=temperatures,
            start="prior",
            schedule=EqualLength(),
            kernel=HMC(num_leapfrog=5),
            posterior=linear.exact_guide,
            seed=options.seed,
        )
        found = bdmc(linear.model, None, x)
        rows.append(row(found, exact) | {"temperatures": temperatures})
        print(table(rows[-1:]), flush=True)
    machine = describe_machine()
    command = (
        f"python -m pyrovae.benchmarks.studies.sandwich --data {options.data} "
        f"--chains {options.chains} --seed {options.seed}"
    )
    text = (
        f"Linear-Gaussian model, {LATENT_DIM} latents, {DATA_DIM} dimensions, {options.data} data, "
        f"{options.chains} chains each way from the prior, HMC of five steps; nats.\n\n"
        f"{table(rows)}\n\n`{command}`, {machine['summary']}\n"
    )
    print(text)
    if options.output is not None:
        record = {"command": command, "machine": machine, "rows": rows}
        keep(options.output, "sandwich", text, record)


if __name__ == "__main__":
    main()
