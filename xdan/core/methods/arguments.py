"""Checks of arguments that several methods share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import choice, real, shown
from ..observing import is_symmetric


def number_or_tune(label: str, value: Any, zero: bool = False) -> float | str:
    """Check an argument: "tune", a positive finite number, or (with `zero=True`) 0.

    Raises
    ------
    TypeError
        If the value is neither a number nor a string.
    ValueError
        If the string is not "tune", or the number is not positive and finite.
    """
    if isinstance(value, str) and value == "tune":
        return value
    expected = f"{label}={shown(value)}: expected 'tune' or {'0 or ' if zero else ''}a positive finite number"
    if isinstance(value, str):
        raise ValueError(expected)
    try:
        return real(label, value, least=0.0) if zero else real(label, value, above=0.0)
    except (TypeError, ValueError) as error:
        raise type(error)(expected) from None


def background_or_name(value: Any, names: Collection[str]) -> Tensor | str:
    """Check a background: one of the `names`, or a background error covariance as a matrix of real numbers.

    Returns
    -------
    str, or Tensor of float64, shape (N, N)

    Raises
    ------
    TypeError
        If the value is neither, for example complex numbers, dates or objects.
    ValueError
        If the name is unknown, or the matrix is not square, finite, symmetric (relative to its variances) and positive
        definite.
    """
    expected = f"expected {', '.join(map(repr, sorted(names)))} or a matrix of shape (N, N) of real numbers"
    if isinstance(value, str):
        if value not in names:
            raise ValueError(f"background={value!r}: {expected}")
        return choice("background", value, names)
    try:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # rows of different lengths, or a value that is no array
        raise TypeError(f"background={shown(value)}: {expected}") from None
    if array.dtype.kind not in "iuf" or np.ma.is_masked(value):
        raise TypeError(f"background holds {'gaps' if np.ma.is_masked(value) else array.dtype}: {expected}")
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size:
        raise ValueError(f"background has shape {array.shape}: {expected}")
    matrix = torch.from_numpy(np.array(array, np.float64))
    if not bool(matrix.isfinite().all()):
        raise ValueError(f"background holds values that are not finite: {expected}")
    no_covariance = "background is not symmetric and positive definite"
    if not is_symmetric(matrix):
        raise ValueError(f"{no_covariance}: it is skew; expected a covariance matrix")
    if int(torch.linalg.cholesky_ex(matrix).info):
        raise ValueError(f"{no_covariance}: it has no Cholesky factor; expected a covariance matrix of full rank")
    return matrix


def fitted(background: Tensor, size: int, like: Tensor) -> Tensor:
    """Return a background error covariance (N, N) in the dtype and on the device of a tensor.

    Raises
    ------
    ValueError
        If its size is not `size` x `size`.
    """
    if len(background) != size:
        raise ValueError(f"background has shape {tuple(background.shape)}: expected ({size}, {size})")
    return background.to(like)


def checked_candidates(
    candidates: Any, to_tune: Collection[str], zero: Collection[str] = ()
) -> dict[str, tuple[float, ...]]:
    """Check and sort the values that tuning tries for each parameter. `zero` names the parameters that may be 0.

    Raises
    ------
    TypeError
        If `candidates` is not a mapping from names to numbers.
    ValueError
        If a parameter is not to be tuned, or has fewer than two distinct positive finite numbers.
    """
    if not isinstance(candidates, Mapping):
        raise TypeError(f"candidates={shown(candidates)}: expected a mapping such as {{'inflation': [1.0, 1.02]}}")
    if unknown := [name for name in candidates if name not in to_tune]:
        raise ValueError(
            f"candidates of {unknown}: expected names of parameters that are 'tune'; those are {sorted(to_tune)}"
        )
    checked = {}
    for name, values in candidates.items():
        label = f"candidates[{name!r}]"
        if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
            raise TypeError(f"{label}={shown(values)}: expected a list of numbers to try")
        try:
            tried = list(values)
        except TypeError:  # an array without an axis
            raise TypeError(f"{label}={shown(values)}: expected a list of numbers to try") from None
        with_zero = name in zero
        numbers = sorted(
            {real(label, value, least=0.0) if with_zero else real(label, value, above=0.0) for value in tried}
        )
        if len(numbers) < 2:
            raise ValueError(f"{label}={shown(values)}: expected at least 2 distinct positive finite numbers")
        checked[name] = tuple(numbers)
    return checked
