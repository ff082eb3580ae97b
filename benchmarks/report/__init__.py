"""The report of a study: one page that stands alone, its twin in Markdown, figures, LaTeX tables.

a study's folder -> results -> statistics -> tables and figures -> page
"""

from .page import report

__all__ = ["report"]
