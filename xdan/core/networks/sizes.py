"""Checks of sizes in constructors of networks."""

from __future__ import annotations

from typing import Any

from ..checks import integer

LARGEST = 10_000  # most channels, layers or sites of a window: no network needs more, and a store may claim any size


def size(label: str, value: Any, least: int = 1) -> int:
    """Check a number of channels, layers or members.

    Raises
    ------
    TypeError, ValueError
        If it is not an integer, or out of bounds.
    """
    return integer(label, value, least=least, most=LARGEST)


def odd(label: str, value: Any) -> int:
    """Check the width of a window that has a centre.

    Raises
    ------
    TypeError, ValueError
        If it is not an integer, out of bounds, or even.
    """
    width = size(label, value)
    if width % 2 == 0:
        raise ValueError(f"{label}={width}: expected an odd number, so that a window has a centre")
    return width
