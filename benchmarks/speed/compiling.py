"""What does compiling cost, for the first time and when the compiler's cache knows the program?

Seconds that ``compile=True`` takes, each in a process of its own: with an empty cache, and again
with the cache that this left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from .part import Part, quartiles

_CODE = """
import json, sys, warnings
warnings.simplefilter("ignore")
from pyrovae.inference import AnnealedImportanceSampling, ImportanceSampling, fit
from pyrovae.benchmarks.speed.subject import build, noise
what, device = sys.argv[1:]
vae, x = build(device), noise(400, device)
if what == "training":
    took = fit(vae.model, vae.guide, x, epochs=1, batch_size=20, progress=False, compile=True)
    took = took.compile_seconds
elif what == "scoring":
    took = ImportanceSampling(5000, compile=True)(vae.model, vae.guide, x[:64])
    took = took.provenance["compile_seconds"]
else:
    estimator = AnnealedImportanceSampling(16, 10, pilot_temperatures=5, compile=True)
    took = estimator(vae.model, vae.guide, x[:64]).provenance["compile_seconds"]
print(json.dumps(took))
"""
SUBJECTS = ("training", "scoring", "annealing")


def _seconds(what: str, device: str, cache: str) -> float:
    out = subprocess.run(
        [sys.executable, "-c", _CODE, what, device],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache},
    )
    return float(json.loads(out.stdout.splitlines()[-1]))


def measure(rounds: int, device: str) -> Part:
    """Time what makes the graphs of a training run and of two estimators."""
    found: dict[str, dict[str, list[float]]] = {}
    for what in SUBJECTS:
        found[what] = {"first": [], "again": []}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as cache:
                for name in found[what]:
                    found[what][name].append(_seconds(what, device, cache))
    lines = ["| graphs of | first, s | again, s |", "|---|---|---|"]
    cells: Any = {
        what: ["{1:.1f} ({0:.1f}–{2:.1f})".format(*quartiles(values)) for values in one.values()]
        for what, one in found.items()
    }
    lines += [f"| {what} | {' | '.join(one)} |" for what, one in cells.items()]
    note = "Median and quartiles. Training has one graph, annealing three."
    return Part("compiling", "What compiling costs", "\n".join(lines), note, record=found)
