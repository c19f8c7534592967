"""How a notebook shows an object: a small table of its properties."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from .checks import shown


def html_table(title: str, rows: Iterable[tuple[str, Any]]) -> str:
    """HTML of a title and a table of names and values. Long values that are not strings are cut.

    Examples
    --------
    >>> html_table("Lorenz96", [("sites", 40)])
    '<strong>Lorenz96</strong><table><tr><th>sites</th><td>40</td></tr></table>'
    """
    cells = (
        f"<tr><th>{escape(name)}</th><td>{escape(value if isinstance(value, str) else shown(value))}</td></tr>"
        for name, value in rows
    )
    return f"<strong>{escape(title)}</strong><table>{''.join(cells)}</table>"
