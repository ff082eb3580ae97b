"""The report of a study: one page that stands alone, its twin in Markdown, figures, LaTeX tables.

a study's folder -> results (rows) -> statistics -> choice -> content, figures, doubt, summary
                 -> page and its twin
"""

from .page import report

__all__ = ["report"]
