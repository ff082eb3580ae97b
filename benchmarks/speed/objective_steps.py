"""What does a training step cost under each objective, and under Pyro's own?

Milliseconds of a whole step (loss, gradient, fused Adam) of a VAE with nets 784-200-200-50 (tanh,
Bernoulli), for one particle and for fifty drawn at once. Contenders step in turn, in blocks, and
are compared by the median of the rounds' ratios: ours with ``pyro.infer.Trace_ELBO``, and the
other objectives with our ELBO of as many particles.

    python -m pyrovae.benchmarks.speed.objective_steps --output benchmarks/results
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from ...inference import ELBO, IWAE, RWS, STL, DReG
from ..machine import clock, describe_machine, keep, suffix
from .subject import build, noise

PYRO, OURS = "Pyro Trace_ELBO", "ELBO"
BLOCK = 10  # steps in a row


@dataclass(frozen=True)
class Setting:
    """Particles and batch size of one part of the table, and who takes part in it."""

    particles: int
    batch: int
    objectives: dict[str, Callable[[int], Any]]


LONE: dict[str, Callable[[int], Any]] = {PYRO: Trace_ELBO, OURS: ELBO, "STL": STL}
MANY: dict[str, Callable[[int], Any]] = {
    PYRO: lambda k: Trace_ELBO(num_particles=k, vectorize_particles=True),
    OURS: ELBO,
    "IWAE": IWAE,
    "STL": STL,
    "DReG": DReG,
    "RWS": RWS,
}
SETTINGS = (Setting(1, 20, LONE), Setting(1, 128, LONE), Setting(50, 20, MANY))


def stepper(objective: Any, x: Tensor) -> Callable[[], None]:
    """A training step of a model of its own."""
    vae = build(x.device)
    model, guide = vae.model, vae.guide
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        objective.differentiable_loss(model, guide, x).backward()
        optimizer.step()

    return step


def measure(setting: Setting, rounds: int, device: str) -> dict[str, list[float]]:
    """Milliseconds per step by contender, one entry per round."""
    x = noise(setting.batch, device)
    steps = {name: stepper(make(setting.particles), x) for name, make in setting.objectives.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    # as in fit: parameters stay in their modules, and distributions are checked once
    with pyro.settings.context(module_local_params=True), pyro.validation_enabled(False):
        for step in steps.values():
            step()
        for _ in range(rounds):
            for name, step in steps.items():
                start = clock(device)
                for _ in range(BLOCK):
                    step()
                times[name].append(1e3 * (clock(device) - start) / BLOCK)
    return times


def table(found: list[tuple[Setting, dict[str, list[float]]]]) -> str:
    """Medians, spread and ratios as Markdown."""
    lines = [
        "| K | batch | objective | ms per step, median | quartiles "
        "| times Trace_ELBO | times ELBO |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting, times in found:
        medians = {name: statistics.median(values) for name, values in times.items()}
        for name, values in times.items():
            low, _, high = statistics.quantiles(values, n=4)
            lines.append(
                f"| {setting.particles} | {setting.batch} | {name} | {medians[name]:.2f} "
                f"| {low:.2f}–{high:.2f} | {_ratio(values, times[PYRO]):.2f} "
                f"| {_ratio(values, times[OURS]):.2f} |"
            )
    return "\n".join(lines)


def _ratio(values: list[float], others: list[float]) -> float:
    """The median of the rounds' ratios: whatever slows a round slows both."""
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="a folder for the table and the raw numbers")
    options = parser.parse_args()
    found = [(setting, measure(setting, options.rounds, options.device)) for setting in SETTINGS]
    print(table(found))
    if options.output is not None:
        machine = describe_machine()
        command = (
            "python -m pyrovae.benchmarks.speed.objective_steps --rounds "
            f"{options.rounds} --device {options.device}"
        )
        text = f"{table(found)}\n\n`{command}`, interleaved, {machine['summary']}\n"
        record = {
            "command": command,
            "machine": machine,
            "milliseconds": [
                {"particles": one.particles, "batch": one.batch, "times": times}
                for one, times in found
            ],
        }
        keep(options.output, f"objective-steps{suffix(options.device)}", text, record)


if __name__ == "__main__":
    main()
