"""The page's twin in Markdown, for where a page cannot be shown."""

from __future__ import annotations

from typing import Any

from .tables import fenced, markdown


def markdown_page(told: dict[str, Any]) -> str:
    """The same as the page has, its figures in files beside it."""
    study = told["study"]
    blocks = [f"# {markdown(study['title'])}", markdown(study["question"]), told["state"]]
    for part in told["parts"]:
        blocks += _part(part)
    for title, lines in _lists(told).items():
        if lines:
            blocks += [f"## {title}", _listed(lines)]
    blocks += [f"The study:\n\n{fenced(study['toml'].strip(), 'toml')}"]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _part(part: Any) -> list[str]:
    blocks = [f"## {markdown(part.title)}"] if part.title else []
    blocks.append(_listed(part.sentences))
    found = {name: table.markdown() for name, table in part.tables.items()}
    blocks += [found.get("scores", ""), found.get("differences", ""), _listed(part.refusals)]
    blocks.append(found.get("gaps", ""))
    for one in part.figures.values():
        caption = markdown(one.caption)
        blocks.append(f"![{caption}](figures/{one.name}.svg)\n\n{caption}")
    blocks.append(found.get("trainings", ""))
    return blocks


def _lists(told: dict[str, Any]) -> dict[str, list[str]]:
    return {
        "Failed": [f"{record.label}: {record.fault}" for record in told["failed"]],
        "Damaged or missing": told["damaged"],
        "Read otherwise": told["notes"],
        "Warnings": [
            f"{what} (cells: {'; '.join(cells)})" for what, cells in told["warnings"].items()
        ],
        "How to read this": told["how_to_read"],
        "Where it comes from": [f"{name}: {text}" for name, text in told["provenance"].items()],
    }


def _listed(lines: Any) -> str:
    return "\n".join(f"- {markdown(line)}" for line in lines)
