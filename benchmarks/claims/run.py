"""Run the experiments, and say which claims hold."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...inference.tables import table
from ..demo import one_thread
from ..machine import describe_machine, keep
from . import inference, models, monte_carlo
from .verdict import Claim, Verdict

CLAIMS = (
    Claim(
        "marginal",
        "p(x) = ∫ p(x|z) p(z) dz",
        "inference/evidence/scoring.py",
        monte_carlo.marginal,
    ),
    Claim(
        "prior-variance",
        "averaging p(x|z) over the prior has a huge variance",
        "inference/weights.py",
        monte_carlo.prior_variance,
    ),
    Claim(
        "perfect-proposal",
        "Var I_n = Var(w)/n, and it is 0 at the posterior",
        "inference/weights.py",
        monte_carlo.perfect_proposal,
    ),
    Claim(
        "bounds",
        "the ELBO is a lower bound; more samples tighten it as 1/K",
        "inference/evidence/importance.py",
        monte_carlo.bounds,
    ),
    Claim(
        "identity",
        "ELBO = log p(x) − KL(q ‖ posterior)",
        "inference/weights.py",
        inference.identity,
    ),
    Claim(
        "amortisation",
        "amortised inference pays a gap",
        "inference/information/gaps.py",
        inference.amortisation,
    ),
    Claim(
        "gradients",
        "reparameterising beats the score function",
        "inference/objectives/gradients/pathwise.py",
        inference.gradients,
    ),
    Claim("prior", "the prior matters", "models/priors/vamp.py", models.prior),
    Claim(
        "codes",
        "VQ-VAE: discrete codes, and a prior learned of them",
        "models/quantised/vqvae.py",
        models.codes,
    ),
    Claim(
        "conditional",
        "conditional VAE: log p(y|x)",
        "models/conditional.py",
        models.conditional,
    ),
    Claim(
        "estimator",
        "the estimator matters",
        "inference/evidence/comparison.py",
        models.estimator,
    ),
)


def claims(
    names: Sequence[str] | None = None,
    output: str | Path | None = None,
    say: Callable[[str], None] = print,
    among: Sequence[Claim] = CLAIMS,
) -> bool:
    """Run the experiments of some claims, by default of all; returns whether all hold.

    An experiment that raises shows its claim does not hold; the others go on.

    Args:
        names: which ones.
        output: a folder for ``claims.md`` and ``claims.json``.
        say: is told the table, line by line.
        among: the claims there are.

    Raises:
        ValueError: a name that is none.
    """
    known = {claim.name: claim for claim in among}
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"claims should be of {', '.join(known)}; found {unknown[0]}")
    chosen = [known[name] for name in names] if names else list(among)
    start = time.perf_counter()
    found: list[tuple[Claim, list[Verdict], float]] = []
    with one_thread():
        for claim in chosen:
            began = time.perf_counter()
            verdicts = _measure(claim)
            found.append((claim, verdicts, time.perf_counter() - began))
            good = all(one.holds for one in verdicts)
            say(f"{'holds' if good else 'FAILS'}  {claim.says}  ({found[-1][2]:.0f} s)")
    say("")
    say(_table(found))
    seconds = time.perf_counter() - start
    failed = [claim.name for claim, verdicts, _ in found if not all(v.holds for v in verdicts)]
    say(
        f"\n{len(found) - len(failed)} of {len(found)} claims hold"
        + (f"; not so: {', '.join(failed)}" if failed else "")
        + f"; {seconds:.0f} s"
    )
    if output is not None:
        _keep(Path(output), found, seconds)
    return not failed


def _measure(claim: Claim) -> list[Verdict]:
    try:
        return claim.experiment()
    except Exception as error:  # shown as what it is: a claim that nothing shows
        traceback.print_exc()
        return [Verdict("the experiment", "a number", f"{type(error).__name__}: {error}", False)]


def _rows(found: Sequence[tuple[Claim, list[Verdict], float]]) -> list[tuple[str, ...]]:
    return [
        (
            claim.name if i == 0 else "",
            one.what,
            one.expected,
            one.measured,
            "holds" if one.holds else "FAILS",
            f"{seconds:.0f}" if i == 0 else "",
        )
        for claim, verdicts, seconds in found
        for i, one in enumerate(verdicts)
    ]


BAR = "\\|"  # one that ends no cell of a Markdown table
HEADERS = ("claim", "measured", "expected", "found", "verdict", "seconds")


def _table(found: Sequence[tuple[Claim, list[Verdict], float]]) -> str:
    return table(HEADERS, _rows(found), left=(0, 1, 2, 3, 4))


def _keep(
    folder: Path, found: Sequence[tuple[Claim, list[Verdict], float]], seconds: float
) -> None:
    machine = describe_machine()
    lines = [
        "| claim | shown by | measured | expected | found | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for claim, verdicts, _ in found:
        for i, one in enumerate(verdicts):
            first = (claim.says, f"`{claim.shown_by}`") if i == 0 else ("", "")
            verdict = "holds" if one.holds else "FAILS"
            cells = (*first, one.what, one.expected, one.measured, verdict)
            lines.append(f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |")
    lines.append(f"\n`pyrovae claims --output {folder}`: {seconds:.0f} s; {machine['summary']}\n")
    record: dict[str, Any] = {
        "machine": machine,
        "seconds": seconds,
        "claims": [
            {
                "name": claim.name,
                "says": claim.says,
                "verdicts": [asdict(one) for one in verdicts],
                "seconds": taken,
            }
            for claim, verdicts, taken in found
        ],
    }
    keep(folder, "claims", "\n".join(lines), record)
