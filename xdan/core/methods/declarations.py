"""What a method declares: its outputs, its choices for a record, and its parameters that may be tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..checks import choice, integer, real, shown
from ..keywords import constructor_checks_keywords

Units = Literal["state", "state squared", "1"]
POWERS: Mapping[Units, int] = {"state": 1, "state squared": 2, "1": 0}
"""The power of the state's units that each name stands for."""


@constructor_checks_keywords
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
        Where the values lie: at each component of the state, (B, N); one for each trajectory, (B,); or at each
        observation of the time, (B, P).
    units : {"state", "state squared", "1"}
        The state's units, their square, or no units.
    lag : int
        How many cycles earlier the values belong to; 0 for the time of the cycle.

    Raises
    ------
    TypeError
        If a name is not a word, or the lag is not an integer.
    ValueError
        If the place or the units are not one of these names, or the lag is negative.

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
    """A quantity that a method chooses once for a record, such as a tuned parameter or the values that were tried.

    Attributes
    ----------
    name, long_name : str
        See `Output`.
    dims : tuple of str
        "state" and "state_dual" stand for the components of the state; the method does not know their dims in advance.
    shape : tuple of int
        Sizes of the dims; -1 for "state" and "state_dual".
    units : {"state", "state squared", "1"}
        See `Output`.
    """

    name: str
    long_name: str
    dims: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    units: Units = "1"


@constructor_checks_keywords
@dataclass(frozen=True)
class Tunable:
    """A parameter that may be "tune".

    Attributes
    ----------
    values : tuple of float
        The values that tuning tries.
    natural_end : float, optional
        The value with which the parameter has no effect. Tuning that chooses this value does not warn, although it is
        the first or the last one.
    long_name : str
        What the values are, in a run's variable of the values that were tried.
    words : tuple of str or None
        Other values that the parameter may have, besides a number and "tune".
    zero : bool
        Whether 0 is allowed. All other numbers must be positive.

    Raises
    ------
    TypeError
        If the values are not a tuple of numbers.
    ValueError
        If a value is not finite, or the tuple is empty.

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
    """How the values of a method's parameters are searched on the leading part of a record.

    Attributes
    ----------
    trajectories, cycles : int
        Largest size of the leading part.
    burn_in : int
        First cycles that no score uses; at most a third of the part.
    innovation : {"innovation_score", "innovation_rms"}
        Score of the innovations: their negative log-likelihood, or their root mean square. A run's variable of the
        scores has this name.
    together : bool
        Run all candidates at once, on copies of the trajectories. `Method.at` then gets a tensor of shape (B,).
    refined : bool
        Fit a parabola through the best of the method's candidates and its two neighbours, and take its minimum. The
        method must have one parameter to tune, with candidates that are evenly spaced in their logarithm.
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
"""Scores by which candidates are compared, without dims; the dims are those of the candidates."""

FORECAST_SPREAD = Output("forecast_spread", "standard deviation of the forecast", "state", "state")
SPREAD = Output("spread", "standard deviation of the analysis", "state", "state")
SPREADS = (FORECAST_SPREAD, SPREAD)
INFLATION = Output("inflation", "inflation of the analysis anomalies")
ITERATIONS = Output("iterations", "Gauss-Newton or descent steps of the analysis")
UNCONVERGED = Output("unconverged", "1 where the analysis reached its limit of iterations")


def smoothed_spread(lag: int) -> Output:
    """Declare the standard deviation of the smoothed state at the start of a window of `lag` cycles."""
    return Output("smoothed_spread", "standard deviation of the smoothed state", "state", "state", lag)


def smoothed(lag: int) -> Output:
    """Declare the estimate of the state at the start of a window of `lag` cycles."""
    return Output("smoothed", "estimate of the state from the observations up to a window later", "state", "state", lag)
