"""Paragraphs that several docstrings share: written once, and put into each docstring when its module is imported."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from textwrap import indent
from typing import TypeVar

Documented = TypeVar("Documented")

_MARKER = re.compile(r"^([ \t]*)\{(\w+)\}[ \t]*$", re.MULTILINE)


def shares(paragraphs: Mapping[str, str]) -> Callable[[Documented], Documented]:
    """Make a decorator that puts paragraphs into the docstring of a function or a class.

    A line of the docstring that holds a paragraph's name in braces and nothing else stands for the paragraph, which
    takes the line's indentation. The function itself is returned, so that its signature and its type stay.

    Parameters
    ----------
    paragraphs : mapping of str to str
        The text of each name, without indentation.

    Raises
    ------
    KeyError
        By the decorator, for a name that has no paragraph.

    Examples
    --------
    >>> @shares({"seed": "seed : int, keys the random draws."})
    ... def draw(seed):
    ...     '''Draw a number.
    ...     {seed}'''
    >>> print(draw.__doc__)
    Draw a number.
        seed : int, keys the random draws.
    """

    def fill(documented: Documented) -> Documented:
        if documented.__doc__ is not None:  # `python -OO` leaves docstrings out
            documented.__doc__ = _MARKER.sub(lambda line: indent(paragraphs[line[2]], line[1]), documented.__doc__)
        return documented

    return fill
