"""Bars that show how far long work has come, where somebody asked to see them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm.auto import tqdm

_T = TypeVar("_T")
_DELAY = 2.0  # seconds of work that need no bar

_shown: ContextVar[bool] = ContextVar("shown", default=False)


@contextmanager
def showing_bars(on: bool) -> Iterator[None]:
    """Show bars inside this context, in this thread, or hide them; they are hidden by default."""
    token = _shown.set(on)
    try:
        yield
    finally:
        _shown.reset(token)


def track(items: Iterable[_T], what: str) -> Iterable[_T]:
    """Go through items with a bar, named by what is done; it appears after some seconds, and only where bars are shown.

    Parameters
    ----------
    items : iterable
    what : str
        Such as "tuning inflation".

    Returns
    -------
    iterable
        Of the same items.
    """
    if not _shown.get():
        return items
    bar: Iterable[_T] = tqdm(items, desc=what, delay=_DELAY, leave=False)
    return bar
