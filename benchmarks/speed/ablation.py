"""What each step of compiling wins, one after another, and where the time goes before and after.

Each row keeps what the rows above it have. Contenders run in turn; in the second table a run of
each is profiled, and the profiler's own cost, which falls on every operation, makes its shares
rough.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch._inductor.config as inductor
from torch.profiler import ProfilerActivity, profile

from ...inference import AnnealedImportanceSampling, ImportanceSampling, NoGain, fit
from ...inference.compilation import backends
from ..machine import clock, describe_machine, keep
from .subject import build, noise

Run = Callable[[bool, bool], float]  # compiled, in bfloat16; what a unit of it takes

PLAIN, LAST, ROUNDED = "as written", "softplus in blocks", "bfloat16"
PATCHES: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "traced once": {"BACKENDS": (backends.as_traced,)},
    "compiled": {"has_faster_products": lambda: False, "fuse": lambda graph: graph},
    "products by oneDNN": {"fuse": lambda graph: graph},
    LAST: {},
    ROUNDED: {},
}
KINDS = {
    "matrix products": ("mm", "linear", "mkldnn"),
    "random numbers": ("normal", "bernoulli", "rand"),
    "optimizer": ("adam", "Optimizer"),
    "fused kernels": ("cpp_fused",),
}


@contextmanager
def step_of(name: str) -> Iterator[None]:
    """Leave out what comes after a row of the table."""
    with ExitStack() as stack:
        for attribute, value in PATCHES[name].items():
            stack.enter_context(patch.object(backends, attribute, value))
        yield


def training(batch: int, steps: int) -> Run:
    """Milliseconds of a step."""

    def run(compiled: bool, rounded: bool) -> float:
        vae, x = build(), noise(steps * batch)
        seconds = fit(
            vae.model,
            vae.guide,
            x,
            epochs=3,
            batch_size=batch,
            seed=0,
            progress=False,
            compile=compiled,
        ).seconds
        return 1e3 * float(min(seconds[1:])) / steps

    return run


def scoring(compiled: bool, rounded: bool) -> float:
    """Microseconds of an importance weight."""
    vae, x, num_samples = build(), noise(100), 5000
    estimator = ImportanceSampling(num_samples, compile=compiled, bfloat16=rounded)
    began = clock("cpu")
    found = estimator(vae.model, vae.guide, x).provenance
    seconds = clock("cpu") - began - float(found["compile_seconds"])
    return 1e6 * seconds / (num_samples * len(x))


def annealing(compiled: bool, rounded: bool) -> float:
    """Microseconds of a chain's gradient."""
    vae, x = build(), noise(64)
    estimator = AnnealedImportanceSampling(16, 40, pilot_temperatures=5, compile=compiled)
    began = clock("cpu")
    found = estimator(vae.model, vae.guide, x).provenance
    seconds = clock("cpu") - began - float(found["compile_seconds"])
    return 1e6 * seconds / (float(found["gradients"]) * len(x))


SUBJECTS: dict[str, Run] = {
    "a step, batch 20, ms": training(20, 500),
    "a step, batch 128, ms": training(128, 150),
    "a step, batch 512, ms": training(512, 50),
    "a weight, µs": scoring,
    "a gradient of AIS, µs": annealing,
}


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Times by subject and row; bfloat16 is for scoring alone."""
    found: dict[str, dict[str, list[float]]] = {subject: {} for subject in SUBJECTS}
    for _ in range(rounds):
        for subject, run in SUBJECTS.items():
            for name in PATCHES:
                if name == ROUNDED and run is not scoring:
                    continue
                with step_of(name):
                    taken = run(name != PLAIN, name == ROUNDED)
                found[subject].setdefault(name, []).append(taken)
    return found


def shares(run: Run, compiled: bool) -> dict[str, float]:
    """Which part of a run's time goes where."""
    run(compiled, False)  # what is loaded or compiled for the first time is no part of it
    settings = {"cpp.enable_kernel_profile": True}
    with inductor.patch(settings), profile(activities=[ProfilerActivity.CPU]) as taken:
        began = clock("cpu")
        run(compiled, False)
        whole = 1e6 * (clock("cpu") - began)
    found = dict.fromkeys((*KINDS, "other operations"), 0.0)
    for one in taken.key_averages():
        kind = next((k for k, words in KINDS.items() if any(w in one.key for w in words)), None)
        found[kind or "other operations"] += one.self_cpu_time_total / whole
    return found | {"Python": max(1 - sum(found.values()), 0.0)}


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Medians, and how many times longer the row above takes."""
    lines = [f"| | {' | '.join(found)} |", "|---" * (1 + len(found)) + "|"]
    before: dict[str, list[float]] = {}
    for name in PATCHES:
        cells = []
        for subject, times in found.items():
            if name not in times:
                cells.append("")
                continue
            cell = f"{statistics.median(times[name]):.3g}"
            if subject in before:
                ratios = [a / b for a, b in zip(before[subject], times[name], strict=True)]
                cell += f" ({statistics.median(ratios):.2f}×)"
            before[subject] = times[name]
            cells.append(cell)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def profiles(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Shares, in percent, as Markdown."""
    (first,) = {tuple(one) for both in found.values() for one in both.values()}
    lines = [f"| | | {' | '.join(first)} |", "|---" * (2 + len(first)) + "|"]
    for subject, both in found.items():
        lines += [
            f"| {subject} | {name} | {' | '.join(f'{share:.0%}' for share in one.values())} |"
            for name, one in both.items()
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a folder for the tables and the raw numbers")
    options = parser.parse_args()
    warnings.simplefilter("ignore", NoGain)
    warnings.filterwarnings("ignore", "posterior collapse")
    found = measure(options.rounds)
    print(table(found))
    where = {
        subject.rpartition(",")[0]: {PLAIN: shares(run, False), "compiled": shares(run, True)}
        for subject, run in SUBJECTS.items()
    }
    print(profiles(where))
    if options.output is not None:
        machine = describe_machine()
        command = f"python -m pyrovae.benchmarks.speed.ablation --rounds {options.rounds}"
        text = (
            f"{table(found)}\n\nMedians; in brackets, how many times as long the row above takes."
            f"\n\n{profiles(where)}\n\n`{command}`, {machine['summary']}\n"
        )
        record = {"command": command, "machine": machine, "times": found, "shares": where}
        keep(options.output, "ablation", text, record)


if __name__ == "__main__":
    main()
