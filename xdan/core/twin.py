"""The twin experiment: everything from which a truth and its observations are made, in one object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .checks import perhaps, real, real_array, shown
from .dynamics import Dynamics, check_declarations, dynamics_to_json
from .keywords import constructor_checks_keywords
from .observing import FieldSites, Sites
from .spaces import StateSpace
from .tables import html_table
from .truth_model import TruthModel

FIELD, INSTRUMENT = "field", "instrument"  # labels of observations that positions may have, besides coordinates


class TwinSetting(TypedDict, total=False):
    """Parameters of a `TwinExperiment` besides its dynamics, for verbs that take them by keyword."""

    interval: float | Sequence[float]
    observe: Sites | FieldSites | Mapping[str, Sites] | None
    operator: Any
    error_std: Any
    error_covariance: Any
    positions: Any
    truth_dynamics: Dynamics | None
    model_error_std: Any
    model_error_covariance: Any


@constructor_checks_keywords
@dataclass(frozen=True, eq=False, repr=False)
class TwinExperiment:
    """A model, the truth that it forecasts, and the observations of this truth.

    `twin` makes a record of an experiment, `train` trains a network for it, and `sweep` changes its parameters. An
    experiment copies its numbers and never changes; `dataclasses.replace` makes another one. Two experiments are equal
    only if they are one object, because functions and labelled arrays cannot be compared.

    Parameters
    ----------
    dynamics : Dynamics
        The model of all forecasts. It is also the truth's model unless `truth_dynamics` is given. If it depends on
        time, the first analysis is at its `model_time`: 0, or what `starting_at` has set.
    interval : float or sequence of float
        Model time between analyses. A sequence gives the intervals of a record one by one.
    observe : Sites, or mapping of str to Sites, optional
        The observing network; by default every site. With several fields: Sites by the fields' names, where fields
        without Sites are not observed. A single Sites holds for every field. With an operator: which of its
        observations are made.
    operator : array, shape (P, *state), or callable, optional
        Observation operator H, by default the identity: a matrix, or a torch function of states (..., N). A DataArray
        has the dims (obs, *state). With several fields: a matrix (P, N), a mapping from fields' names to arrays
        (P, *shape), or a torch function of a mapping from names to tensors (..., *shape).
    error_std : float or array of the shape of one time's observations, with the times before it where it differs
        Standard deviation of the observation errors, in the units of the observations; by default 1. A DataArray may
        have any dims of the observations. With several fields: also a mapping from their names to the errors of each.
        With positions: also a mapping from instruments to standard deviations.
    error_covariance : array, shape (P, P), optional
        Full covariance R, instead of `error_std`. A DataArray has the dims of the observations twice; the second dims
        have the suffix "_dual". With several fields: (N, N), for the packed state.
    positions : mapping of str to array, optional
        Positions of the observations: for each dim of the observed fields, a coordinate of every observation, shape
        (P,), or (times, P) if it moves; NaN where there is no observation. H interpolates the state there. If there is
        an operator, it is H, and positions serve localisation alone. "field" may name the field of each observation,
        and "instrument" its instrument.
    truth_dynamics : Dynamics, optional
        Model of the truth, if the forecast model is wrong. Its state has the fields of the forecast model, and may have
        others, which a record leaves out. If it has a `model_error`, this error is added to the truth.
    model_error_std : float, array of shape (*state), or mapping of fields' names to these, optional
        Standard deviation of the forecast model's error in one interval, in the state's units: x_{k+1} = M(x_k) + e_k,
        e_k ~ N(0, Q). Methods account for it. Without `truth_dynamics`, the truth has this error too. By default the
        error that the dynamics has; 0 is a perfect model. The experiment keeps it as `dynamics.model_error`.
    model_error_covariance : array, shape (N, N), optional
        Full covariance Q, instead of `model_error_std`.

    Raises
    ------
    TypeError
        If the dynamics is not a Dynamics, `observe` is not Sites, the operator is neither numbers nor a function, or
        another parameter is not made of real numbers.
    ValueError
        If an interval or a standard deviation is not positive and finite, both `error_std` and `error_covariance` are
        given, a Q is not positive semi-definite or has the wrong size, or the truth's model lacks a field of the
        forecast model. The verbs check what depends on the length of a record.

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
                "expected one of error_std= and error_covariance=, both were given; None removes one of them"
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
            "model_error_std": None,  # from here on, the dynamics has the model error
            "model_error_covariance": None,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(
        cls, experiment: TwinExperiment | Dynamics, setting: Mapping[str, Any], also: tuple[str, ...] = ()
    ) -> TwinExperiment:
        """Return an experiment unchanged, or make one from a dynamics and a setting.

        Parameters
        ----------
        experiment : TwinExperiment or Dynamics
        setting : mapping
            Parameters of the experiment, besides a dynamics.
        also : tuple of str
            Other parameters of the caller, for the message about an unknown parameter.

        Raises
        ------
        TypeError
            If `experiment` is of another type, there is a setting besides an experiment, or a parameter is unknown.
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
        """The forecast model with the experiment's Q."""
        std, covariance = self.model_error_std, self.model_error_covariance
        if std is None and covariance is None:
            return self.dynamics
        return self.dynamics.with_model_error(std, covariance)

    @property
    def truth(self) -> TruthModel:
        """The model of the truth."""
        return TruthModel.of(self.truth_dynamics, self.dynamics)

    def starting_at(self, time: float) -> TwinExperiment:
        """The experiment with its first analysis at another model time, for models that depend on time."""
        truth = self.truth_dynamics
        return replace(
            self,
            dynamics=self.dynamics.starting_at(time),
            truth_dynamics=None if truth is None else truth.starting_at(time),
        )

    def steps(self, cycles: int, of_truth: bool = False) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Intervals between the cycles, and the number of model steps in each interval.

        Parameters
        ----------
        cycles : int
        of_truth : bool
            Whether to count the steps of the truth's model instead of those of the forecast model.

        Returns
        -------
        intervals : array, shape (cycles - 1,)
            Model time.
        steps : array, shape (cycles - 1,)

        Raises
        ------
        ValueError
            If the number of intervals does not fit, or an interval is not a multiple of the dynamics' time step.
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
        """Plain JSON description. A function is described by its name; labelled numbers lose their labels."""
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
    """Check and copy labels of observations: numbers along dims, and words for fields and instruments.

    Raises
    ------
    TypeError
        If `positions` is not a mapping, or its values are neither numbers nor words.
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
    """Sites of the state, or of each of its fields, or of the observations of an operator or of positions."""
    if isinstance(observe, FieldSites):  # from another experiment, of which this one is a variant
        observe = Sites.all() if observe.kind == "all" else observe.sites
    observe = Sites.all() if observe is None else observe
    several = space.single is None and not along_obs
    if isinstance(observe, Mapping) and not several:
        why = "operator= and positions= give observations of no field" if along_obs else "the state has one field alone"
        raise ValueError(
            f"observe={shown(observe)} is a mapping, and {why}: expected Sites, such as xdan.Sites.every(2)"
        )
    if not isinstance(observe, (Sites, Mapping)):
        raise TypeError(f"observe={shown(observe)}: expected Sites, such as xdan.Sites.all() or xdan.Sites.every(2)")
    return FieldSites(space, observe) if several else observe  # type: ignore[return-value]


def _of_each_field(label: str, value: Any, space: StateSpace, take: Callable[[str, Any], Any]) -> Any:
    """Check a parameter; if it is a mapping from fields' names, check it for each field."""
    if not names_fields(value):
        return take(label, value)
    check_field_names(label, value, space)
    return {name: take(f"{label}[{name!r}]", one) for name, one in value.items()}


def names_fields(value: Any) -> bool:
    """Whether a parameter is a mapping with entries for fields. Labelled data are values, not such mappings."""
    return isinstance(value, Mapping) and bool(value) and not hasattr(value, "dims")


def check_field_names(label: str, value: Mapping[Any, Any], space: StateSpace) -> None:
    """Refuse a mapping if the state has one field, or if a key is not a field's name.

    Raises
    ------
    ValueError
    """
    if space.single is not None:
        raise ValueError(
            f"{label}={shown(dict(value))} is a mapping, and the state has one field alone: expected the value for it"
        )
    if unknown := [name for name in value if name not in space.names]:
        raise ValueError(f"{label}= names {shown(unknown)}: expected fields of the state, some of {space.names}")


def _plain(value: Any) -> Any:
    """Numbers as lists, also in a mapping of fields."""
    return {name: _plain(one) for name, one in value.items()} if isinstance(value, dict) else np.asarray(value).tolist()


def _deviations(label: str, error_std: Any) -> Any:
    deviations = real_array(label, error_std, finite=False)
    wrong = deviations[~(np.isfinite(deviations) & (deviations > 0))]
    if wrong.size:
        raise ValueError(f"{label} holds the standard deviation {wrong[0]:g}: expected positive finite values")
    return _copied(label, error_std)


def _copied(label: str, value: Any) -> Any:
    """Copy real numbers. Labelled arrays keep their labels."""
    numbers = real_array(label, value, finite=False)
    if hasattr(value, "dims"):
        return value.copy()
    return numbers if numbers.ndim else float(numbers)


def check_truth(dynamics: Dynamics, truth: Tensor, trajectory: Tensor, first: int) -> None:
    """Refuse a truth that is not finite, because in a record NaN would mean that nothing is observed.

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
        If a value is not finite. The message names the trajectory and the time.
    """
    lost = ~truth.isfinite().all(-1)
    if bool(lost.any()):
        row, k = (int(i) for i in lost.nonzero()[lost.nonzero()[:, 1].argmin()])
        raise ValueError(
            f"the truth of trajectory {int(trajectory[row])} is not finite from time index {first + k} on: expected a "
            f"model whose states stay finite; give {dynamics.label!r} a smaller timestep=, or rest= that turns noise "
            "into states that it can bear"
        )
