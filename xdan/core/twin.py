"""The twin experiment: everything that a truth and its observations are made from, as one noun."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .checks import perhaps, real, real_array, shown
from .dynamics import Dynamics, check_declarations, dynamics_to_json
from .observing import FieldSites, Sites
from .spaces import StateSpace
from .tables import html_table
from .truth_model import TruthModel

FIELD, INSTRUMENT = "field", "instrument"  # what positions may say of observations beside where they lie


class TwinSetting(TypedDict, total=False):
    """Parameters of a `TwinExperiment` beside its dynamics, for verbs that take them by keyword."""

    interval: float | Sequence[float]
    observe: Sites | FieldSites | Mapping[str, Sites] | None
    operator: Any
    error_std: Any
    error_covariance: Any
    positions: Any
    truth_dynamics: Dynamics | None
    model_error_std: Any
    model_error_covariance: Any


@dataclass(frozen=True, eq=False, repr=False)
class TwinExperiment:
    """A model, the truth that it forecasts, and how that truth is observed.

    `twin` makes a record of it, `train` a network for it, and `sweep` changes its parameters. An experiment keeps
    copies of the numbers it was given and never changes; `dataclasses.replace` makes another. Two experiments are equal
    only where they are one object, as functions and labelled arrays have no equality of their own.

    Parameters
    ----------
    dynamics : Dynamics
        The model of every forecast, and the truth's unless `truth_dynamics` is another. Of one that depends on time,
        the first analysis is at its `model_time`: 0, or what `starting_at` has set.
    interval : float or sequence of float
        Model time between analyses; a sequence gives the intervals of a record one by one.
    observe : Sites, or mapping of str to Sites, optional
        The observing network; every site by default. Of a state of several fields, Sites by the fields' names: fields
        without are not observed; Sites alone are for every field. With an operator, which of its observations are made.
    operator : array, shape (P, *state), or callable, optional
        H, by default the state itself; a matrix, or a torch function of states (..., N). A DataArray has the dims
        (obs, *state). Of a state of several fields: a matrix (P, N), a mapping of fields' names to arrays (P, *shape),
        or a torch function of such a mapping of tensors (..., *shape).
    error_std : float or array of the shape of one time's observations, with the times before it where it differs
        Standard deviation of the observation errors, in the units of the observations; 1 by default. A DataArray may
        have any of their dims. Of a state of several fields also a mapping of their names to the errors of each; of
        observations at positions a mapping has the deviation of each instrument.
    error_covariance : array, shape (P, P), optional
        Full R, instead of `error_std`. A DataArray has the dims of the observations twice, the second time with the
        suffix "_dual". Of a state of several fields (N, N), over the packed state.
    positions : mapping of str to array, optional
        Where the observations lie: for each dim of the observed fields a coordinate of every observation, shape (P,),
        or (times, P) where it moves; NaN where there is none. The state is interpolated there, unless an operator is
        H; then they serve localisation. "field" may name the field of each observation, and "instrument" what made it.
    truth_dynamics : Dynamics, optional
        Model that makes the truth, where the forecast model is wrong. Its state has the forecast model's fields, and
        may have others, which a record leaves out. Its own `model_error`, if it has one, is added to the truth.
    model_error_std : float, array of shape (*state), or mapping of fields' names to these, optional
        Standard deviation of the forecast model's error in one interval, in the state's units: x_{k+1} = M(x_k) + e_k,
        e_k ~ N(0, Q). Methods account for it, and without `truth_dynamics` the truth has it. By default that which the
        dynamics has; 0 is a perfect model. The experiment keeps it as `dynamics.model_error`.
    model_error_covariance : array, shape (N, N), optional
        Full Q, instead of `model_error_std`.

    Raises
    ------
    TypeError
        If the dynamics is no Dynamics, `observe` no Sites, the operator neither numbers nor a function, or another
        parameter no real numbers.
    ValueError
        If an interval or a standard deviation is not positive and finite, or `error_std` and `error_covariance` are
        both given; for a Q that is not positive semi-definite or has another size, and a truth's model without the
        forecast model's fields. What depends on the length of a record is checked by the verbs.

    Examples
    --------
    >>> from xdan import Lorenz96
    >>> TwinExperiment(Lorenz96(sites=8), interval=0.1).config()["error_std"]
    1.0
    """

    dynamics: Dynamics
    interval: float | Sequence[float] = 0.05
    observe: Sites | FieldSites = field(default_factory=Sites.all)
    operator: Any = None
    error_std: Any = None
    error_covariance: Any = None
    positions: Any = None
    truth_dynamics: Dynamics | None = None
    model_error_std: Any = None
    model_error_covariance: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.dynamics, Dynamics):
            raise TypeError(f"dynamics={shown(self.dynamics)}: expected an xdan Dynamics such as xdan.Lorenz96()")
        check_declarations(self.dynamics)
        model, truth = self._with_error(), self.truth_dynamics
        if truth is not None:
            if not isinstance(truth, Dynamics):
                raise TypeError(f"truth_dynamics={shown(truth)}: expected an xdan Dynamics, or None for the forecast's")
            check_declarations(truth)
            TruthModel.of(truth, model)
        space = model.space
        along_obs = self.operator is not None or self.positions is not None
        observe = _observing_network(self.observe, space, along_obs)
        operator = self.operator
        if operator is not None and not callable(operator):
            operator = _of_each_field("operator", operator, space, _copied)
        if self.error_std is not None and self.error_covariance is not None:
            raise ValueError(
                "expected one of error_std= and error_covariance=, both were given; None takes back the other"
            )
        covariance = self.error_covariance
        if covariance is not None:
            deviations = None
            covariance = _copied("error_covariance", covariance)
        else:
            error_std = 1.0 if self.error_std is None else self.error_std
            if isinstance(error_std, Mapping) and along_obs:
                deviations = {
                    str(name): real(f"error_std[{name!r}]", value, above=0.0) for name, value in error_std.items()
                }
            else:
                deviations = _of_each_field("error_std", error_std, space, _deviations)
        values = {
            "dynamics": model.starting_at(model.model_time),
            "truth_dynamics": None if truth is None else truth.starting_at(truth.model_time),
            "interval": _interval(self.interval),
            "observe": observe,
            "operator": operator,
            "error_std": deviations,
            "error_covariance": covariance,
            "positions": None if self.positions is None else checked_labels(self.positions),
            "model_error_std": None,  # the dynamics has it from here on
            "model_error_covariance": None,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(
        cls, experiment: TwinExperiment | Dynamics, setting: Mapping[str, Any], also: tuple[str, ...] = ()
    ) -> TwinExperiment:
        """Take an experiment as it is, or make one from a dynamics and its setting.

        Parameters
        ----------
        experiment : TwinExperiment or Dynamics
        setting : mapping
            Parameters of the experiment, beside a dynamics.
        also : tuple of str
            What else the caller takes, for the message on an unknown parameter.

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
            known = sorted(TwinSetting.__annotations__)
            near = perhaps(unknown[0], [*known, *also])
            raise TypeError(f"a twin experiment takes no {unknown}: expected {known}{near}")
        return cls(experiment, **setting)

    def _with_error(self) -> Dynamics:
        """The forecast model with the Q that the experiment gives it."""
        std, covariance = self.model_error_std, self.model_error_covariance
        if std is None and covariance is None:
            return self.dynamics
        return self.dynamics.with_model_error(std, covariance)

    @property
    def truth(self) -> TruthModel:
        """What makes the truth."""
        return TruthModel.of(self.truth_dynamics, self.dynamics)

    def starting_at(self, time: float) -> TwinExperiment:
        """The experiment with its first analysis at another model time, for models that depend on it."""
        truth = self.truth_dynamics
        return replace(
            self,
            dynamics=self.dynamics.starting_at(time),
            truth_dynamics=None if truth is None else truth.starting_at(time),
        )

    def steps(self, cycles: int, of_truth: bool = False) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Intervals between so many cycles, and the model steps in each of them.

        Parameters
        ----------
        cycles : int
        of_truth : bool
            Count the steps of the truth's model instead of the forecast model's.

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
        model = self.truth.dynamics if of_truth else self.dynamics
        counts = np.array([model.steps_in(float(length)) for length in lengths], dtype=np.int64)
        steps = counts[place].reshape(intervals.shape)
        return np.broadcast_to(intervals, (cycles - 1,)), np.broadcast_to(steps, (cycles - 1,))

    def config(self) -> dict[str, Any]:
        """Plain JSON description; of a function the name, of labelled numbers no labels."""
        described: dict[str, Any] = {
            "dynamics": dynamics_to_json(self.dynamics),
            "interval": list(self.interval) if isinstance(self.interval, Sequence) else self.interval,
            "observe": self.observe.to_json(),
        }
        if self.truth_dynamics is not None:
            described["truth_dynamics"] = dynamics_to_json(self.truth_dynamics)
        if callable(self.operator):
            described["operator"] = getattr(self.operator, "__qualname__", type(self.operator).__name__)
        elif self.operator is not None:
            described["operator"] = _plain(self.operator)
        if self.positions is not None:
            described["positions"] = {name: np.asarray(values).tolist() for name, values in self.positions.items()}
        label = "error_std" if self.error_covariance is None else "error_covariance"
        return {**described, label: _plain(getattr(self, label))}

    def __repr__(self) -> str:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        inside = (f"{name}={shown(value)}" for name, value in values.items() if value is not None)
        return f"{type(self).__name__}({', '.join(inside)})"

    def _repr_html_(self) -> str:
        values = ((one.name, getattr(self, one.name)) for one in fields(self))
        return html_table(type(self).__name__, [(name, value) for name, value in values if value is not None])


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


def _observing_network(observe: Any, space: StateSpace, along_obs: bool) -> Sites | FieldSites:
    """Sites of the state, of each of its fields, or of what an operator or positions give."""
    if isinstance(observe, FieldSites):  # of another experiment, of which this one is a variant
        observe = Sites.all() if observe.kind == "all" else observe.sites
    observe = Sites.all() if observe is None else observe
    several = space.single is None and not along_obs
    if isinstance(observe, Mapping) and not several:
        one = "operator= and positions= give observations of no field" if along_obs else "the state has one field alone"
        raise ValueError(
            f"observe={shown(observe)} is a mapping, and {one}: expected Sites, such as xdan.Sites.every(2)"
        )
    if not isinstance(observe, (Sites, Mapping)):
        raise TypeError(f"observe={shown(observe)}: expected Sites, such as xdan.Sites.all() or xdan.Sites.every(2)")
    return FieldSites(space, observe) if several else observe  # type: ignore[return-value]


def _of_each_field(label: str, value: Any, space: StateSpace, take: Callable[[str, Any], Any]) -> Any:
    """Check a parameter, or that of each field where it is a mapping of their names."""
    if not names_fields(value):
        return take(label, value)
    check_field_names(label, value, space)
    return {name: take(f"{label}[{name!r}]", one) for name, one in value.items()}


def names_fields(value: Any) -> bool:
    """Whether a parameter is a mapping with an entry for each of some fields; labelled data are values."""
    return isinstance(value, Mapping) and bool(value) and not hasattr(value, "dims")


def check_field_names(label: str, value: Mapping[Any, Any], space: StateSpace) -> None:
    """Refuse a mapping for a state of one field, or with keys that are no field's name.

    Raises
    ------
    ValueError
    """
    if space.single is not None:
        raise ValueError(
            f"{label}={shown(dict(value))} is a mapping, and the state has one field alone: expected what stands for it"
        )
    if unknown := [name for name in value if name not in space.names]:
        raise ValueError(f"{label}= names {shown(unknown)}: expected fields of the state, some of {space.names}")


def _plain(value: Any) -> Any:
    """Numbers as lists, in a mapping of fields too."""
    return {name: _plain(one) for name, one in value.items()} if isinstance(value, dict) else np.asarray(value).tolist()


def _deviations(label: str, error_std: Any) -> Any:
    deviations = real_array(label, error_std, finite=False)
    wrong = deviations[~(np.isfinite(deviations) & (deviations > 0))]
    if wrong.size:
        raise ValueError(f"{label} holds the standard deviation {wrong[0]:g}: expected positive finite values")
    return _copied(label, error_std)


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
            f"model whose states stay finite; give {dynamics.label!r} a smaller timestep=, or rest= that turns noise "
            "into states that it can bear"
        )
