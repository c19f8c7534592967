"""Checks of arguments: messages name the argument, what it was and what was expected; answers are plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NO_NUMBERS = (bool, np.bool_, np.timedelta64)  # Python or NumPy counts these types among the integers
_STEM = 4  # letters that a wrong name and a known one begin with alike, where one goes on: batch_size, batch
_LONGEST = 80  # characters of a value that a message shows


class XdanWarning(UserWarning):
    """Something that is allowed but surprising.

    Examples
    --------
    >>> import warnings, xdan
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", category=xdan.XdanWarning)  # what is surprising stops a script
    ...     ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=3)
    >>> issubclass(xdan.XdanWarning, UserWarning)
    True
    """


def shown(value: Any) -> str:
    """One line that shows a value in a message, cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({type(value).__name__})"


def perhaps(name: Any, known: Iterable[str]) -> str:
    """The known name that a wrong one may stand for, as the end of a sentence; empty where none is near.

    Capitals do not count.

    Examples
    --------
    >>> perhaps("enkfn", ["enkf-n", "letkf", "etkf"])
    ", perhaps 'enkf-n'"
    >>> perhaps("batch_size", ["batch", "steps"])
    ", perhaps 'batch'"
    """
    lowered, wrong = {one.lower(): one for one in known}, str(name).lower()
    near = get_close_matches(wrong, list(lowered), n=1, cutoff=0.7)
    if not near and len(wrong) >= _STEM:
        near = [one for one in lowered if len(one) >= _STEM and (wrong.startswith(one) or one.startswith(wrong))][:1]
    return f", perhaps {lowered[near[0]]!r}" if near else ""


def integer(label: str, value: Any, *, least: int | None = None, most: int | None = None) -> int:
    """Take an integer, NumPy's too; no bool, and no float even where it is whole.

    Parameters
    ----------
    label : str
        The argument's name.
    value : object
    least, most : int, optional
        Bounds, ends included.

    Raises
    ------
    TypeError
        For what is no integer.
    ValueError
        For one out of bounds.
    """
    if isinstance(value, _NO_NUMBERS) or not isinstance(value, Integral):
        raise TypeError(f"{label}={shown(value)}: expected an integer{_bounds(least, most)}")
    number = int(value)
    if (least is not None and number < least) or (most is not None and number > most):
        raise ValueError(f"{label}={number}: expected{_bounds(least, most).removeprefix(',')}")
    return number


def real(
    label: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    finite: bool = True,
) -> float:
    """Take a real number, NumPy's too; no bool, and not NaN.

    Parameters
    ----------
    label : str
        The argument's name.
    value : object
    above, below : float, optional
        Bounds, ends excluded.
    least, most : float, optional
        Bounds, ends included.
    finite : bool
        Whether infinity is refused.

    Raises
    ------
    TypeError
        For what is no real number.
    ValueError
        For one out of bounds, infinite or NaN.
    """
    if isinstance(value, _NO_NUMBERS) or not isinstance(value, Real):
        raise TypeError(f"{label}={shown(value)}: expected a number{_bounds(least, most, above, below)}")
    number = float(value)
    out = (
        math.isnan(number)
        or (finite and math.isinf(number))
        or (above is not None and not number > above)
        or (least is not None and not number >= least)
        or (below is not None and not number < below)
        or (most is not None and not number <= most)
    )
    if out:
        kind = "a finite number" if finite else "a number"
        raise ValueError(f"{label}={number:g}: expected {kind}{_bounds(least, most, above, below)}")
    return number


def real_array(label: str, value: Any, *, finite: bool = True) -> NDArray[np.float64]:
    """Take real numbers, one or many, as a new array of float64.

    Parameters
    ----------
    label : str
        The argument's name.
    value : number, sequence, NumPy array, labelled array or torch tensor
    finite : bool
        Whether NaN and infinity are refused.

    Raises
    ------
    TypeError
        For complex numbers, booleans, dates, strings, masked arrays, and whatever is no number.
    ValueError
        For rows of uneven length, and for values that are not finite.
    """
    if hasattr(value, "detach"):  # a torch tensor, perhaps of a dtype that NumPy lacks
        value = value.detach().cpu()
        value = value.double().numpy() if value.dtype.is_floating_point else value.numpy()
    try:
        array = np.asarray(value)
    except ValueError as reason:
        raise ValueError(f"{label}={shown(value)}: expected numbers in rows of one length ({reason})") from None
    except TypeError:
        raise TypeError(f"{label}={shown(value)}: expected real numbers") from None
    if array.dtype.kind not in "fiu" or np.ma.isMaskedArray(value):
        kind = "a masked array" if np.ma.isMaskedArray(value) else f"of {array.dtype}"
        raise TypeError(f"{label}={shown(value)} is {kind}: expected real numbers")
    numbers = array.astype(np.float64)
    if finite and not np.isfinite(numbers).all():
        raise ValueError(f"{label} holds {numbers[~np.isfinite(numbers)][0]}: expected finite numbers")
    return numbers


def switch(label: str, value: Any) -> bool:
    """Take True or False, NumPy's too; other values are refused, even where Python would read them as one of both.

    Raises
    ------
    TypeError
        For anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{label}={shown(value)}: expected True or False")
    return bool(value)


def choice(label: str, value: Any, known: Collection[str]) -> str:
    """Take one of some names.

    Raises
    ------
    TypeError
        For what is no name.
    ValueError
        For a name that is unknown.
    """
    names = sorted(known)
    if not isinstance(value, str):
        raise TypeError(f"{label}={shown(value)}: expected one of {names}")
    if value not in known:
        raise ValueError(f"{label}={value!r}: expected one of {names}{perhaps(value, known)}")
    return value


def is_json_mapping(value: Any) -> bool:
    """Whether a value is a mapping of names to what JSON can hold, NumPy's numbers and arrays among it."""

    def plain(one: Any) -> Any:
        if isinstance(one, (np.generic, np.ndarray)):
            return one.tolist()
        raise TypeError(f"{type(one).__name__} has no JSON")

    try:
        return isinstance(value, Mapping) and bool(json.dumps(dict(value), default=plain))
    except (TypeError, ValueError, RecursionError):
        return False


def _bounds(
    least: float | None = None, most: float | None = None, above: float | None = None, below: float | None = None
) -> str:
    parts = []
    for word, bound in (("at least", least), ("above", above), ("at most", most), ("below", below)):
        if bound is not None:
            parts.append(f"{word} {bound:g}" if isinstance(bound, float) else f"{word} {bound}")
    return f", {' and '.join(parts)}" if parts else ""


def check_one_form(radius: object, columns: object) -> None:
    """Refuse a radius of patches beside a number of columns.

    Raises
    ------
    ValueError
    """
    if radius is not None and columns is not None:
        raise ValueError(
            f"radius={radius}, columns={columns}: expected at most one, as a covariance is kept in patches or as "
            "columns"
        )
