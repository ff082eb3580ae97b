"""How long does one importance weight take, and how far is that from the products it needs?

Microseconds per (sample, datum) for log p(x) with K = 5,000 samples: ours, plain, compiled, and
with the decoder in bfloat16; by hand, a thousand samples of a datum at a time, eager and under
``torch.compile``; Pythae's ``get_nll``; Pyro's ``vectorized_importance_weights``; and the decoder's
matrix products alone, in single precision and as torch makes them of itself. All share one set of
weights; each is run once a round, in turn. Before any is timed, their estimates are checked to
agree. What compiling takes is left out, and stands in a table of its own.

What bfloat16 makes of log p(x) is measured on a model that has learned something: trained on digits
enlarged to 28 × 28.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ...inference import Estimate, ImportanceSampling, NoGain, fit
from ...models import VAE
from ..machine import clock
from . import peers
from .part import FLOOR, Part, Times, compared
from .subject import LATENT_DIM, build, by_torch, digits, nets, noise

NUM_SAMPLES = 5000
OURS, COMPILED, ROUNDED = (
    "ImportanceSampling",
    "ImportanceSampling, compile=True",
    "ImportanceSampling, compile=True, bfloat16=True",
)
HAND, COMPILED_HAND = "by hand, eager", "by hand, torch.compile"
PYRO, PYTHAE = "Pyro vectorized_importance_weights", "Pythae get_nll"
MANY, FEW = 200, 20  # data, for what is fast and for what is not
_CHUNK = 1000
EPOCHS = 60  # of the training behind the shift of bfloat16

Contender = Callable[[], tuple[float, float]]  # mean log p(x), and µs per (sample, datum)


def _ours(vae: VAE, x: Tensor, **how: Any) -> Contender:
    def score() -> tuple[float, float]:
        start = clock(x.device)
        found = ImportanceSampling(NUM_SAMPLES, **how)(vae.model, vae.guide, x)
        seconds = clock(x.device) - start - float(found.provenance["compile_seconds"])
        return float(found.log_evidence.mean()), 1e6 * seconds / (NUM_SAMPLES * len(x))

    return score


def _timed(score: Callable[[Tensor], float], x: Tensor) -> Contender:
    def run() -> tuple[float, float]:
        start = clock(x.device)
        with torch.no_grad():
            value = score(x)
        return value, 1e6 * (clock(x.device) - start) / (NUM_SAMPLES * len(x))

    return run


def _pyros(vae: VAE) -> Callable[[Tensor], float]:
    """By Pyro, one datum at a time: its weights are of the whole batch."""

    def score(x: Tensor) -> float:
        total = 0.0
        with pyro.validation_enabled(False):
            for row in x.split(1):
                log_weight, _, _ = vectorized_importance_weights(
                    vae.model,
                    vae.guide,
                    row,
                    num_samples=NUM_SAMPLES,
                    max_plate_nesting=1,
                    normalized=False,
                )
                total += float(log_weight.logsumexp(0)) - math.log(NUM_SAMPLES)
        return total / len(x)

    return score


def _by_hand(vae: VAE, compiled: bool) -> Callable[[Tensor], float]:
    """What one writes without Pyro: a datum is encoded once, and its samples are taken in turns."""
    encoder, decoder = nets(vae)
    device = next(encoder.parameters()).device

    def weigh(x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
        draws = torch.randn(_CHUNK, LATENT_DIM, device=device)
        z = loc + log_scale.exp() * draws
        logits = decoder(z)
        fit_to_x = -binary_cross_entropy_with_logits(
            logits, x.expand_as(logits), reduction="none"
        ).sum(-1)
        ratio = 0.5 * (draws.square() - z.square()).sum(-1) + log_scale.sum()
        return (fit_to_x + ratio).logsumexp(0)

    step = by_torch(weigh, device) if compiled else weigh

    def score(x: Tensor) -> float:
        found = []
        for row in x:
            loc, log_scale = encoder(row).chunk(2, -1)
            parts = [step(row, loc, log_scale).clone() for _ in range(NUM_SAMPLES // _CHUNK)]
            found.append(torch.stack(parts).logsumexp(0) - math.log(NUM_SAMPLES))
        return float(torch.stack(found).mean())

    return score


def _products(vae: VAE) -> Callable[[Tensor], float]:
    """The decoder's matrix products alone, a thousand rows at a time."""
    weights = [m.weight for m in nets(vae)[1].modules() if isinstance(m, nn.Linear)]
    inputs = [torch.randn(_CHUNK, w.shape[1], device=w.device) for w in weights]

    def run(x: Tensor) -> float:
        for _ in range(len(x) * NUM_SAMPLES // _CHUNK):
            for value, weight in zip(inputs, weights, strict=True):
                value @ weight.T
        return math.nan

    return run


def contenders(device: str) -> dict[str, Contender]:
    """All that can take part here, around the same weights."""
    vae = build(device)
    with torch.no_grad():
        # weak nets make the prior nearly the posterior: estimates agree closely, at equal cost
        for net in nets(vae):
            *_, last = (part for part in net.modules() if isinstance(part, nn.Linear))
            last.weight.mul_(0.05)
    few, many = noise(FEW, device), noise(FEW, device).repeat(MANY // FEW, 1)
    found: dict[str, Contender] = {
        PYRO: _timed(_pyros(vae), few),
        HAND: _timed(_by_hand(vae, False), many),
        COMPILED_HAND: _timed(_by_hand(vae, True), many),
        OURS: _ours(vae, many),
        COMPILED: _ours(vae, many, compile=True),
        ROUNDED: _ours(vae, many, compile=True, bfloat16=True),
        FLOOR: _timed(_products(vae), many),
    }
    if peers.has_pythae():
        peer = peers.pythaes(vae).eval()
        for batch in (100, 1000):

            def nll(x: Tensor, batch: int = batch) -> float:
                return float(peer.get_nll(x, n_samples=NUM_SAMPLES, batch_size=batch))

            found[f"{PYTHAE}, batch {batch}"] = _timed(nll, few)
    return found


def shift_of_bfloat16(device: str) -> Estimate:
    """An estimate in bfloat16 under a trained model, with its shift in the diagnostics."""
    train, test = digits(device)
    vae = build(device)
    fit(
        vae.model,
        vae.guide,
        train,
        epochs=EPOCHS,
        batch_size=20,
        seed=0,
        progress=False,
        compile=True,
    )
    return ImportanceSampling(NUM_SAMPLES, compile=True, bfloat16=True)(vae.model, vae.guide, test)


def measure(rounds: int, device: str) -> Part:
    """Time an importance weight."""
    running = contenders(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoGain)
        answers = {name: run()[0] for name, run in running.items()}  # warms up, too
        finite = [value for value in answers.values() if np.isfinite(value)]
        if max(finite) - min(finite) > 0.05:
            raise RuntimeError(f"the contenders disagree about log p(x): {answers}")
        times: Times = {name: [] for name in running}
        for _ in range(rounds):
            for name, run in running.items():
                times[name].append(run()[1])
        shifted = shift_of_bfloat16(device)
    pythae = f"{PYTHAE}, batch 100"
    lines = [
        "| µs per (sample, datum), K = 5000 | median | quartiles | Pythae / this | Pyro / this "
        "| eager by hand / this | this / floor |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = compared(times, (pythae, PYRO, HAND, FLOOR))
    lines += [
        f"| {name} | {middle:.2f} | {low:.2f}–{high:.2f} | {one:.2f} | {two:.2f} | {hand:.2f} "
        f"| {1 / least:.2f} |"
        for name, middle, low, high, (one, two, hand, least) in rows
    ]
    (told,) = [one for one in shifted.warnings() if one.startswith("bfloat16")]
    note = (
        "Pythae's own batch size is 100. The floor is of single precision, as torch's own products "
        "are; compiled code may choose faster ones. With bfloat16 the first data are scored in "
        "single precision too, which counts. Mean log p(x) of a model trained on digits enlarged "
        f"to 28 × 28: {shifted.mean()}; {told}."
    )
    if not peers.has_pythae():
        note += f" {peers.MISSING}"
    single = shifted.diagnostics["log_evidence_float32"]
    record = {"shift": (shifted.log_evidence - single)[single.isfinite()].tolist()}
    return Part(
        "scoring",
        "An importance weight",
        "\n".join(lines),
        note,
        {"scoring, K = 5000": times},
        "µs a weight",
        record,
    )
