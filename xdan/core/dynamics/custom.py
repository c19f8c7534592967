"""A user's model from a torch function."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..checks import integer, real, real_array, shown
from ..keywords import constructor_checks_keywords
from ..spaces import MOST_COMPONENTS, Coordinate, Field, Geometry, StateSpace
from ..spaces.coordinates import word
from ..user_functions import call, check_answer, isolated
from .base import Dynamics
from .declarations import TAKEN
from .declared_space import UNNAMED
from .guards import check_distances
from .model_time import Duration, warn_of_short_spin_up, with_time_unit
from .stepping import Tendency, runge_kutta_4, takes_time

State = (
    StateSpace
    | Field
    | Geometry
    | Iterable[Field]
    | Mapping[str, Geometry]
    | Mapping[str, int | Sequence[float] | Sequence[str]]
)


@constructor_checks_keywords
class CustomDynamics(Dynamics, pure=True):
    """A user's model from a torch function.

    The functions may work in place, or return one of their buffers: they get copies of the states, with all leading
    axes as one, and their results are copied. They must treat each state of a batch separately, and give the same
    answer at every call. Both are tested once.

    Parameters
    ----------
    tendency : callable, optional
        dx/dt for states of shape (B, *shape), which Runge-Kutta 4 steps. If the model depends on time, a second
        argument t, a number, is the model time.
    step : callable, optional
        Advances states over one `timestep`, instead of `tendency`. A second argument is the time at the beginning.
    state : StateSpace, Field, Geometry, mapping or iterable
        The fields of the state: Fields, or a mapping from their names to geometries such as `xdan.Ring(40)`. A mapping
        from names of dims to lengths or labels (distinct numbers or distinct words) is one field on a grid without
        known positions. With several fields, the functions map dicts of tensors (B, *shape) to such dicts.
    timestep : float
        Internal step in model time units.
    name : str
        Name in stores. A store with this name is opened with `dynamics=`, because functions are not stored.
    spin_up_time : float, optional
        Model time after which a random start is on the attractor. By default 20 units and at least 400 steps; 0 for no
        spin-up.
    units : str
        Units of the state, if `state` has dims or geometries. A `Field` has its own units.
    rest : callable, optional
        Turns standard normal noise into states for spin-ups. By default the noise itself.
    distance : callable, optional
        Distances (n, N) between components of the flattened state, from component indices of shapes (n, 1) and (1, N).
        Localised methods need them.
    time_unit : numpy.timedelta64 or datetime.timedelta, optional
        Length of one unit of model time; None if time has no dimension.
    parameters : mapping of str to float or array, optional
        Real parameters that `tendency` or `step` takes by keyword, such as `{"forcing": 8.0}` for
        `tendency(x, forcing)`. They are in `config()`, `with_parameters` changes them, and `estimate_parameters`
        estimates them. The function gets a number as a float and an array as a tensor of the states' dtype. When
        parameters are estimated, it gets both as tensors.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If not exactly one of `tendency` and `step` is given; if the state has no dims, a dim has no length or a name
        that records use, or labels are not distinct; or if a number is out of range.

    Warns
    -----
    XdanWarning
        If `spin_up_time` is shorter than one step.

    Examples
    --------
    >>> import torch
    >>> decay = CustomDynamics(lambda x: -x, state={"x": 3}, timestep=0.1, spin_up_time=0.0)
    >>> decay.advance(torch.ones(2, 3), 10).shape
    torch.Size([2, 3])
    """

    name = "custom"
    _vetted = False

    def __init__(
        self,
        tendency: Tendency | None = None,
        *,
        step: Tendency | None = None,
        state: State,
        timestep: float,
        name: str = "custom",
        spin_up_time: float | None = None,
        units: str = "1",
        rest: Tendency | None = None,
        distance: Callable[[Tensor, Tensor], Tensor] | None = None,
        time_unit: Duration | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self._values = _checked_values(parameters)
        functions = {"tendency": tendency, "step": step, "rest": rest, "distance": distance}
        for label, function in functions.items():
            if function is not None and not callable(function):
                raise TypeError(f"{label}={shown(function)}: expected a torch function")
        if (tendency is None) == (step is None):
            raise ValueError("expected exactly one of tendency= and step=")
        self._function = tendency or step
        units, self._name = word("units", units), word("name", name)
        if (space := _space(state, units)) is None:
            self.units = units
            self.coordinates = _coordinates(state)
            self.dims = tuple(self.coordinates)
        else:
            if units not in ("1", space.units):
                raise ValueError(
                    f"units={units!r}, and the fields say {[field.units for field in space]}: expected units= of the "
                    "Fields alone"
                )
            self.space = space
            if not space.single:
                tendency = self._of_fields(space, tendency, "tendency=")
                step, rest = self._of_fields(space, step, "step="), self._of_fields(space, rest, "rest=")
        self._tendency, self._step, self._rest, self._distance = tendency, step, rest, distance
        self.autonomous = not takes_time(self._function, 1, self._values)  # type: ignore[arg-type]
        self._check_arguments()
        self.timestep = real("timestep", timestep, above=0.0)
        if spin_up_time is not None:
            self.spin_up_time = real("spin_up_time", spin_up_time, least=0.0)
            warn_of_short_spin_up(self.spin_up_time, self.timestep, self.spin_up_steps())
        self.time_unit = time_unit

    def _check_arguments(self) -> None:
        """Refuse parameters that the function does not take, and arguments that are neither parameters nor time."""
        if not self._values:
            return
        try:
            arguments = list(inspect.signature(self._function).parameters.values())  # type: ignore[arg-type]
        except (TypeError, ValueError):  # a function of C does not show its arguments
            return
        names = [one.name for one in arguments if one.kind is not inspect.Parameter.VAR_KEYWORD][1:]
        if len(names) == len(arguments) - 1 and (unknown := sorted(set(self._values) - set(names))):
            raise ValueError(
                f"the function of {self.label!r} takes no {unknown}, which parameters= names: expected some of {names}"
            )
        rest = [name for name in names if name not in self._values]
        if not self.autonomous and rest and rest[0] not in ("t", "time"):
            raise ValueError(
                f"the function of {self.label!r} takes {rest[0]!r}, which parameters= does not name: expected its "
                "value there, or the name 't' or 'time' of an argument that is the model time"
            )

    @property
    def label(self) -> str:
        """The user's name for the model."""
        return self._name

    def config(self) -> dict[str, Any]:
        """Describe the dynamics. Functions are named, not stored."""
        stated = "space" in vars(self)
        described = {
            "label": self.label,
            "function": getattr(self._function, "__qualname__", type(self._function).__name__),
            "state": self.space.to_json() if stated else {d: list(c.values) for d, c in self.coordinates.items()},
            "timestep": self.timestep,
            "spin_up_time": self.spin_up_time,
        }
        if self._values:
            described["parameters"] = self.parameter_values()
        return with_time_unit(described, self.time_unit)

    def parameter_values(self) -> dict[str, Any]:
        """The values of `parameters=`, as plain numbers or lists."""
        return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in self._values.items()}

    def _remade(self, values: dict[str, Any]) -> Self:
        return self._copied(_values=self._values | _checked_values(values), _vetted=False)

    def computing_with(self, values: Mapping[str, Tensor]) -> Self:
        """A copy whose functions get tensors in the place of some parameters."""
        return self._copied(_values=self._values | dict(values), _vetted=True)

    def __eq__(self, other: object) -> bool:
        # Two functions of one scope may have equal names, so the name does not identify a function.
        return (
            isinstance(other, CustomDynamics)
            and super().__eq__(other)
            and torch.equal(self.fingerprint(), other.fingerprint())
        )

    __hash__ = Dynamics.__hash__

    def tendency(self, x: Tensor, *time: float) -> Tensor:
        """dx/dt for states of shape (..., *shape), if the model has a tendency. `time` is there if it depends on it."""
        if self._tendency is None:
            return super().tendency(x)
        return self._isolated(self._at(self._tendency, time), x, "tendency=")

    def step(self, x: Tensor, *time: float) -> Tensor:
        """Advance states of shape (..., *shape) by one `timestep`. `time` is there if the model depends on time."""
        if self._step is not None:
            return self._isolated(self._at(self._step, time), x, "step=")
        return self._runge_kutta(x, self.timestep, *(time or (self._time,)))

    def retreat(self, x: Tensor, steps: int) -> Tensor:
        """Go back in time by the tendency."""
        if self._tendency is None:
            return super().retreat(x, steps)
        return self._retreated(x, steps)

    def distances(self, sites: Tensor) -> Tensor | None:
        """Distances from some components to all components."""
        if self._distance is None:
            return super().distances(sites)
        size = math.prod(self.shape)
        both = sites[:, None].clone(), torch.arange(size, device=sites.device)[None]
        return check_distances(self._distance(*both), sites, size, self._part("distance="))

    def rest(self, noise: Tensor) -> Tensor:
        """Turn noise into a state to spin up from."""
        return noise if self._rest is None else self._isolated(self._rest, noise, "rest=")

    def _of_fields(self, space: StateSpace, function: Callable[..., Any] | None, part: str) -> Tendency | None:
        """A function of flat states, from a function of dicts of fields."""
        if function is None:
            return None

        def flat(x: Tensor, *time: float, **values: Any) -> Any:
            answer = function(space.unpack(x), *time, **values)
            if isinstance(answer, Tensor) and answer.shape == x.shape:
                return answer
            if not isinstance(answer, Mapping) or set(answer) != set(space.names):
                kinds = sorted(map(str, answer)) if isinstance(answer, Mapping) else type(answer).__name__
                raise ValueError(f"{self._part(part)} gave {kinds}: expected a mapping of the fields {space.names}")
            for one in space:
                shape = (*x.shape[:-1], *one.geometry.shape)
                check_answer(answer[one.name], shape, x, f"{self._part(part)}, of the field {one.name!r},")
            return space.pack(answer)

        return functools.wraps(function)(flat) if hasattr(function, "__name__") else flat

    def _at(self, function: Tendency, time: tuple[float, ...]) -> Tendency:
        """A function of states alone, from one that also takes the time (if there is one) and parameters."""
        if not time and not self._values:
            return function

        def of_states(x: Tensor) -> Any:
            values = {name: one.to(x) if isinstance(one, Tensor) else one for name, one in self._values.items()}
            return function(x, *time, **values)

        return of_states

    def _state_hint(self) -> str:
        """Say that several dims are one field: a function of several fields is often meant."""
        if "space" in vars(self) or len(self.dims) < 2:
            return ""
        first = self.dims[0]
        return (
            f"This is one field with the dims {' and '.join(self.dims)}; for {len(self.dims)} fields pass geometries, "
            f"such as state={{{first!r}: xdan.Ring({len(self.coordinates[first].values)}), ...}}"
        )

    def _part(self, method: str) -> str:
        known = {"step": "tendency=" if self._step is None else "step=", "rest": "rest="}
        return f"{known.get(method, method)} of the dynamics {self.label!r}"

    def _isolated(self, function: Tendency, x: Tensor, part: str) -> Tensor:
        shape = self.shape
        return isolated(function, x, len(shape), shape, self._part(part))

    def _runge_kutta(self, x: Tensor, timestep: float, time: float | None) -> Tensor:
        shape, label = self.shape, self._part("tendency=")
        states = x.reshape(x.shape[: x.ndim - len(shape)].numel(), *shape)

        def tendency(z: Tensor, *now: float) -> Tensor:
            assert self._tendency is not None
            return check_answer(call(self._at(self._tendency, now), z, label), tuple(z.shape), z, label)

        return runge_kutta_4(tendency, states, timestep, time=time).reshape(x.shape)


def _checked_values(parameters: Any) -> dict[str, float | Tensor]:
    """Parameters as floats, or as tensors of float64 if they are arrays."""
    if parameters is None:
        return {}
    if not isinstance(parameters, Mapping) or not all(isinstance(name, str) for name in parameters):
        raise TypeError(f"parameters={shown(parameters)}: expected a mapping such as {{'forcing': 8.0}}")
    values: dict[str, float | Tensor] = {}
    for name, value in parameters.items():
        numbers = real_array(f"parameters[{name!r}]", value)
        values[name] = torch.from_numpy(numbers) if numbers.ndim else float(numbers)
    return values


def _space(state: Any, units: str) -> StateSpace | None:
    """The space of a state; None if `state` names dims only."""
    if isinstance(state, StateSpace):
        return state
    if isinstance(state, Geometry):
        return StateSpace(Field(UNNAMED, state, units))
    if isinstance(state, Field):
        return StateSpace(state)
    if isinstance(state, Mapping):
        if not any(isinstance(one, Geometry) for one in state.values()):
            return None
        return StateSpace([Field(name, geometry, units) for name, geometry in state.items()])
    fields = isinstance(state, (list, tuple)) and any(isinstance(one, Field) for one in state)
    return StateSpace(state) if fields else None


def _coordinates(state: Any) -> dict[str, Coordinate]:
    """Coordinates of the dims. Sizes are checked before a coordinate is made."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state={shown(state)}: expected a mapping from dims to lengths, such as {{'x': 40}}")
    if not state:
        raise ValueError("state= names no dims; expected for example state={'x': 40}")
    axes = {_dim(dim): _axis(f"state[{dim!r}]", axis) for dim, axis in state.items()}
    size = math.prod(len(axis) for axis in axes.values())
    if size > MOST_COMPONENTS:
        raise ValueError(f"state={shown(state)} has {size} components: expected at most {MOST_COMPONENTS}")
    return {dim: Coordinate(tuple(axis)) for dim, axis in axes.items()}


def _dim(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"state={{{shown(name)}: ...}}: expected names of dims")
    if not name or name in TAKEN or name.endswith("_dual"):
        raise ValueError(
            f"state={{{name!r}: ...}}: expected another name for the dim, as records hold a dim or variable so called"
        )
    return str(name)


def _axis(label: str, axis: Any) -> Sequence[float | str]:
    """Labels of one dim. For a length, a range, which takes no memory."""
    if isinstance(axis, (int, np.integer)):
        return range(integer(label, axis, least=1, most=MOST_COMPONENTS))
    if isinstance(axis, (str, bytes, Mapping, Set)) or not isinstance(axis, Iterable) or np.ma.isMaskedArray(axis):
        raise TypeError(f"{label}={shown(axis)}: expected a length or the labels of a dim, numbers or words")
    values = np.asarray(axis).ravel() if hasattr(axis, "__array__") else list(axis)
    labels = [_plain_label(label, value) for value in values]
    if not labels:
        raise ValueError(f"{label}={shown(axis)}: expected at least 1 label")
    if len({isinstance(value, str) for value in labels}) > 1 or len(set(labels)) < len(labels):
        raise ValueError(f"{label}={shown(axis)}: expected distinct labels, all of them numbers or all words")
    return labels


def _plain_label(label: str, value: Any) -> float | str:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{label} holds the label {shown(value)}: expected numbers or words")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{label} holds the label {value}: expected finite numbers")
    return int(value) if isinstance(value, (int, np.integer)) else number
