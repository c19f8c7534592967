"""The twin experiment: everything that a truth and its observations are made from, as one noun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .checks import real, real_array, shown
from .dynamics import Dynamics, check_declarations, dynamics_to_json
from .observing import Sites

FIELD, INSTRUMENT = "field", "instrument"  # what positions may say of observations beside where they lie


class TwinSetting(TypedDict, total=False):
    """Parameters of a `TwinExperiment` beside its dynamics, for verbs that take them by keyword."""

    interval: float | Sequence[float]
    observe: Sites | None
    operator: Any
    error_std: Any
    error_covariance: Any
    positions: Any


@dataclass(frozen=True, eq=False, repr=False)
class TwinExperiment:
    """A dynamics, and how its truth is observed.

    `twin` makes a record of it, `train` a network for it, and `sweep` changes its parameters. An experiment keeps
    copies of the numbers it was given and never changes; `dataclasses.replace` makes another. Two experiments are equal
    only where they are one object, as functions and labelled arrays have no equality of their own.

    Parameters
    ----------
    dynamics : Dynamics
        The truth's, and that of every forecast. Of one that depends on time, the first analysis is at its `model_time`:
        0, or what `starting_at` has set.
    interval : float or sequence of float
        Model time between analyses; a sequence gives the intervals of a record one by one.
    observe : Sites, optional
        The observing network; every site by default. With an operator, which of its observations are made.
    operator : array, shape (P, *state), or callable, optional
        H, by default the state itself; a matrix, or a torch function of states (..., N). A DataArray has the dims
        (obs, *state).
    error_std : float or array of the shape of one time's observations, with the times before it where it differs
        Standard deviation of the observation errors, in the units of the observations; 1 by default. A DataArray may
        have any of their dims. A mapping has the deviation of each instrument.
    error_covariance : array, shape (P, P), optional
        Full R, instead of `error_std`. A DataArray has the dims of the observations twice, the second time with the
        suffix "_dual".
    positions : mapping of str to array, optional
        Where the observations lie: for each dim of the observed fields a coordinate of every observation, shape (P,),
        or (times, P) where it moves; NaN where there is none. The state is interpolated there, unless an operator is
        H; then they serve localisation. "field" may name the field of each observation, and "instrument" what made it.

    Raises
    ------
    TypeError
        If the dynamics is no Dynamics, `observe` no Sites, the operator neither numbers nor a function, or another
        parameter no real numbers.
    ValueError
        If an interval or a standard deviation is not positive and finite, or `error_std` and `error_covariance` are
        both given. What depends on the length of a record is checked by the verbs.

    Examples
    --------
    >>> from xdan import Lorenz96
    >>> TwinExperiment(Lorenz96(sites=8), interval=0.1).config()["error_std"]
    1.0
    """

    dynamics: Dynamics
    interval: float | Sequence[float] = 0.05
    observe: Sites = field(default_factory=Sites.all)
    operator: Any = None
    error_std: Any = None
    error_covariance: Any = None
    positions: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.dynamics, Dynamics):
            raise TypeError(f"dynamics={shown(self.dynamics)}: expected an xdan Dynamics such as xdan.Lorenz96()")
        check_declarations(self.dynamics)
        observe = Sites.all() if self.observe is None else self.observe
        if not isinstance(observe, Sites):
            raise TypeError(
                f"observe={shown(observe)}: expected Sites, such as xdan.Sites.all() or xdan.Sites.every(2)"
            )
        operator = self.operator
        if operator is not None and not callable(operator):
            operator = _copied("operator", operator)
        if self.error_std is not None and self.error_covariance is not None:
            raise ValueError(
                "expected one of error_std= and error_covariance=, both were given; None takes back the other"
            )
        covariance = self.error_covariance
        if covariance is not None:
            deviations = None
            covariance = _copied("error_covariance", covariance)
        else:
            deviations = _deviations(1.0 if self.error_std is None else self.error_std)
        values = {
            "dynamics": self.dynamics.starting_at(self.dynamics.model_time),
            "interval": _interval(self.interval),
            "observe": observe,
            "operator": operator,
            "error_std": deviations,
            "error_covariance": covariance,
            "positions": None if self.positions is None else checked_labels(self.positions),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, experiment: TwinExperiment | Dynamics, setting: Mapping[str, Any]) -> TwinExperiment:
        """Take an experiment as it is, or make one from a dynamics and its setting.

        Raises
        ------
        TypeError
            For what is neither, an experiment with a setting beside it, or an unknown parameter.
        """
        if isinstance(experiment, TwinExperiment):
            if setting:
                raise TypeError(
                    f"{sorted(setting)} beside a TwinExperiment, which has them already: expected none; "
                    "dataclasses.replace(experiment, ...) changes them"
                )
            return experiment
        if not isinstance(experiment, Dynamics):
            raise TypeError(
                f"experiment={shown(experiment)}: expected an xdan Dynamics such as xdan.Lorenz96(), or a "
                "TwinExperiment"
            )
        if unknown := sorted(set(setting) - set(TwinSetting.__annotations__)):
            raise TypeError(f"a twin experiment takes no {unknown}: expected {sorted(TwinSetting.__annotations__)}")
        return cls(experiment, **setting)

    def steps(self, cycles: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Intervals between so many cycles, and the model steps in each of them.

        Returns
        -------
        intervals : array, shape (cycles - 1,)
            Model time.
        steps : array, shape (cycles - 1,)

        Raises
        ------
        ValueError
            If there are other intervals than that, or one is no multiple of the dynamics' time step.
        """
        intervals = np.asarray(self.interval, dtype=np.float64)
        if intervals.ndim and intervals.shape != (cycles - 1,):
            raise ValueError(f"{intervals.size} intervals for {cycles} cycles: expected {cycles - 1}")
        lengths, place = np.unique(intervals, return_inverse=True)
        counts = np.array([self.dynamics.steps_in(float(length)) for length in lengths], dtype=np.int64)
        steps = counts[place].reshape(intervals.shape)
        return np.broadcast_to(intervals, (cycles - 1,)), np.broadcast_to(steps, (cycles - 1,))

    def config(self) -> dict[str, Any]:
        """Plain JSON description; of a function the name, of labelled numbers no labels."""
        described: dict[str, Any] = {
            "dynamics": dynamics_to_json(self.dynamics),
            "interval": list(self.interval) if isinstance(self.interval, Sequence) else self.interval,
            "observe": self.observe.to_json(),
        }
        if callable(self.operator):
            described["operator"] = getattr(self.operator, "__qualname__", type(self.operator).__name__)
        elif self.operator is not None:
            described["operator"] = np.asarray(self.operator).tolist()
        if self.positions is not None:
            described["positions"] = {name: np.asarray(values).tolist() for name, values in self.positions.items()}
        label = "error_std" if self.error_covariance is None else "error_covariance"
        return {**described, label: np.asarray(getattr(self, label)).tolist()}

    def __repr__(self) -> str:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        inside = (f"{name}={shown(value)}" for name, value in values.items() if value is not None)
        return f"{type(self).__name__}({', '.join(inside)})"


def _interval(interval: Any) -> float | tuple[float, ...]:
    intervals = real_array("interval", interval, finite=False)
    if intervals.ndim > 1:
        raise ValueError(f"interval has shape {intervals.shape}: expected one number, or one for each interval")
    if not (np.isfinite(intervals) & (intervals > 0)).all():
        raise ValueError(f"interval={shown(interval)}: expected a positive finite model time")
    return tuple(intervals.tolist()) if intervals.ndim else float(intervals)


def checked_labels(positions: Any) -> dict[str, Any]:
    """Copy what is said of observations: numbers along dims, words for fields and instruments.

    Raises
    ------
    TypeError
        For what is no mapping, or no numbers or words.
    """
    if not isinstance(positions, Mapping) or not positions:
        raise TypeError(f"positions={shown(positions)}: expected a mapping such as {{'x': [0.5, 7.25]}}")
    labels: dict[str, Any] = {}
    for name, values in positions.items():
        label = f"positions[{name!r}]"
        if name not in (FIELD, INSTRUMENT):
            labels[name] = _copied(label, values)
            if not hasattr(values, "dims") and np.ndim(labels[name]) not in (1, 2):
                raise ValueError(f"{label} has shape {np.shape(values)}: expected (P,), or (times, P)")
            continue
        words = np.asarray(values)
        if words.ndim != 1 or not all(isinstance(word, str) for word in words.tolist()):
            raise TypeError(f"{label}={shown(values)}: expected a word for each observation")
        labels[name] = words.astype(object)
    return labels


def _deviations(error_std: Any) -> Any:
    if isinstance(error_std, Mapping):
        return {str(name): real(f"error_std[{name!r}]", value, above=0.0) for name, value in error_std.items()}
    deviations = real_array("error_std", error_std, finite=False)
    wrong = deviations[~(np.isfinite(deviations) & (deviations > 0))]
    if wrong.size:
        raise ValueError(f"error_std holds the standard deviation {wrong[0]:g}: expected positive finite values")
    return _copied("error_std", error_std)


def _copied(label: str, value: Any) -> Any:
    """Copy real numbers; labelled arrays keep their labels."""
    numbers = real_array(label, value, finite=False)
    if hasattr(value, "dims"):
        return value.copy()
    return numbers if numbers.ndim else float(numbers)


def check_truth(dynamics: Dynamics, truth: Tensor, trajectory: Tensor, first: int) -> None:
    """Refuse a truth that is not finite: in a record it would be read as not observed.

    Parameters
    ----------
    dynamics : Dynamics
    truth : Tensor, shape (R, K, N)
    trajectory : Tensor of int64, shape (R,)
    first : int
        Index of the first time.

    Raises
    ------
    ValueError
        It names the trajectory and the time.
    """
    lost = ~truth.isfinite().all(-1)
    if bool(lost.any()):
        row, k = (int(i) for i in lost.nonzero()[lost.nonzero()[:, 1].argmin()])
        raise ValueError(
            f"the truth of trajectory {int(trajectory[row])} is not finite from time index {first + k} on: expected a "
            f"model whose states stay finite; give {dynamics.name!r} a smaller timestep=, or rest= that turns noise "
            "into states that it can bear"
        )
