"""Checks of arguments. Messages name the argument, what came and what was expected; results are plain values."""

from __future__ import annotations

import json
import math
import sys
import threading
import warnings
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from numbers import Integral, Real
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NO_NUMBERS = (bool, np.bool_, np.timedelta64)  # Python or NumPy counts these types as integers
_STEM = 4  # a name with so many letters or more is similar to a longer name that begins with it: batch, batch_size
# Packages that call xdan's functions for a user: a warning's line lies in none of them.
_BETWEEN = {"xdan", "xarray", "dask", "distributed", "torch", "concurrent", "threading", "queue", "multiprocessing"}
_LONGEST = 80  # largest number of characters of a value in a message


class XdanWarning(UserWarning):
    """Warning of something that is allowed but surprising.

    Examples
    --------
    >>> import warnings, xdan
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", category=xdan.XdanWarning)  # a surprising result stops the script
    ...     ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=3)
    >>> issubclass(xdan.XdanWarning, UserWarning)
    True
    """


def warn(text: str) -> None:
    """Warn, and point at the user's line that led to the warning.

    This is the first line outside xdan and the packages that call xdan for a user. In a thread of dask there is no such
    line, and the warning points at the line of the main thread that waits for dask. If the main thread does not wait,
    the warning points at the caller.
    """
    caller = sys._getframe(1)
    frame = _user_frame(caller) or _waiting_frame() or caller
    registry = frame.f_globals.setdefault("__warningregistry__", {})  # where Python notes its warnings
    module = frame.f_globals.get("__name__") or frame.f_code.co_filename  # with None Python drops the warning
    warnings.warn_explicit(text, XdanWarning, frame.f_code.co_filename, frame.f_lineno, module, registry)


def _user_frame(frame: FrameType | None, through: str = "xdan") -> FrameType | None:
    """The first user's frame in a stack, if frames of the package `through` come before it."""
    passed = set()
    while frame is not None and (package := frame.f_globals.get("__name__", "").partition(".")[0]) in _BETWEEN:
        passed.add(package)
        frame = frame.f_back
    return frame if through in passed else None


def _waiting_frame() -> FrameType | None:
    """The user's frame in the main thread, if this thread waits for dask."""
    return _user_frame(sys._current_frames().get(threading.main_thread().ident or 0), "dask")


def shown(value: Any) -> str:
    """One line that shows a value in a message; long values are cut."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({type(value).__name__})"


def perhaps(name: Any, known: Iterable[str]) -> str:
    """The known name that a wrong name may stand for, as the end of a sentence; empty if no name is similar.

    Upper and lower case make no difference.

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
    """Check an integer, also of NumPy. Booleans are refused, and so are floats, even whole ones.

    Parameters
    ----------
    label : str
        Name of the argument.
    value : object
    least, most : int, optional
        Bounds, which are allowed values.

    Raises
    ------
    TypeError
        If the value is not an integer.
    ValueError
        If it is out of bounds.
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
    """Check a real number, also of NumPy. Booleans and NaN are refused.

    Parameters
    ----------
    label : str
        Name of the argument.
    value : object
    above, below : float, optional
        Bounds, which are not allowed values.
    least, most : float, optional
        Bounds, which are allowed values.
    finite : bool
        Whether infinity is refused; by default it is.

    Raises
    ------
    TypeError
        If the value is not a real number.
    ValueError
        If it is out of bounds, infinite or NaN.
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
    """Check real numbers, one or many, and copy them to an array of float64.

    Parameters
    ----------
    label : str
        Name of the argument.
    value : number, sequence, NumPy array, labelled array or torch tensor
    finite : bool
        Whether NaN and infinity are refused; by default they are.

    Raises
    ------
    TypeError
        If the value is complex, boolean, a date, a string, a masked array, or not made of numbers.
    ValueError
        If rows have different lengths, or values are not finite.
    """
    if hasattr(value, "detach"):  # a torch tensor, whose dtype NumPy may lack
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
    """Check True or False, also of NumPy. Other values are refused, even if Python would read them as True or False.

    Raises
    ------
    TypeError
        If the value is anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{label}={shown(value)}: expected True or False")
    return bool(value)


def choice(label: str, value: Any, known: Collection[str]) -> str:
    """Check that a value is one of some names.

    Raises
    ------
    TypeError
        If the value is not a string.
    ValueError
        If the name is unknown.
    """
    names = sorted(known)
    if not isinstance(value, str):
        raise TypeError(f"{label}={shown(value)}: expected one of {names}")
    if value not in known:
        raise ValueError(f"{label}={value!r}: expected one of {names}{perhaps(value, known)}")
    return value


def is_json_mapping(value: Any) -> bool:
    """Whether a value is a mapping from names to values that JSON can hold, or NumPy's numbers and arrays."""

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
    """Refuse a radius of patches together with a number of columns.

    Raises
    ------
    ValueError
    """
    if radius is not None and columns is not None:
        raise ValueError(
            f"radius={radius}, columns={columns}: expected at most one, as a covariance is kept in patches or as "
            "columns"
        )
