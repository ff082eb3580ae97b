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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch._inductor.config as inductor
from torch.profiler import ProfilerActivity, profile

from ...inference import AnnealedImportanceSampling, ImportanceSampling, NoGain, fit
from ...inference.compilation import backends
from ...inference.evidence.scoring import Estimator
from ...inference.training.adam import Adam
from ..machine import clock, describe_machine, keep
from .subject import build, noise


@dataclass(frozen=True)
class Taken:
    """What a run took: each unit of it, and compiling, in seconds."""

    each: float
    compiling: float


Run = Callable[[bool, bool], Taken]  # compiled, in bfloat16

PLAIN, ROUNDED = "as written", "bfloat16"
Left = tuple[Any, str, Any]  # where something stands, its name, and what is put in its place
ADAM: Left = (Adam, "step_at_once", torch.optim.Adam.step)
CALLS: Left = (backends, "FROM_CPP", set())
SOFTPLUS: Left = (backends, "fuse", lambda graph: graph)
PRODUCTS: Left = (backends, "has_faster_products", lambda: False)
REPLAYED: Left = (backends, "BACKENDS", (backends.as_traced,))
WITHOUT: dict[str, tuple[Left, ...]] = {  # what is not there yet in each row
    PLAIN: (ADAM,),
    "traced once": (ADAM, REPLAYED),
    "compiled": (ADAM, CALLS, SOFTPLUS, PRODUCTS),
    "products by oneDNN": (ADAM, CALLS, SOFTPLUS),
    "softplus in blocks": (ADAM, CALLS),
    "called from C++": (ADAM,),
    "Adam at once": (),
    ROUNDED: (),
}
OF_TRAINING, OF_SCORING = {"Adam at once"}, {ROUNDED}
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
        for where, attribute, value in WITHOUT[name]:
            stack.enter_context(patch.object(where, attribute, value))
        yield


def training(batch: int, steps: int) -> Run:
    """Milliseconds of a step."""
    x = noise(steps * batch)

    def run(compiled: bool, rounded: bool) -> Taken:
        vae = build()
        history = fit(
            vae.model,
            vae.guide,
            x,
            epochs=3,
            batch_size=batch,
            seed=0,
            progress=False,
            compile=compiled,
        )
        return Taken(1e3 * float(min(history.seconds[1:])) / steps, history.compile_seconds)

    return run


def estimating(estimator: Estimator, num_data: int, unit: str) -> Run:
    """Microseconds of a weight (unit "evaluations"), or of a chain's gradient ("gradients")."""
    x = noise(num_data)

    def run(compiled: bool, rounded: bool) -> Taken:
        vae = build()
        how: dict[str, Any] = {"compile": compiled} | ({"bfloat16": True} if rounded else {})
        began = clock("cpu")
        found = replace(estimator, **how)(vae.model, vae.guide, x).provenance
        spent = float(found["compile_seconds"])
        seconds = clock("cpu") - began - spent
        return Taken(1e6 * seconds / (float(found[unit]) * num_data), spent)

    return run


SUBJECTS: dict[str, Run] = {
    "a step, batch 20, ms": training(20, 500),
    "a step, batch 128, ms": training(128, 150),
    "a step, batch 512, ms": training(512, 50),
    "a weight, µs": estimating(ImportanceSampling(5000), 320, "evaluations"),
    "a gradient of AIS, µs": estimating(
        AnnealedImportanceSampling(16, 40, pilot_temperatures=5), 64, "gradients"
    ),
}


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Times by subject and row; an optimizer is for training alone, bfloat16 for scoring."""
    found: dict[str, dict[str, list[float]]] = {subject: {} for subject in SUBJECTS}
    for _ in range(rounds):
        for subject, run in SUBJECTS.items():
            for name in WITHOUT:
                if name in OF_TRAINING and not subject.startswith("a step"):
                    continue
                if name in OF_SCORING and not subject.startswith("a weight"):
                    continue
                with step_of(name):
                    taken = run(name != PLAIN, name == ROUNDED).each
                found[subject].setdefault(name, []).append(taken)
    return found


def shares(run: Run, compiled: bool) -> dict[str, float]:
    """Which part of a run's time goes where, but for what compiling took."""
    settings = {"cpp.enable_kernel_profile": True}
    with inductor.patch(settings):
        run(compiled, False)  # the compiler's cache knows it from here on
        with profile(activities=[ProfilerActivity.CPU]) as taken:
            began = clock("cpu")
            spent = run(compiled, False).compiling
            whole = 1e6 * (clock("cpu") - began - spent)
    found = dict.fromkeys((*KINDS, "other operations"), 0.0)
    for one in taken.key_averages():
        kind = next((k for k, words in KINDS.items() if any(w in one.key for w in words)), None)
        if kind or one.key.startswith("aten::"):
            found[kind or "other operations"] += one.self_cpu_time_total / whole
    return found | {"calls and Python": max(1 - sum(found.values()), 0.0)}


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Medians, and how many times longer the row above takes."""
    lines = [f"| | {' | '.join(found)} |", "|---" * (1 + len(found)) + "|"]
    before: dict[str, list[float]] = {}
    for name in WITHOUT:
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
