"""How Sphinx builds these pages: ``make docs``. Nothing is fetched while it builds."""

from importlib.metadata import version as version_of

project = "pyrovae"
version = release = version_of("pyrovae")
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["examples"]
myst_heading_anchors = 3  # a link to `page.md#a-heading` works here as it does in an editor

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"pyrovae {version}"
html_copy_source = False
html_show_sphinx = False
