"""The page: everything in one file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ...inference.evidence.estimate import versions
from ...inference.files import write_atomically
from ..runs import check_writable
from .content import refusals, tables
from .drawing import Drawn
from .figures import figures, names
from .results import read_results
from .rows import Results
from .summary import sentences, state
from .tables import Table
from .twin import markdown_page


@dataclass(frozen=True)
class Part:
    """What there is of one data set; figures and tables by what they show.

    Where there are several data sets, each has its own title, and files of its own name.
    """

    title: str
    sentences: Sequence[str]
    refusals: Sequence[str]
    figures: dict[str, Drawn]
    tables: dict[str, Table]
    samples: Sequence[tuple[str, bytes]]


def report(folder: str | Path, output: str | Path | None = None) -> list[Path]:
    """Write the report of a study.

    Args:
        folder: of the study, finished or not.
        output: where the report goes; by default into the study's folder.

    Returns:
        The files written: the page first.

    Raises:
        FileNotFoundError: there is no study in the folder.
        OSError: the output cannot be written to.
    """
    results = read_results(Path(folder))
    output = Path(folder if output is None else output)
    check_writable(output, make=True)
    parts = parts_of(results)
    told = {
        "study": results.study,
        "state": state(results),
        "parts": parts,
        "failed": results.failed,
        "damaged": results.damaged,
        "notes": results.notes,
        "warnings": _warnings(results),
        "how_to_read": how_to_read(results),
        "provenance": _provenance(results),
    }
    written = {
        output / "report.html": _html(told).encode(),
        output / "report.md": markdown_page(told).encode(),
    }
    for part in parts:
        for figure in part.figures.values():
            written[output / "figures" / f"{figure.name}.svg"] = figure.svg().encode()
            written[output / "figures" / f"{figure.name}.pdf"] = figure.pdf()
        for table in part.tables.values():
            written[output / "tables" / f"{table.name}.tex"] = table.latex().encode()
    for file, content in written.items():
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, content)
    return list(written)


def parts_of(results: Results) -> list[Part]:
    """A part for each data set: numbers of two are not comparable."""
    found = []
    several = len(results.data) > 1
    for i, data in enumerate(results.data):
        of = results.of(data)
        end = f"-{i + 1}-{re.sub(r'[^a-z0-9]+', '-', data.lower()).strip('-')}".rstrip("-")
        end = end if several else ""
        points = list(of.samples)
        found.append(
            Part(
                title=data if several else "",
                sentences=sentences(of),
                refusals=refusals(of),
                figures={one.name: replace(one, name=one.name + end) for one in figures(of)},
                tables={one.name: replace(one, name=one.name + end) for one in tables(of)},
                samples=list(zip(names(points), of.samples.values(), strict=True)),
            )
        )
    return found


def how_to_read(results: Results) -> list[str]:
    """What the numbers mean, of those that are there."""
    drawn = any(results.dynamic.values())
    bits = ", binarisation with draws of the bits, of which there is one" if drawn else ""
    return [
        f"log p(x) is in nats per datum: higher is better. {'Four' if drawn else 'Three'} errors "
        "are kept apart, because they shrink with different things: Monte Carlo with samples, test "
        f"set with data, seed with trainings{bits}. A dash: not known.",
        "The errors by data and by seed are each row's own. What makes an image hard is common to "
        "all rows: compare rows by their paired differences, not by whether their errors overlap.",
        "A p-value by data speaks of other data, one by seeds of other trainings. A difference is "
        "sure where both are below 5%; with many rows, some will be below 5% by chance.",
        "k̂ is the shape of the importance weights' tail. Where it is above its threshold, "
        "min(1 − 1/log₁₀ K, 0.7) of K samples, neither the number nor its Monte Carlo error means "
        "anything. R̂ is that of chains, and should be below 1.05.",
    ]


def _html(told: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyrovae.benchmarks.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["table"] = lambda table: Markup(table.html())
    environment.filters["drawing"] = lambda figure: Markup(figure.inline())
    environment.filters["embedded"] = lambda picture: (
        f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    )
    return environment.get_template("report.html.j2").render(told)


def _warnings(results: Results) -> dict[str, list[str]]:
    """What was warned of, and in which cells."""
    found: dict[str, list[str]] = {}
    for record in results.records:
        for warning in record.warnings:
            found.setdefault(warning, []).append(record.label)
    return found


def _provenance(results: Results) -> dict[str, str]:
    """Where the numbers come from."""
    study, records = results.study, results.records
    dates = sorted(record.finished for record in records if record.finished)
    data = [
        f"{name}: {results.fingerprints[name]}"
        + (" (bits drawn once for validation and test)" if results.dynamic[name] else "")
        for name in results.data
        if results.fingerprints.get(name)
    ]
    found = {
        "commands": "; ".join(map(str, study["commands"])),
        "study file, SHA-256": hashlib.sha256(study["toml"].encode()).hexdigest(),
        "held-out data, SHA-256": "; ".join(data),
        "seeds": ", ".join(map(str, sorted({cell["seed"] for cell in study["cells"]}))),
        "machines": "; ".join(sorted({r.machine for r in records if r.machine})),
        "versions": "; ".join(sorted({r.versions for r in records if r.versions})),
        "computed": f"{dates[0]} to {dates[-1]}" if dates else "",
        "report written by": f"pyrovae {versions()['pyrovae']}",
    }
    return {name: text for name, text in found.items() if text}
