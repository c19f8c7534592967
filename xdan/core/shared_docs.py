"""Paragraphs that several docstrings share. They are written once, and inserted when a module is imported."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from textwrap import indent
from typing import TypeVar

Documented = TypeVar("Documented")

_MARKER = re.compile(r"^([ \t]*)\{(\w+)\}[ \t]*$", re.MULTILINE)


def shares(paragraphs: Mapping[str, str]) -> Callable[[Documented], Documented]:
    """Make a decorator that inserts paragraphs into the docstring of a function or a class.

    A line of the docstring may hold a paragraph's name in braces and nothing else. The paragraph replaces this line,
    with the line's indentation. The decorator returns the function itself, so that its signature and type stay.

    Parameters
    ----------
    paragraphs : mapping of str to str
        Text of each paragraph by name, without indentation.

    Raises
    ------
    KeyError
        From the decorator, if a name has no paragraph.

    Examples
    --------
    >>> from inspect import getdoc
    >>> @shares({"seed": "seed : int, keys the random draws."})
    ... def draw(seed):
    ...     '''Draw a number.
    ...     {seed}'''
    >>> print(getdoc(draw))
    Draw a number.
    seed : int, keys the random draws.
    """

    def fill(documented: Documented) -> Documented:
        if documented.__doc__ is not None:  # `python -OO` leaves docstrings out
            documented.__doc__ = _MARKER.sub(lambda line: indent(paragraphs[line[2]], line[1]), documented.__doc__)
        return documented

    return fill
