"""Scores of estimates against the truth, as functions of arrays. Memory is bounded, whatever the size of the record."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .checks import shown
from .keywords import constructor_checks_keywords

Array = np.ndarray[Any, np.dtype[Any]]

_VALUES = 2**17  # largest number of values that are copied at once, with members: they stay in a core's cache
# Arrays that a user's score may take.
_OF_STATES = ("truth", "forecast", "analysis", "forecast_spread", "spread")
_OF_MEMBERS = ("forecast_members", "members")


def working_dtype(*dtypes: np.dtype[Any] | type) -> np.dtype[Any]:
    """Floating-point type of scores: at least single and at most double precision, in native byte order."""
    dtype = np.result_type(np.float32, *dtypes)
    return np.dtype(np.float64) if dtype.itemsize > 8 else dtype.newbyteorder("=")


def rmse(truth: Array, estimate: Array, axes: int = 1, weights: Array | None = None) -> Array:
    """Root of the mean square error over the state.

    Parameters
    ----------
    truth, estimate : array, shape (..., *state)
    axes : int
        Number of axes of the state.
    weights : array, shape (*state), optional
        Share of each variable in the mean, such as its area. The shares add up to 1. By default all are equal.

    Returns
    -------
    array, shape (...)
        NaN if a variable of the state is NaN.
    """
    over = tuple(range(-axes, 0))

    def kernel(x: Array, estimate: Array) -> Array:
        squares = np.square(x - estimate)
        mean = squares.mean(axis=over) if weights is None else (squares * weights.astype(x.dtype)).sum(axis=over)
        root: Array = np.sqrt(mean)
        return root

    lead = truth.shape[: truth.ndim - axes]
    return in_pieces(kernel, lead, (), truth, estimate)


def absolute_error(truth: Array, estimate: Array) -> Array:
    """Absolute error, which is the continuous ranked probability score of a single state.

    Parameters
    ----------
    truth, estimate : array, shape S

    Returns
    -------
    array, shape S
    """
    return in_pieces(lambda x, estimate: np.abs(x - estimate), truth.shape, (), truth, estimate)


def gaussian_crps(truth: Array, mean: Array, spread: Array) -> Array:
    """Continuous ranked probability score of a Gaussian. Without spread it is the absolute error.

    With e = truth - mean, the spread s and z = e / s: CRPS = e (2 Phi(z) - 1) + s (2 phi(z) - 1 / sqrt(pi)). Phi and
    phi are the standard normal distribution function and density.

    Parameters
    ----------
    truth, mean, spread : array, shape S

    Returns
    -------
    array, shape S
        NaN if the spread is negative.

    References
    ----------
    Gneiting and Raftery (2007), doi:10.1198/016214506000001437, Eq. 21.
    """
    return in_pieces(_gaussian_crps, truth.shape, (), truth, mean, spread)


def _gaussian_crps(truth: Array, mean: Array, spread: Array) -> Array:
    error = truth - mean
    spread = np.where(spread >= 0, spread, np.nan)
    # Without spread, and if the quotient overflows, z is infinite. The functions below then have their limits.
    z = np.where(spread == 0, np.copysign(np.inf, error), error / spread)
    density = math.sqrt(2 / math.pi) * np.exp(-0.5 * np.square(z))
    score: Array = error * torch.from_numpy(z / math.sqrt(2)).erf().numpy() + spread * (
        density - 1 / math.sqrt(math.pi)
    )
    return score


def in_pieces(
    kernel: Callable[..., Array],
    lead: tuple[int, ...],
    tail: tuple[int, ...],
    *arrays: Array,
    dtype: np.dtype[Any] | None = None,
) -> Array:
    """Apply a function to pieces of bounded size along the leading axes, which all arrays have.

    Parameters
    ----------
    kernel : callable
        It gets copies of shape (..., *rest), in `working_dtype` and C order, and returns (..., *tail).
    lead : tuple of int
        Sizes of the leading axes.
    tail : tuple of int
        Sizes of the other axes of the result.
    *arrays : array, shape (*lead, *rest)
    dtype : dtype, optional
        Type of the result; by default `working_dtype`.
    """
    working = working_dtype(*(array.dtype for array in arrays))
    result = np.empty((*lead, *tail), dtype or working)
    # The caller warns of scores that are not finite, once and with the cause.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for piece in pieces(lead, max(math.prod(array.shape[len(lead) :]) for array in arrays)):
            result[piece] = kernel(*(np.array(array[piece], dtype=working, order="C") for array in arrays))
    return result


def pieces(lead: tuple[int, ...], values: int) -> Iterator[tuple[slice, ...]]:
    """Indices along the leading axes that divide an array of shape (*lead, values) into pieces of bounded size."""
    row = max(1, math.prod(lead[1:]) * values)
    if not lead:
        yield ()
    elif row > _VALUES:
        for i in range(lead[0]):
            yield from ((slice(i, i + 1), *rest) for rest in pieces(lead[1:], values))
    else:
        rows = _VALUES // row
        yield from ((slice(start, start + rows),) for start in range(0, lead[0], rows))


def rows_of(x: Array, axes: int) -> tuple[tuple[int, ...], Array]:
    """Sizes of the leading axes; and for each value, the number of its row."""
    lead = x.shape[: x.ndim - axes]
    return lead, np.broadcast_to(np.arange(math.prod(lead)).reshape(*lead, *[1] * axes), x.shape)


@constructor_checks_keywords
@dataclass(frozen=True)
class StateScore:
    """A user's score: one number for each time of a trajectory, from the truth and a run.

    `xdan.score(ds, run, also=[...])` averages it over times and trajectories, like xdan's scores.

    Parameters
    ----------
    function : callable
        A NumPy function. The names of its parameters say which arrays it takes. `truth`, `forecast`, `analysis`,
        `forecast_spread` and `spread` have the shape (B, N): a row for each time of a trajectory, where N is the size
        of the flattened state. `forecast_members` and `members` have the shape (B, M, N). The function returns an array
        of shape (B,), and treats each row separately.
    long_name : str
        What the number is.
    units : str, optional
        Units of the number. By default the state's units; "1" for a number without units.
    name : str, optional
        Name of the variable; by default the name of the function.

    Raises
    ------
    TypeError
        If `function` is not a function, or has parameters with other names.

    Examples
    --------
    >>> def bias(truth, analysis):
    ...     return (analysis - truth).mean(-1)
    >>> StateScore(bias, "mean error of the analysis").inputs
    ('truth', 'analysis')
    """

    function: Callable[..., Array]
    long_name: str
    units: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        known = [*_OF_STATES, *_OF_MEMBERS]
        if not callable(self.function):
            raise TypeError(f"function={shown(self.function)}: expected a function of arrays named {known}")
        object.__setattr__(self, "name", self.name or getattr(self.function, "__name__", type(self.function).__name__))
        words = {"name": self.name, "long_name": self.long_name, "units": "1" if self.units is None else self.units}
        for label, word in words.items():
            if not isinstance(word, str) or not word:
                raise TypeError(f"{label}={shown(word)} of a StateScore: expected a word")
        if not self.inputs or not set(self.inputs) <= set(known):
            raise TypeError(
                f"the score {self.name!r} takes {list(self.inputs)}: expected parameters with names of {known}"
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arrays that the function takes."""
        return tuple(inspect.signature(self.function).parameters)

    def of_members(self, name: str) -> bool:
        """Whether an input has a member axis."""
        return name in _OF_MEMBERS

    def values(self, *arrays: Array, axes: int = 1) -> Array:
        """Score at each time.

        Parameters
        ----------
        *arrays : array
            The inputs in the order of `inputs`: shape (..., *state), or (..., *state, M) with members.
        axes : int
            Number of axes of the state.

        Returns
        -------
        array, shape (...)

        Raises
        ------
        ValueError
            If the function returns another shape, or values that are not real numbers.
        """
        lead = arrays[0].shape[: arrays[0].ndim - axes - self.of_members(self.inputs[0])]

        def kernel(*pieces: Array) -> Array:
            shape = pieces[0].shape[: len(lead)]
            rows = math.prod(shape)
            flat = [
                piece.reshape(rows, -1, piece.shape[-1]).swapaxes(1, 2) if members else piece.reshape(rows, -1)
                for piece, members in zip(pieces, map(self.of_members, self.inputs), strict=True)
            ]
            for one in flat:
                one.flags.writeable = False  # they may be views of the arrays of the record and the run
            score = np.asarray(self.function(*flat))
            if score.shape != (rows,):
                raise ValueError(
                    f"the score {self.name!r} gave shape {score.shape} for arrays of shapes "
                    f"{[array.shape for array in flat]}: expected {(rows,)}, a number for each row"
                )
            if score.dtype.kind not in "fiub":
                raise ValueError(f"the score {self.name!r} gave numbers of {score.dtype}: expected real ones")
            return score.reshape(shape)

        return in_pieces(kernel, lead, (), *arrays)
