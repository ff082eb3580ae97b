"""Tables once, in three forms: HTML that can be sorted, Markdown, and LaTeX for papers."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and the number it is sorted by."""

    text: str
    number: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A caption, headers with what they mean, and rows.

    Attributes:
        name: of its files.
        caption: above it.
        headers: ``(header, meaning)``.
        rows: as many cells each.
    """

    name: str
    caption: str
    headers: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]

    def html(self) -> str:
        """Sorted by a click on a header, which is a button for keyboards too."""
        head = "".join(
            f'<th scope="col"><button type="button" title="{html.escape(meaning)}">'
            f"{html.escape(header).replace('± ', '±&nbsp;')}</button></th>"
            for header, meaning in self.headers
        )
        lines = []
        for row in self.rows:
            cells = "".join(_html(cell) for cell in row)
            lines.append(f"<tr>{cells}</tr>")
        return (
            f'<div class="scroll"><table class="sortable"><caption>{html.escape(self.caption)}'
            f"</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        )

    def markdown(self) -> str:
        lines = [
            f"**{markdown(self.caption)}**",
            "",
            f"| {' | '.join(markdown(header) for header, _ in self.headers)} |",
            f"|{'---|' * len(self.headers)}",
        ]
        lines += [f"| {' | '.join(map(_marked, row))} |" for row in self.rows]
        return "\n".join(lines)

    def latex(self) -> str:
        """With booktabs; numbers to the right."""
        first = self.rows[0] if self.rows else ()
        columns = "".join("l" if cell.number is None else "r" for cell in first)
        head = " & ".join(latex(header) for header, _ in self.headers)
        body = "\n".join(
            f"{' & '.join(_strong(latex(cell.text), cell) for cell in row)} \\\\"
            for row in self.rows
        )
        return (
            "% needs \\usepackage{booktabs}\n"
            f"\\begin{{table}}\n\\caption{{{latex(self.caption)}}}\n\\centering\n"
            f"\\begin{{tabular}}{{{columns or 'l' * len(self.headers)}}}\n\\toprule\n{head} \\\\\n"
            f"\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
        )


def number(value: float, digits: int = 2, signed: bool = False, strong: bool = False) -> Cell:
    """A number as a cell; a dash where it is not known.

    >>> number(-1.234).text, number(0.5, signed=True).text, number(float("nan")).text
    ('−1.23', '+0.50', '–')
    """
    if math.isnan(value):
        return Cell("–", -math.inf)
    if math.isinf(value):
        return Cell("∞" if value > 0 else "−∞", value, strong)
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return Cell(text.replace("-", "−"), value, strong)


def seconds(value: float) -> Cell:
    """A time as a cell, a short one with its tenths.

    >>> seconds(0.31).text, seconds(150.4).text
    ('0.3', '150')
    """
    return number(value, 1 if value < 10 else 0)


def percent(share: float) -> Cell:
    """A share as a cell.

    >>> percent(0.025).text, percent(0.0).text
    ('2.5%', '0%')
    """
    if math.isnan(share):
        return Cell("–", -math.inf)
    return Cell("0%" if share == 0 else f"{share:.1%}", share)


def doubts(unreliable: float, undiagnosed: float) -> Cell:
    """The share of data that k̂ or R̂ speaks against; where they are known of none, that.

    >>> doubts(0.02, 0.0).text, doubts(1.0, 1.0).text
    ('2.0%', 'unknown')
    """
    return percent(unreliable) if undiagnosed < 1 else Cell("unknown", 1.0)


def chance(p: float) -> Cell:
    """A p-value as a cell.

    >>> chance(0.00001).text, chance(0.034).text
    ('< 0.001', '0.034')
    """
    if math.isnan(p):
        return Cell("–", math.inf)
    return Cell("< 0.001" if p < 0.001 else f"{p:.3f}", p)


def words(text: str, strong: bool = False) -> Cell:
    return Cell(text, None, strong)


_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "η": "eta",
    "θ": "theta", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "π": "pi", "ρ": "rho",
    "σ": "sigma", "τ": "tau", "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega",
}  # fmt: skip
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "×": r"$\times$",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': "''",
    "[": "{[}",  # after the end of a line a bracket or an asterisk would be an argument of it
    "*": "{*}",
    "\n": " ",
    "\r": " ",
    **{letter: f"$\\{name}$" for letter, name in _GREEK.items()},
}


def latex(text: str) -> str:
    r"""A text with what LaTeX would take for its own put in other words.

    >>> print(latex("L_5 & k\u0302 100%"))
    L\_5 \& $\hat{k}$ 100\%
    """
    escaped = "".join(_LATEX.get(c, c) for c in text.replace("k̂", "\0").replace("R̂", "\1"))
    return escaped.replace("\0", r"$\hat{k}$").replace("\1", r"$\hat{R}$")


def _strong(text: str, cell: Cell) -> str:
    return f"\\textbf{{{text}}}" if cell.strong else text


def _html(cell: Cell) -> str:
    text = html.escape(cell.text)
    text = f"<strong>{text}</strong>" if cell.strong else text
    if cell.number is None:
        return f"<td>{text}</td>"
    return f'<td class="number" data-number="{cell.number}">{text}</td>'


def _marked(cell: Cell) -> str:
    return f"**{markdown(cell.text)}**" if cell.strong else markdown(cell.text)


def markdown(text: str) -> str:
    r"""A text with what Markdown (and GitHub's mathematics) would take for its own escaped.

    >>> print(markdown("L_5 | `a` <b> $x$"))
    L\_5 \| \`a\` \<b\> \$x\$
    """
    for special in "\\|*_`<>[]$~&#":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.splitlines())


def fenced(text: str, language: str) -> str:
    """A listing for Markdown, its fence longer than any that the text holds.

    >>> print(fenced("```", "toml").splitlines()[0])
    ````toml
    """
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
