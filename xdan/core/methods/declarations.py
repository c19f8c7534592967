"""What a method declares of itself: its outputs, what it chooses for a record, and what may be tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..checks import choice, integer, real, shown

Units = Literal["state", "state squared", "1"]
POWERS: Mapping[Units, int] = {"state": 1, "state squared": 2, "1": 0}
"""The power of the state's units that each stands for."""


@dataclass(frozen=True)
class Output:
    """A quantity that a method gives at every cycle, beside its forecast and its analysis.

    Attributes
    ----------
    name : str
        The variable's name in a run.
    long_name : str
        What the variable is, in words.
    place : {"state", "cycle", "observations"}
        Where the values lie: at every component of the state, (B, N); one for every trajectory, (B,); or at every
        observation of the time, (B, P).
    units : {"state", "state squared", "1"}
        The state's units, their square, or none.
    lag : int
        How many cycles earlier the time lies that the values belong to.

    Raises
    ------
    TypeError
        If a name is no word, or the lag no integer.
    ValueError
        If the place or the units are none of these, or the lag is negative.

    Examples
    --------
    >>> import xdan
    >>> xdan.Output("weight", "weight of the observations", place="cycle").units
    '1'
    """

    name: str
    long_name: str
    place: Literal["state", "cycle", "observations"] = "cycle"
    units: Units = "1"
    lag: int = 0

    def __post_init__(self) -> None:
        for label, word in (("name", self.name), ("long_name", self.long_name)):
            if not isinstance(word, str) or not word:
                raise TypeError(f"{label}={shown(word)} of an Output: expected a word")
        choice("place", self.place, ("state", "cycle", "observations"))
        choice("units", self.units, POWERS)
        integer("lag", self.lag, least=0)


@dataclass(frozen=True)
class Choice:
    """A quantity that a method settles once for a record, such as a tuned parameter and the values that were tried.

    Attributes
    ----------
    name, long_name : str
        As of `Output`.
    dims : tuple of str
        "state" and "state_dual" stand for the components of the state, which the method does not know beforehand.
    shape : tuple of int
        Sizes of the dims; -1 for "state" and "state_dual".
    units : {"state", "state squared", "1"}
    """

    name: str
    long_name: str
    dims: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    units: Units = "1"


@dataclass(frozen=True)
class Tunable:
    """A parameter that may be "tune".

    Attributes
    ----------
    values : tuple of float
        The values to try.
    natural_end : float, optional
        The value with which the parameter does nothing. Tuning that ends there does not warn: nothing lies beyond it.
    long_name : str
        Of the values that were tried, in a run.
    words : tuple of str or None
        What the parameter may be beside a number and "tune".
    zero : bool
        Whether 0 is allowed too. Other numbers are positive.

    Raises
    ------
    TypeError
        If the values are no tuple of numbers.
    ValueError
        If a value is not finite, or there is none.

    Examples
    --------
    >>> import xdan
    >>> xdan.Tunable((1.0, 1.02, 1.05), natural_end=1.0, long_name="inflation").values
    (1.0, 1.02, 1.05)
    """

    values: tuple[float, ...]
    natural_end: float | None = None
    long_name: str = ""
    words: tuple[str | None, ...] = ()
    zero: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.values, tuple):
            raise TypeError(f"values={shown(self.values)} of a Tunable: expected a tuple of numbers to try")
        if not self.values:
            raise ValueError("values=() of a Tunable: expected at least one number to try")
        for value in self.values:
            real("values", value)


@dataclass(frozen=True)
class Search:
    """How a method's parameters are searched on the leading part of a record.

    Attributes
    ----------
    trajectories, cycles : int
        Size of the leading part, at most.
    burn_in : int
        Leading cycles that no score looks at; a third of the part where that is less.
    innovation : {"innovation_score", "innovation_rms"}
        What the innovations are judged by: their negative log-likelihood, or their root mean square. The name is that
        of the curve in a run.
    together : bool
        Run all candidates at once, as copies of the trajectories: `Method.at` then gets a tensor of shape (B,).
    refined : bool
        Take the vertex of the parabola through the best of the method's own candidates and its two neighbours. The
        method has one parameter to tune, and its candidates are evenly spaced in their logarithm.
    """

    trajectories: int = 16
    cycles: int = 400
    burn_in: int = 150
    innovation: Literal["innovation_score", "innovation_rms"] = "innovation_score"
    together: bool = False
    refined: bool = False


CURVES: Mapping[str, Choice] = {
    curve.name: curve
    for curve in (
        Choice(
            "innovation_score",
            "negative log-likelihood of the innovations, a constant left out, with each candidate",
        ),
        Choice("innovation_rms", "root mean square innovation with each candidate scale", units="state"),
        Choice("truth_rmse", "analysis RMSE with each candidate", units="state"),
    )
}
"""What candidates are judged by, without dims: the curve along the candidates has theirs."""

FORECAST_SPREAD = Output("forecast_spread", "standard deviation of the forecast", "state", "state")
SPREAD = Output("spread", "standard deviation of the analysis", "state", "state")
SPREADS = (FORECAST_SPREAD, SPREAD)
INFLATION = Output("inflation", "inflation of the analysis anomalies")
ITERATIONS = Output("iterations", "Gauss-Newton or descent steps of the analysis")
UNCONVERGED = Output("unconverged", "1 where the analysis reached its limit of iterations")


def smoothed_spread(lag: int) -> Output:
    """Declare the standard deviation of that estimate."""
    return Output("smoothed_spread", "standard deviation of the smoothed state", "state", "state", lag)


def smoothed(lag: int) -> Output:
    """Declare the estimate of the state at the start of a window of `lag` cycles."""
    return Output("smoothed", "estimate of the state from the observations up to a window later", "state", "state", lag)
