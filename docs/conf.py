"""The site of the documentation: `python -m sphinx -W --keep-going -b html docs docs/_build`."""

from __future__ import annotations

import re
from typing import Any

import xdan

project = "xdan"
author = "The xdan developers"
project_copyright = author
version = release = xdan.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
html_theme = "pydata_sphinx_theme"
html_title = f"xdan {version}"
html_theme_options = {"navigation_with_keys": False, "show_toc_level": 2, "header_links_before_dropdown": 6}
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's sections say the types
autodoc_class_signature = "mixed"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False


def _escaped(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Shapes such as (trajectory, time, *state) are no emphasis."""
    lines[:] = [re.sub(r"(?<![\\*`\w])\*(?=\w)", r"\\*", line) for line in lines]


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _escaped, priority=900)
