"""The protocol of a dynamics: a state with named dims, and a step that is batched over leading axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..random import Purpose
from ..registry import constructor_parameters, constructor_values
from ..spaces import Coordinate, StateSpace
from ..tables import html_table
from ..tangent import push_forward
from .clock import InTime
from .declared_space import DefaultSpace, OfSpace, stated_space
from .given_climate import GivenClimate
from .guards import FOLLOWS, guard_methods
from .model_error import MayErr
from .model_time import TimeUnit, spin_up_steps, steps_in, with_time_unit
from .parameters import Parametrised
from .spin_up import DefaultSpinUp, climatology, try_start
from .stepping import runge_kutta_4, takes_time
from .trials import fingerprint, start_states, try_out


class Dynamics(InTime, Parametrised, MayErr):
    """A model dx/dt = f(x, t), or a map x -> M(x, t) (Eq. 1a), differentiable and batched over leading axes.

    A new model is one class in one file. Its constructor sets `space`, or `dims` and `coordinates`, and `timestep`. The
    class gives `config`, and either `step` or `tendency`; Runge-Kutta 4 steps a tendency. Everything else has a
    default: autodiff takes derivatives, the tendency goes back in time, and states start from noise. A class may add a
    faster `advance`, a tangent linear model (`advance_along`), a start (`rest`) and `distances`. `docs/extending.md`
    shows a whole file.

    A model that depends on time takes the time t as the second argument, `tendency(self, x, t)` or `step(self, x, t)`.
    t is a number in model time, the same for all states of a call. Time is that of the record: t = 0 at the first
    analysis of a twin. For any other record, t at the first analysis is the number in the coordinate `time`. An object
    of such a class stands at a time, from which its methods begin. `from_step` and `starting_at` give an object at
    another time. Spin-ups run over the time before.

    Attributes
    ----------
    name : str
        Class attribute: the name under which `register_dynamics` registers the class. Stores refer to it.
    space : StateSpace
        The fields of the state, and the geometry of each. By default one field on a grid of `dims` without known
        positions.
    dims : tuple of str
        Names of the state's dims, such as ("x",) on a ring. By default those of the space; ("state",) for several
        fields.
    coordinates : dict of str to Coordinate
        A coordinate for each dim. Their lengths are the state's `shape`. By default those of the space.
    timestep : float
        Internal step in model time units. Intervals between analyses are multiples of it.
    units : str
        Units of the state; by default those of the space's fields, or "1".
    spin_up_time : float
        Model time after which a start from `rest` is on the attractor. By default 20 units and at least 400 steps.
    time_unit : numpy.timedelta64, optional
        Length of one unit of model time; None if time has no dimension. Records with dates need it. It may be set to a
        datetime.timedelta, or to the words that `config` gives.
    time_origin : numpy.datetime64 or cftime.datetime, optional
        Date at which model time is 0, for a model that depends on time; None if time has no dates.
    autonomous : bool
        Whether the model does not depend on time. The class finds this out: its `tendency` or `step` takes a time if it
        has a second argument without a default, or one with the name `t` or `time`.
    has_derivatives : bool
        Class attribute: whether torch can differentiate the step, or the class gives `advance_along`. If False, methods
        and trainings that need derivatives of the model are refused before they begin.
    second_order_reach : int or None
        Class attribute: at (i, j), the formula of `second_order_tendency` reads covariances at most this number of
        sites from i and j. The formula therefore holds on a part of a ring, except for so many sites at each end. By
        default None: no such bound is known.
    given_climate : GivenClimate or None
        States that replace the model's own climatology; `with_climatology` sets them.
    model_error : ModelError or None
        Covariance Q of the model's error in one interval; `with_model_error` sets it. None for a perfect model.

    Notes
    -----
    `tendency` and `step` get states of shape (B, *shape), of float32 or float64, on any device. They return a tensor of
    this shape, dtype and device. A state of several fields is flat, (B, N): `self.space.unpack` gives its fields, and
    `self.space.pack` joins fields to a state. The methods must treat each state of the batch separately, so sums and
    means go over the last axes only. They must use torch operations, so that autodiff can differentiate them. They must
    give the same answer at every call. `vet` tests this before the first use.

    The methods of a class may work in place, or return one of its buffers: their arguments and results are copied, with
    all leading axes as one. A class that does neither may say so, `class Mine(Dynamics, pure=True)`: this saves the
    copies, and its methods get states of shape (..., *shape). A class may be derived from a known model and replace its
    `tendency` or `step`. The derived class then advances by this step, even if the known model has a faster way.

    References
    ----------
    Bocquet et al. (2024), Eq. 1a, doi:10.1063/5.0230837.

    Examples
    --------
    >>> import torch, xdan
    >>> class Decay(xdan.Dynamics):
    ...     name = "decay"
    ...     def __init__(self, rate=1.0):
    ...         self.rate, self.timestep = rate, 0.05
    ...         self.space = xdan.StateSpace([xdan.Field("x", xdan.Ring(4))])
    ...     def config(self):
    ...         return {"rate": self.rate}
    ...     def tendency(self, x):
    ...         return -self.rate * x
    >>> Decay().advance(torch.ones(1, 4), 20)  # exp(-1)
    tensor([[0.3679, 0.3679, 0.3679, 0.3679]])
    """

    name: ClassVar[str] = "unnamed"
    space: StateSpace = DefaultSpace()  # type: ignore[assignment]
    dims: tuple[str, ...] = OfSpace()  # type: ignore[assignment]
    coordinates: dict[str, Coordinate] = OfSpace()  # type: ignore[assignment]
    units: str = OfSpace()  # type: ignore[assignment]
    timestep: float
    spin_up_time: float = DefaultSpinUp()  # type: ignore[assignment]
    time_unit = TimeUnit()
    has_derivatives: ClassVar[bool] = True
    second_order_reach: ClassVar[int | None] = None
    given_climate: GivenClimate | None = None
    _vetted: bool = False

    def __init_subclass__(cls, pure: bool = False, **options: Any) -> None:
        """Copy arguments and results of the class's methods, and drop inherited methods that a new step makes wrong."""
        super().__init_subclass__(**options)
        if "_vetted" not in vars(cls):
            cls._vetted = pure and cls.__module__.startswith("xdan.")
        defined = set(vars(cls))
        followers = {follower for name in defined & set(FOLLOWS) for follower in FOLLOWS[name]} - defined
        for follower in followers:
            if getattr(cls, follower) is not getattr(Dynamics, follower):
                setattr(cls, follower, getattr(Dynamics, follower))
        if "autonomous" not in vars(cls) and {"step", "tendency"} & set(vars(cls)):
            cls.autonomous = not takes_time(cls.tendency if cls.step is Dynamics.step else cls.step, 2)
        if not pure:
            guard_methods(cls, without=followers)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        if (space := stated_space(self)) is not None:
            return space.shape
        return tuple(len(self.coordinates[dim].values) for dim in self.dims)

    @property
    def label(self) -> str:
        """Name of the model in messages."""
        return self.name

    def config(self) -> dict[str, Any]:
        """Plain JSON values from which `type(self)(**parameters)` makes the same dynamics.

        By default these are the attributes with the names of the constructor's parameters. `time_unit` is in words,
        such as "5 days", and left out if there is none.

        Raises
        ------
        TypeError
            If such an attribute is missing, or is not a plain value.
        """
        values = constructor_values(self, without=("time_unit",))
        takes_unit = "time_unit" in constructor_parameters(type(self))
        return with_time_unit(values, self.time_unit if takes_unit else None)

    def on(self, device: torch.device) -> Self:
        """The model with its tensor attributes on a device. The model itself, if they are there already.

        A model may copy its constants to a state's device at every call. A CUDA graph cannot contain such a copy.
        Trainings on a GPU record graphs, and therefore use the result of `on`. A model that keeps tensors inside other
        objects must override `on`.
        """
        held = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        elsewhere = {name: value.to(device) for name, value in held.items() if value.device != device}
        return self._copied(**elsewhere) if elsewhere else self

    def tendency(self, x: Tensor) -> Tensor:
        """dx/dt of states of shape (B, *shape).

        Raises
        ------
        TypeError
            If the class gives no tendency.
        """
        raise TypeError(f"{type(self).__name__} has no tendency(): expected tendency() or step() in its class")

    def step(self, x: Tensor) -> Tensor:
        """Advance states of shape (..., *shape) by one `timestep`; by default Runge-Kutta 4 of the tendency."""
        return self._runge_kutta(x, self.timestep, self._time)

    def advance(self, x: Tensor, steps: int) -> Tensor:
        """Advance states of shape (..., *shape) by a number of steps, from `model_time` on."""
        if self.autonomous:
            for _ in range(steps):
                x = self.step(x)
            return x
        for step in range(self._model_step, self._model_step + steps):
            x = self._step_at(x, self._time_at(step))
        return x

    def one_step(self, x: Tensor) -> Tensor:
        """Advance states of shape (..., *shape) by `step`, from `model_time` if the model depends on time."""
        return self.step(x) if self.autonomous else self._step_at(x, self.model_time)

    def _step_at(self, x: Tensor, time: float) -> Tensor:
        """A step from a time, of a model that depends on time."""
        if type(self).step is Dynamics.step:
            return self._runge_kutta(x, self.timestep, time)
        step: Callable[..., Tensor] = self.step
        return step(x, time)

    def _runge_kutta(self, x: Tensor, timestep: float, time: float | None) -> Tensor:
        """A step of the tendency, forward or backward in time."""
        return runge_kutta_4(self.tendency, x, timestep, pure=True, time=time)  # guards copy where it is not pure

    def advance_along(self, x: Tensor, directions: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Advance states, and directions at these states by the tangent linear model; by default, by forward autodiff.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        directions : Tensor, shape (B, M, *shape)
        steps : int

        Returns
        -------
        x, directions : Tensor
            In the shapes of the arguments.
        """
        shape = self.shape

        def flat(z: Tensor) -> Tensor:
            return self.advance(z.reshape(*z.shape[:-1], *shape), steps).reshape(z.shape)

        what = f"the model {self.label!r}"
        after, pushed = push_forward(flat, x.flatten(1), directions.flatten(2).contiguous(), what)
        return after.reshape(x.shape), pushed.reshape(directions.shape)

    def second_order_tendency(self, covariance: Tensor) -> Tensor | None:
        """Covariance of f''[d, d] / 2 and f''[e, e] / 2 for the tendency f, if the model has a closed form.

        Parameters
        ----------
        covariance : Tensor, shape (B, N, N)
            E[d e^T] of two Gaussian perturbations with zero mean. It is not symmetric if d and e belong to two times.

        Returns
        -------
        Tensor, shape (B, N, N), or None
            By default None: methods then take second derivatives of the step.
        """
        return None

    def retreat(self, x: Tensor, steps: int) -> Tensor:
        """Go back in time by steps of the tendency. Many steps are unstable: what dissipates forward grows backward.

        Raises
        ------
        ValueError
            If the dynamics has its own step: only steps of a tendency by Runge-Kutta 4 can go back.
        """
        if type(self).step is not Dynamics.step:
            raise ValueError(
                f"the dynamics {self.label!r} cannot be integrated backward, because it has its own step: expected a "
                "model whose tendency() is stepped by Runge-Kutta 4; take past='analyses' of a method, or past=0 of a "
                "network"
            )
        return self._retreated(x, steps)

    def _retreated(self, x: Tensor, steps: int) -> Tensor:
        for step in range(self._model_step, self._model_step - steps, -1):
            x = self._runge_kutta(x, -self.timestep, None if self.autonomous else self._time_at(step))
        return x

    def rest(self, noise: Tensor) -> Tensor:
        """Turn standard normal noise of shape (..., *shape) into possible states of the model, for spin-ups."""
        return noise

    def distances(self, sites: Tensor) -> Tensor | None:
        """Distances between components of the flattened state, for localisation; by default those of the space.

        Parameters
        ----------
        sites : Tensor of int64, shape (n,)

        Returns
        -------
        Tensor, shape (n, N), or None if there is no distance
        """
        return self.space.distances(sites)

    def steps_in(self, interval: float) -> int:
        """Number of steps in an interval of model time.

        Raises
        ------
        ValueError
            If the interval is not a positive multiple of `timestep`, or has more than a million steps.
        TypeError
            If the interval is not a number.
        """
        return steps_in(interval, self.timestep, self.label)

    def spin_up_steps(self) -> int:
        """Number of steps in the spin-up.

        Raises
        ------
        ValueError
            If `spin_up_time` is negative, not finite, or more than a million steps.
        """
        return spin_up_steps(self.spin_up_time, self.timestep)

    def climatology(
        self,
        labels: Sequence[int] | Tensor,
        seed: int,
        *,
        members: int = 1,
        purpose: Purpose = Purpose.INITIAL_STATE,
        like: Tensor | None = None,
    ) -> Tensor:
        """Independent states on the attractor, keyed by (seed, label, member). If it moves: at `model_time`.

        Parameters
        ----------
        labels : sequence of int, length R
            One label for each trajectory.
        seed : int
            Key of the random draws.
        purpose : Purpose
            What the draws are for: another key, so that draws with one seed for two purposes are independent.
        members : int
            Number of states for each label.
        like : Tensor, optional
            The result has its dtype and device. By default float32 on the CPU.

        Returns
        -------
        Tensor, shape (R, members, *shape)

        Raises
        ------
        ValueError
            If some states are not finite after the spin-up, or `vet` refuses the dynamics.

        Warns
        -----
        XdanWarning
            If the states hardly move in the spin-up.
        """
        like = torch.zeros((), dtype=torch.float32) if like is None else like
        return climatology(self, labels, seed, members, purpose, like)

    def with_climatology(self, states: Any) -> Self:
        """Return a copy whose climatology is a sample of states, for a model that cannot spin up from noise.

        The copy then uses these states as starts, for normalisation and for the climate's covariance. There is no
        spin-up.

        Parameters
        ----------
        states : array_like, Tensor or DataArray, shape (..., *shape), GivenClimate or None
            At least 2 finite states that are not all equal. They are copied. None restores the model's own climatology.

        Raises
        ------
        TypeError
            If the states are not real numbers.
        ValueError
            If the states have another shape, are too few, are not finite, or are all equal.

        Examples
        --------
        >>> from xdan import Lorenz96
        >>> model = Lorenz96(sites=4).with_climatology(torch.arange(12.0).reshape(3, 4))
        >>> model.climatology(range(2), seed=0, members=3).sort(1).values[0, :, 0]
        tensor([0., 4., 8.])
        """
        climate = states if states is None or isinstance(states, GivenClimate) else GivenClimate(states, self)
        return self._copied(given_climate=climate)

    def climate_sample(self, count: int, seed: int, *, purpose: Purpose, like: Tensor) -> Tensor:
        """States for moments of the climate: `count` draws, or all the states of a climatology that the user gave.

        Parameters
        ----------
        count : int
            Number of draws.
        seed : int
            Key of the random draws.
        purpose : Purpose
            What the draws are for: another key.
        like : Tensor
            The result has its dtype and device.

        Returns
        -------
        Tensor, shape (S, *shape)
        """
        if self.given_climate is not None:
            return self.given_climate.states.to(like)
        return self.climatology(torch.arange(count), seed, purpose=purpose, like=like)[:, 0]

    def shortage(self, trajectories: int) -> str:
        """Message if this number of trajectories cannot start from different states; empty if it can."""
        states = trajectories if self.given_climate is None else len(self.given_climate)
        if trajectories <= states:
            return ""
        return (
            f"{trajectories} trajectories start from the {states} states of climatology=: some start from equal "
            f"states, and their truths stay equal. Expected at least {trajectories} states, or fewer trajectories"
        )

    def try_start(self, label: int, seed: int, like: Tensor) -> None:
        """Spin up one state for at most half a second, to refuse early a model whose states become infinite.

        Raises
        ------
        ValueError
            If the state is not finite afterwards.
        """
        try_start(self, label, seed, like)

    def start_states(self) -> Tensor:
        """Two states from which spin-ups begin, the same at every call, for tests of functions of the state.

        For a climatology that the user gave, its first two states.

        Returns
        -------
        Tensor, shape (2, *shape)
            In double precision, or in single precision if `rest` takes nothing else.
        """
        self.vet()
        return start_states(self)

    def fingerprint(self) -> Tensor:
        """One step from fixed states, rounded. It differs between dynamics with the same name and description.

        The step starts from a ramp of 0.1 to 1 over the state. If the step from the ramp is not finite, or the user
        gave the climatology, the step starts from `start_states`.

        Returns
        -------
        Tensor of float64, shape (1, *shape) or (2, *shape)
            Twice as many states for a model that depends on time: from two fixed times.

        Raises
        ------
        ValueError
            If neither step is finite, or `vet` refuses the dynamics.
        """
        self.vet()
        return fingerprint(self)

    def vet(self) -> None:
        """Test a user's methods at two states, once for each object. The classes of xdan are not tested.

        Raises
        ------
        ValueError
            If `step` or `rest` fails, is random, or mixes the states of a batch; if `advance` differs from repeated
            calls of `step`; or if `spin_up_time` is out of range.
        TypeError
            If `time_unit` is not a time.
        """
        if self._vetted:
            return
        object.__setattr__(self, "_vetted", True)  # before the test, which calls `vet` again; classes may be frozen
        try:
            try_out(self)
        except BaseException:
            object.__setattr__(self, "_vetted", False)
            raise

    def _state_hint(self) -> str:
        """What may be wrong with the state, for the message of a function that failed; "" if nothing is known."""
        return ""

    def require_derivatives(self, who: str, remedy: str) -> None:
        """Refuse a model without derivatives.

        Parameters
        ----------
        who : str
            What needs derivatives, such as "the method '4d-var'".
        remedy : str
            What to do instead.

        Raises
        ------
        ValueError
        """
        if not self.has_derivatives:
            raise ValueError(
                f"{who} needs derivatives of the model, and the dynamics {self.label!r} has none: torch cannot see "
                f"into its step; expected a model of torch operations, such as xdan.CustomDynamics. {remedy}"
            )

    @property
    def _has_own_advance(self) -> bool:
        return type(self).advance is not Dynamics.advance

    def _part(self, method: str) -> str:
        """Name of a method of this model in messages."""
        return f"{method}() of the dynamics {self.label!r}"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._identity() == other._identity()

    def _identity(self) -> tuple[dict[str, Any], str | None, float | str | None]:
        climate, error = self.given_climate, self.model_error
        return self.config(), None if climate is None else climate.word, None if error is None else error.word

    def __hash__(self) -> int:
        return hash((type(self), repr(self.config())))

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self.config().items())
        error = "" if self.model_error is None else f".with_model_error({self.model_error.word!r})"
        return f"{type(self).__name__}({inside}){error}"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, Any]] = list(self.config().items())
        grids = {one.name: zip(one.geometry.dims, one.geometry.shape, strict=True) for one in self.space}
        rows += [(f"field {name}", ", ".join(f"{dim}: {n}" for dim, n in grid)) for name, grid in grids.items()]
        if self.model_error is not None:
            rows.append(("model error", self.model_error.word))
        return html_table(type(self).__name__, rows)
