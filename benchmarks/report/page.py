"""The page: everything in one file that needs no network, and its twin in Markdown."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ...inference.files import write_atomically
from ..runs import check_writable
from .figures import Drawn, figures, label
from .results import Results, read_results
from .summary import sentences, state, tables
from .tables import Table

HOW_TO_READ = (
    "log p(x) is in nats per datum: higher is better. Four errors are kept apart, because they "
    "shrink with different things: Monte Carlo with samples, test set with data, seed with "
    "trainings, binarisation with draws of the bits, of which there is one.",
    "The errors by data and by seed are each row's own. What makes an image hard is common to all "
    "rows: compare rows by their paired differences, not by whether their errors overlap.",
    "A p-value by data speaks of other data, one by seeds of other trainings. A difference is "
    "sure where both are below 5 %; with many rows, some will be below 5 % by chance.",
    "k̂ is the shape of the importance weights' tail. Where it is above its threshold (0.7, less "
    "for few samples), neither the number nor its Monte Carlo error means anything.",
)


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
    drawn, filled = figures(results), tables(results)
    written = {
        output / "report.html": _html(results, drawn, filled).encode(),
        output / "report.md": _markdown(results, drawn, filled).encode(),
    }
    for figure in drawn:
        written[output / "figures" / f"{figure.name}.svg"] = figure.svg("black").encode()
        written[output / "figures" / f"{figure.name}.pdf"] = figure.pdf()
    for table in filled:
        written[output / "tables" / f"{table.name}.tex"] = table.latex().encode()
    for file, content in written.items():
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, content)
    return list(written)


def _html(results: Results, drawn: list[Drawn], filled: list[Table]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyrovae.benchmarks.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    points = list(results.samples)
    return environment.get_template("report.html.j2").render(
        study=results.study,
        state=state(results),
        sentences=sentences(results),
        tables={table.name: Markup(table.html()) for table in filled},
        figures={one.name: (Markup(one.inline()), one.caption) for one in drawn},
        samples=[(label(p, points), _embedded(results.samples[p])) for p in points],
        failed=results.failed,
        damaged=results.damaged,
        how_to_read=HOW_TO_READ,
        provenance=_provenance(results),
    )


def _embedded(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _provenance(results: Results) -> dict[str, str]:
    """Where the numbers come from."""
    machines = [record["machine"] for record in results.records]
    dates = sorted(record["finished"] for record in results.records)
    found: dict[str, Any] = {
        "commands": "; ".join(results.study.get("commands", [])),
        "seeds": ", ".join(str(s) for s in sorted({c["seed"] for c in results.study["cells"]})),
        "machines": "; ".join(sorted({machine["summary"] for machine in machines})),
        "versions": "; ".join(
            sorted({", ".join(f"{k} {v}" for k, v in m["versions"].items()) for m in machines})
        ),
        "computed": f"{dates[0]} to {dates[-1]}" if dates else "",
    }
    return {name: text for name, text in found.items() if text}


def _markdown(results: Results, drawn: list[Drawn], filled: list[Table]) -> str:
    study = results.study
    parts = [f"# {study['title']}", study["question"], state(results)]
    parts.append("\n".join(f"- {text}" for text in sentences(results)))
    by_name = {table.name: table.markdown() for table in filled}
    parts += [by_name[name] for name in ("scores", "differences") if name in by_name]
    parts += [f"![{one.caption}](figures/{one.name}.svg)\n\n{one.caption}" for one in drawn]
    if results.failed:
        lines = [
            f"- {r['data']}, {r['model']}, {r['objective']}, seed {r['seed']}: "
            f"{r['error']['where']}: {r['error']['type']}: {r['error']['message']}"
            for r in results.failed
        ]
        parts += ["## Failed", "\n".join(lines)]
    if results.damaged:
        parts += ["## Damaged", "\n".join(f"- {text}" for text in results.damaged)]
    if "trainings" in by_name:
        parts.append(by_name["trainings"])
    parts += ["## How to read this", "\n".join(f"- {text}" for text in HOW_TO_READ)]
    provenance = [f"- {name}: {text}" for name, text in _provenance(results).items()]
    parts += ["## Where it comes from", "\n".join(provenance)]
    parts += [f"The study:\n\n```toml\n{study['toml'].strip()}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"
