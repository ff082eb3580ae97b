r"""The study of objectives told: its numbers put together, as a table and as a picture.

With :math:`\ell_{sn}` the estimated log p(x) of test image n under the model of training seed s, of
S seeds and N images, a variant has the mean over both and three errors: over seeds, the standard
error of the S means over images; Monte Carlo, that of the estimates; test set, the standard error
over images of :math:`\frac1S \sum_s \ell_{sn}`, Monte Carlo noise taken out. The difference to the
ELBO is taken within each pair of image and seed, which have much in common: its error over images
is that of the N differences, averaged over seeds, and its error over seeds that of the S
differences, averaged over images.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.lines import Line2D

from ..machine import keep
from ..pictures import COLOURS, GREY, blank_figure, save_figure

REFERENCE = "ELBO"
FAR = 5  # times as far below the median as the best one is above it
THIN: dict[str, Any] = {"lw": 1, "capsize": 4}
THICK: dict[str, Any] = {"lw": 5, "alpha": 0.4}
Array = npt.NDArray[np.float64]
Run = Mapping[str, Any]


def summarise(
    runs: Sequence[Run], milliseconds: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """One row for each variant, the highest log p(x) first.

    Args:
        runs: of each variant as many as of the ELBO, with the same seeds in the same order.
        milliseconds: per training step, by variant.
    """
    by_variant: dict[str, list[Run]] = {}
    for one in runs:
        by_variant.setdefault(one["variant"], []).append(one)
    reference = _by_image(by_variant[REFERENCE], "log_p_by_image")
    rows = []
    for name, mine in by_variant.items():
        log_p = _by_image(mine, "log_p_by_image")
        averaged = log_p.mean(0)
        noise = sum(one["monte_carlo_stderr"] ** 2 for one in mine) / len(mine) ** 2
        spread = float(averaged.var(ddof=1)) / len(averaged)
        difference = log_p - reference
        is_reference = name == REFERENCE
        rows.append(
            {
                "variant": name,
                "seeds": [one["seed"] for one in mine],
                "log_p": float(averaged.mean()),
                "log_p_by_seed": log_p.mean(1).tolist(),
                "seed_stderr": _stderr(log_p.mean(1)),
                "monte_carlo_stderr": math.sqrt(noise),
                "data_stderr": math.sqrt(max(spread - noise, 0.0)),
                "difference": None if is_reference else float(difference.mean()),
                "difference_by_seed": None if is_reference else difference.mean(1).tolist(),
                "difference_image_stderr": None if is_reference else _stderr(difference.mean(0)),
                "difference_seed_stderr": None if is_reference else _stderr(difference.mean(1)),
                "elbo": _mean(mine, "test_elbo"),
                "gap": _mean(mine, "gap"),
                "khat_too_high": _mean(mine, "khat_too_high"),
                "active_units": _mean(mine, "active_units"),
                "milliseconds": statistics.median(milliseconds[name]),
            }
        )
    return sorted(rows, key=lambda row: -row["log_p"])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: one line per variant."""
    lines = [
        "| objective | test log p(x) ± seeds ± Monte Carlo ± test set "
        f"| against {REFERENCE} ± images ± seeds | ELBO | gap | k̂ too high | active units "
        "| ms per step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        against = "–"
        if row["difference"] is not None:
            against = (
                f"{row['difference']:+.3f} ± {row['difference_image_stderr']:.3f} "
                f"± {_number(row['difference_seed_stderr'])}"
            )
        lines.append(
            f"| {row['variant']} | {row['log_p']:.3f} ± {_number(row['seed_stderr'])} "
            f"± {row['monte_carlo_stderr']:.3f} ± {row['data_stderr']:.3f} | {against} "
            f"| {row['elbo']:.3f} | {row['gap']:.3f} | {row['khat_too_high']:.1%} "
            f"| {row['active_units']:.1f} | {row['milliseconds']:.1f} |"
        )
    return "\n".join(lines)


def explanation(runs: Sequence[Run]) -> str:
    """What the columns of the table are, for those who have only the table."""
    first = runs[0]
    seeds = sorted({one["seed"] for one in runs})
    return (
        f"Nats per image, means over training seeds {', '.join(map(str, seeds))}. Every objective "
        f"takes {first['particles']} particles per datum and step, and was trained for the same "
        f"{first['epochs']} epochs; none was stopped early, as the bound that `fit` validates on "
        "is another for each. log p(x) is estimated by importance sampling with "
        f"K = {first['num_samples']} on {len(first['log_p_by_image'])} test images, binarised "
        "once; ELBO, gap = log p(x) − ELBO and k̂ are of the same draws, whose seed is the training "
        "seed. Errors are standard errors: over seeds (of the means over images), Monte Carlo, and "
        "over test images (of the means over seeds, Monte Carlo noise taken out). Differences to "
        f"the {REFERENCE} are paired by image and seed: ± images is the standard error over images "
        "of the differences averaged over seeds, ± seeds that over seeds of the differences "
        "averaged over images; the noise of sampling is in both. Active units: of "
        f"{first['model']['latent_dim']}, on validation images. ms per step: in turn on one "
        "thread, median over rounds."
    )


def write(
    rows: Sequence[Mapping[str, Any]],
    runs: Sequence[Run],
    timing: Mapping[str, Any],
    command: str,
    folder: Path,
) -> None:
    """Table, raw numbers and picture, as ``objectives.md``, ``.json`` and ``.png``."""
    machine, seconds = timing["machine"], sum(one["seconds"] for one in runs)
    made = (
        f"`{command}`: {len(runs)} runs, {seconds:.0f} s of training in all; {machine['summary']}"
    )
    record = {
        "command": command,
        "machine": machine,
        "seeds": sorted({one["seed"] for one in runs}),
        "rows": rows,
        "milliseconds": timing["milliseconds"],
        "runs": runs,
    }
    keep(folder, "objectives", f"{table(rows)}\n\n{explanation(runs)}\n\n{made}\n", record)
    draw(rows, folder / "objectives.png")


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """log p(x) by variant, in the order of the table: every seed, the mean and both errors.

    A variant that is far below all the others is named at the edge: it would flatten the rest.
    """
    figure = blank_figure(8.0, 1.7 + 0.36 * len(rows))
    axes = figure.subplots()
    scores = [row["log_p"] for row in rows]
    middle = statistics.median(scores)
    lowest = middle - FAR * (max(scores) - middle)
    for place, row in enumerate(rows):
        colour = COLOURS[row["variant"] == REFERENCE]
        if row["log_p"] < lowest:
            edge = axes.get_yaxis_transform()
            label = f"◀ {row['log_p']:.2f}"
            axes.text(0.01, place, label, color=colour, va="center", transform=edge)
            continue
        for key, style in (("difference_image", THIN), ("seed", THICK)):
            if (error := row[f"{key}_stderr"]) is not None:
                axes.errorbar(row["log_p"], place, xerr=error, color=colour, **style)
        axes.plot(row["log_p"], place, "o", color=colour, ms=6, mec="white", zorder=4)
        values = row["log_p_by_seed"]
        axes.plot(values, [place + 0.27] * len(values), "|", color=colour, ms=6, mew=1.3)
        if row["variant"] == REFERENCE:
            axes.axvline(row["log_p"], color=colour, lw=1, ls=":", zorder=0)
    axes.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel("test log p(x), nats per image (higher is better)")
    axes.set_title("Which objective trains the best model?")
    handles = [
        Line2D([], [], color=GREY, marker="o", ls="", label="mean over seeds"),
        Line2D([], [], color=GREY, marker="|", ls="", label="one seed"),
        Line2D([], [], color=GREY, lw=5, alpha=0.4, label="± over seeds"),
        Line2D([], [], color=GREY, lw=1, label=f"± over images, of the difference to {REFERENCE}"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save_figure(figure, path)


def _by_image(runs: Sequence[Run], name: str) -> Array:
    """``(S, N)``."""
    return np.array([one[name] for one in runs], dtype=np.float64)


def _mean(runs: Sequence[Run], name: str) -> float:
    return statistics.fmean(one[name] for one in runs)


def _stderr(values: Array) -> float | None:
    """Standard error of the mean; None for a single value."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"
