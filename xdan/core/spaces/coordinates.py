"""Coordinates: the labels of one dim of a field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import integer, real_array, shown
from ..keywords import constructor_checks_keywords

_NEAR = 1e-2  # relative to the smallest distance of two points: how far labels of a record may be from the points
MOST_COMPONENTS = 10**7  # of a state: a description that claims more is refused before its coordinates are made


@constructor_checks_keywords
@dataclass(frozen=True)
class Coordinate:
    """Values and CF attributes of one dim of the state.

    Attributes
    ----------
    values : tuple of float or str
        One label for each place along the dim.
    attributes : dict of str to str
        CF attributes of the labels, such as `axis`, `long_name` and `units`.

    Examples
    --------
    >>> import xdan
    >>> depth = xdan.Coordinate((0.0, 10.0, 50.0), {"axis": "Z", "units": "m", "positive": "down"})
    >>> len(depth.values)
    3
    """

    values: tuple[float | str, ...]
    attributes: dict[str, str] = field(default_factory=dict)


def word(label: str, value: Any) -> str:
    """Check a name.

    Raises
    ------
    TypeError
        If the value is not a string.
    ValueError
        If the string is empty.
    """
    if not isinstance(value, str):
        raise TypeError(f"{label}={shown(value)}: expected a word")
    if not value:
        raise ValueError(f"{label}='': expected a word")
    return str(value)


def positions_along(label: str, points: Any, least: int = 1) -> tuple[int | list[float], NDArray[np.float64] | None]:
    """Check the points of an axis: their number, or their positions in ascending order.

    Returns
    -------
    parameter : int or list of float
        The argument of the constructor, as a plain value.
    values : array of float64, or None
        The positions; None if only the number of points is known.

    Raises
    ------
    TypeError
        If the value is neither an integer nor numbers.
    ValueError
        If there are too few points, more than ten million, or positions do not increase.
    """
    if isinstance(points, (int, np.integer)) or not isinstance(points, (Sequence, np.ndarray, range)):
        return integer(label, points, least=least, most=MOST_COMPONENTS), None
    values = real_array(label, points).ravel()
    if len(values) < least:
        raise ValueError(f"{label} has {len(values)} positions: expected at least {least}")
    if (np.diff(values) <= 0).any():
        raise ValueError(
            f"{label}={shown(values.tolist())}: expected positions in ascending order, each once; "
            "sort them. A record may have its own order: it is brought into this one by its labels"
        )
    return values.tolist(), values


def order_of(dim: str, values: Sequence[Any], labels: Sequence[Any], period: float | None = None) -> list[int]:
    """Find the points of a dim among labels, which name the same places in any order.

    Parameters
    ----------
    dim : str
        Name of the dim in messages.
    values : sequence of float or str
        Positions of the points: numbers in ascending order, or distinct words.
    labels : sequence of float or str
    period : float, optional
        Length after which numbers repeat, such as 360 degrees of longitude.

    Returns
    -------
    list of int
        Position of each point among the labels.

    Raises
    ------
    ValueError
        If a label is farther from every point than a hundredth of the smallest distance between two points.
    """
    wrong = ValueError(
        f"its labels of {dim!r} are {shown(list(labels[:4]))}... expected {shown(list(values[:4]))}... in any order; "
        "interpolate to these places, correct the labels with ds.assign_coords, or pass the dynamics= of this grid"
    )
    if any(isinstance(one, str) for one in (*values, *labels)):
        if sorted(map(str, labels)) != sorted(map(str, values)):
            raise wrong
        place = {str(label): k for k, label in enumerate(labels)}
        return [place[str(value)] for value in values]
    if len(values) != len(labels):
        raise wrong
    points, places = np.asarray(values, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    near = _NEAR * float(np.diff(points).min()) if len(points) > 1 else _NEAR
    if period is not None:
        least = points[0] - near
        places = (places - least) % period + least
    order = np.argsort(places, kind="stable")
    if not (np.abs(places[order] - points) <= near).all():
        raise wrong
    return [int(k) for k in order]
