"""What a dynamics is: a state with named dims, and a step that is batched over leading axes."""

from __future__ import annotations

import datetime
import functools
import inspect
import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..checks import XdanWarning, integer, real, shown
from ..progress import track
from ..random import Purpose, normal
from ..tangent import push_forward
from ..user_functions import check_function, finest, isolated

Tendency = Callable[[Tensor], Tensor]

MOST_STEPS = 10**6  # of an interval or a spin-up: more are taken for a time in other units than the model's
MOST_COMPONENTS = 10**7  # of a state: a description that claims more is refused before its coordinates are made
_LEAST_SPIN_UP, _LEAST_SPIN_UP_STEPS = 20.0, 400
_STILL = 1e-2  # of the spread: states that move by less in a spin-up are still its noise
_SPIN_UP_PIECES = 20  # that a bar shows
_TRIAL_SECONDS = 0.5  # that `try_start` takes, at most
_TRIAL_STEPS = 50  # between two looks at the clock

# A class that replaces the method on the left loses the inherited methods on the right: they belong to the old step.
_FOLLOWS = {
    "tendency": ("advance", "advance_along"),
    "step": ("advance", "advance_along", "retreat"),
    "advance": ("advance_along",),
}


@dataclass(frozen=True)
class Coordinate:
    """Values and CF attributes of one dim of the state."""

    values: tuple[float | str, ...]
    attributes: dict[str, str] = field(default_factory=dict)


def runge_kutta_4(tendency: Tendency, x: Tensor, timestep: float, *, pure: bool = False) -> Tensor:
    """Advance dx/dt = tendency(x) by one step of the classical fourth-order Runge-Kutta scheme.

    Parameters
    ----------
    tendency : callable
    x : Tensor, shape (..., *shape)
    timestep : float
    pure : bool
        Whether the tendency leaves its argument alone and returns a new tensor at every call. Otherwise states and
        tendencies are copied, as it may work in place or return a buffer of its own.
    """

    def kept(value: Tensor) -> Tensor:
        return value if pure else value.clone()

    k1 = kept(tendency(kept(x)))
    k2 = kept(tendency(torch.add(x, k1, alpha=timestep / 2)))
    k3 = kept(tendency(torch.add(x, k2, alpha=timestep / 2)))
    k4 = tendency(torch.add(x, k3, alpha=timestep))
    return x + timestep / 6 * (k1 + 2 * (k2 + k3) + k4)


class _DefaultSpinUp:
    """The default spin-up time of a dynamics: it grows with the time step, whatever the unit of time is."""

    def __get__(self, dynamics: Any, owner: type | None = None) -> float:
        timestep = 0.0 if dynamics is None else float(dynamics.timestep)
        return max(_LEAST_SPIN_UP, _LEAST_SPIN_UP_STEPS * timestep)


class Dynamics(ABC):
    """An autonomous model M of Eq. 1a, differentiable and batched over leading axes.

    The methods of a subclass may work in place or return buffers of their own: their arguments and results are copied,
    with leading axes as one. A class that does neither says so, `class Mine(Dynamics, pure=True)`, and saves the
    copies. A subclass of a known model that replaces its `tendency` or `step` advances by that step, whatever faster
    way the known model has.

    Attributes
    ----------
    name : str
        The name it is registered under; stores refer to it.
    dims : tuple of str
        Names of the state's dims.
    coordinates : dict of str to Coordinate
        One for each dim; their lengths are the state's shape.
    timestep : float
        Internal step in model time units; intervals are multiples of it.
    units : str
        Units of the state.
    spin_up_time : float
        Model time after which a random start lies on the attractor; by default 20 units and at least 400 steps.
    time_unit : numpy.timedelta64, optional
        How long one unit of model time lasts; None where time has no dimension.
    """

    name: ClassVar[str] = "unnamed"
    dims: tuple[str, ...]
    coordinates: dict[str, Coordinate]
    timestep: float
    units: str = "1"
    spin_up_time: float = _DefaultSpinUp()  # type: ignore[assignment]
    time_unit: np.timedelta64 | None = None
    _vetted: bool = False

    def __init_subclass__(cls, pure: bool = False, **options: Any) -> None:
        """Guard the class's methods with copies, and drop inherited methods that do not fit its new step."""
        super().__init_subclass__(**options)
        if "_vetted" not in vars(cls):
            cls._vetted = pure and cls.__module__.startswith("xdan.")
        for name in set(vars(cls)) & set(_FOLLOWS):
            for follower in set(_FOLLOWS[name]) - set(vars(cls)):
                setattr(cls, follower, getattr(Dynamics, follower))
        if not pure:
            for name, guard in _GUARDS.items():
                method = vars(cls).get(name)
                if inspect.isfunction(method) and not hasattr(method, "__wrapped__"):
                    setattr(cls, name, guard(method))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        return tuple(len(self.coordinates[dim].values) for dim in self.dims)

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain JSON values from which `type(self)(**parameters)` makes the same dynamics."""

    @abstractmethod
    def step(self, x: Tensor) -> Tensor:
        """Advance states of shape (..., *shape) by one `timestep`."""

    def advance(self, x: Tensor, steps: int) -> Tensor:
        """Advance states of shape (..., *shape) by a number of steps."""
        for _ in range(steps):
            x = self.step(x)
        return x

    def advance_along(self, x: Tensor, directions: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Advance states, and directions at them by the tangent linear model; here by forward-mode autodiff.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        directions : Tensor, shape (B, M, *shape)
        steps : int

        Returns
        -------
        x, directions : Tensor
            Of the same shapes.
        """
        shape = self.shape

        def flat(z: Tensor) -> Tensor:
            return self.advance(z.reshape(*z.shape[:-1], *shape), steps).reshape(z.shape)

        what = f"the model {getattr(self, 'label', self.name)!r}"
        after, pushed = push_forward(flat, x.flatten(1), directions.flatten(2).contiguous(), what)
        return after.reshape(x.shape), pushed.reshape(directions.shape)

    def retreat(self, x: Tensor, steps: int) -> Tensor:
        """Go back in time by a number of steps; unstable for many, as what is dissipated forward grows.

        Raises
        ------
        ValueError
            If the dynamics knows no way back.
        """
        raise ValueError(f"the dynamics {self.name!r} cannot be integrated backward")

    def rest(self, noise: Tensor) -> Tensor:
        """Turn standard normal noise of shape (..., *shape) into a state to spin up from."""
        return noise

    def distances(self, sites: Tensor) -> Tensor | None:
        """Distances between components of the flattened state, for localisation.

        Parameters
        ----------
        sites : Tensor of int64, shape (n,)

        Returns
        -------
        Tensor, shape (n, N), or None where the dynamics knows no distance
        """
        return None

    def steps_in(self, interval: float) -> int:
        """Number of steps in an interval of model time.

        Raises
        ------
        ValueError
            If the interval is not a positive multiple of `timestep`, or has more than a million of them.
        TypeError
            If it is no number.
        """
        interval = real("interval", interval, finite=False)
        if math.isinf(interval):
            raise ValueError(
                f"an interval of {interval}: expected a positive multiple of the time step {self.timestep:g}"
            )
        ratio = interval / self.timestep
        steps = round(ratio)
        if steps < 1 or not math.isclose(ratio, steps, rel_tol=1e-4):
            raise ValueError(
                f"an interval of {interval:g} is not a positive multiple of the {self.name} time step "
                f"{self.timestep:g}; expected a multiple; choose another interval, or another timestep= of the dynamics"
            )
        if steps > MOST_STEPS:
            raise ValueError(
                f"an interval of {interval:g} takes {steps} steps of {self.timestep:g}: expected at most {MOST_STEPS}; "
                "is the time in other units than the model's?"
            )
        return steps

    def spin_up_steps(self) -> int:
        """Number of steps in the spin-up.

        Raises
        ------
        ValueError
            If `spin_up_time` is negative, not finite, or more than a million steps.
        """
        ratio = real("spin_up_time", self.spin_up_time, least=0.0) / self.timestep
        if ratio > MOST_STEPS:
            raise ValueError(
                f"spin_up_time={self.spin_up_time:g} takes {ratio:.3g} steps of timestep={self.timestep:g}: expected "
                f"at most {MOST_STEPS}; is it in other units than the model's time?"
            )
        return round(ratio)

    def fingerprint(self) -> Tensor:
        """One step from a fixed state, rounded: it differs between dynamics that share a name and a description."""
        self.vet()
        x = torch.linspace(0.1, 1.0, math.prod(self.shape), dtype=torch.float64).reshape(1, *self.shape)
        with torch.no_grad():
            return self.advance(finest(self.step, x), 1).cpu().round(decimals=9)

    def vet(self) -> None:
        """Try a user's methods at two states, once for each object; the classes of xdan are not tried.

        Raises
        ------
        ValueError
            If `step` or `rest` fails, is random, or mixes the states of a batch; if `advance` differs from repeated
            calls of `step`; or if `spin_up_time` is refused.
        TypeError
            If `time_unit` is no time.
        """
        if self._vetted:
            return
        object.__setattr__(self, "_vetted", True)  # before the trial, which comes back here; classes may be frozen
        try:
            self._try_out()
        except BaseException:
            object.__setattr__(self, "_vetted", False)
            raise

    def _try_out(self) -> None:
        if self.time_unit is not None:
            check_time_unit(self.time_unit)
        warn_of_short_spin_up(self.spin_up_time, self.timestep, self.spin_up_steps())
        labels = torch.arange(2)
        noise = normal(0, Purpose.SENSITIVITY, labels, labels[:1], math.prod(self.shape)).reshape(2, *self.shape)
        try:
            self._try_at(noise)
        except ValueError as reason:
            # A function whose own tensors are of single precision serves records of single precision.
            if not isinstance(reason.__cause__, RuntimeError):
                raise
            try:
                self._try_at(noise.to(torch.float32))
            except ValueError:
                raise reason from None

    def _try_at(self, noise: Tensor) -> None:
        check_function(self.rest, noise, self._label("rest"))
        with torch.no_grad():
            states = self.rest(noise)
        check_function(self.step, states, self._label("step"))
        if type(self).advance is Dynamics.advance:
            return
        with torch.no_grad():
            twice, stepped = self.advance(states.clone(), 2), self.step(self.step(states))
        if not torch.allclose(twice, stepped, rtol=1e-4, atol=1e-4 * float(states.abs().max()), equal_nan=True):
            raise ValueError(
                f"{self._label('advance')} over 2 steps is not what two calls of step() give: expected the same model"
            )

    def _label(self, method: str) -> str:
        return f"{method}() of the dynamics {self.name!r}"

    def try_start(self, label: int, seed: int, like: Tensor) -> None:
        """Spin up one state for half a second at most, to refuse early a model whose states become infinite.

        Raises
        ------
        ValueError
            If the state is not finite after it.
        """
        total, done = self.spin_up_steps(), 0
        until = time.monotonic() + _TRIAL_SECONDS
        with torch.no_grad():
            state = self._start([label], seed, 1, Purpose.INITIAL_STATE, like)
            while done < total and time.monotonic() < until:
                steps = min(_TRIAL_STEPS if done else 1, total - done)
                state, done = self.advance(state, steps), done + steps
        self._check_spun_up(state, done)

    def _start(self, labels: Sequence[int] | Tensor, seed: int, members: int, purpose: Purpose, like: Tensor) -> Tensor:
        """States to spin up from, shape (R members, *shape)."""
        self.vet()
        if not isinstance(labels, (Tensor, range)):
            if not isinstance(labels, Iterable):
                raise TypeError(f"labels={shown(labels)}: expected integers, one for each trajectory")
            labels = [integer("labels", label) for label in labels]
        keys, origin = torch.as_tensor(labels, dtype=torch.int64).cpu(), torch.zeros(1, dtype=torch.int64)
        size = math.prod(self.shape)
        noise = torch.cat([normal(seed, purpose, keys, origin, size, member) for member in range(members)], 1)
        return self.rest(noise.to(like).reshape(-1, *self.shape))

    def _check_spun_up(self, state: Tensor, steps: int) -> None:
        lost = ~state.isfinite().flatten(1).all(1)
        if bool(lost.any()):
            raise ValueError(
                f"{int(lost.sum())} of {len(lost)} states of {self.name!r} are not finite after {steps} steps of the "
                "spin-up: expected finite states; give rest= that turns noise into states that the model can bear, a "
                "smaller timestep=, or a shorter spin_up_time="
            )

    def climatology(
        self,
        labels: Sequence[int] | Tensor,
        seed: int,
        *,
        members: int = 1,
        purpose: Purpose = Purpose.INITIAL_STATE,
        like: Tensor | None = None,
    ) -> Tensor:
        """Independent states on the attractor, keyed by (seed, label, member).

        Parameters
        ----------
        labels : sequence of int, length R
            One for each trajectory.
        seed, purpose
            As for `xdan.core.random.normal`.
        members : int
            States for each label.
        like : Tensor, optional
            Its dtype and device are taken; float32 on the CPU otherwise.

        Returns
        -------
        Tensor, shape (R, members, *shape)

        Raises
        ------
        ValueError
            If some states are not finite after the spin-up, or the dynamics is refused by `vet`.

        Warns
        -----
        XdanWarning
            Where the states hardly move in the spin-up.
        """
        like = torch.zeros((), dtype=torch.float32) if like is None else like
        members, steps = integer("members", members, least=1, most=MOST_COMPONENTS), self.spin_up_steps()
        with torch.no_grad():
            state = start = self._start(labels, seed, members, purpose, like)
            piece = max(1, -(-steps // _SPIN_UP_PIECES))
            for done in track(range(0, steps, piece), f"spin-up of {self.name}"):
                state = self.advance(state, min(piece, steps - done))
        self._check_spun_up(state, steps)
        self._warn_of_rest(start, state, steps)
        return state.reshape(-1, members, *self.shape)

    def _warn_of_rest(self, start: Tensor, state: Tensor, steps: int) -> None:
        """Warn where a spin-up hardly moves the states. A model whose states do not move at all does not warn."""
        if not steps or type(self)._vetted or start.numel() < 2:
            return
        moved, spread = float((state - start).square().mean().sqrt()), float(start.std())
        if 0 < moved < _STILL * spread:
            warnings.warn(
                f"in a spin-up of {steps} steps ({steps * self.timestep:g} units of model time) the states of "
                f"{self.name!r} moved by {moved:.2g} where they differ by {spread:.2g}: they are still the noise that "
                "they began from. Is spin_up_time= or timestep= in other units than the model's time?",
                XdanWarning,
                stacklevel=3,
            )

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash((type(self), repr(self.config())))

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self.config().items())
        return f"{type(self).__name__}({inside})"


def accurate_timestep(value: Any) -> float:
    """Take a step of a Lorenz model, beyond 0.05 of which Runge-Kutta 4 is inaccurate."""
    return real("timestep", value, above=0.0, most=0.05)


def check_time_unit(value: Any) -> np.timedelta64:
    """Take how long one unit of model time lasts, in nanoseconds.

    Parameters
    ----------
    value : numpy.timedelta64 or datetime.timedelta

    Raises
    ------
    TypeError
        For anything else.
    ValueError
        If it is not positive, or has no fixed length, as months.
    """
    if not isinstance(value, (np.timedelta64, datetime.timedelta)):
        raise TypeError(
            f"time_unit={shown(value)}: expected how long one unit of model time lasts, for example "
            "np.timedelta64(1, 'D')"
        )
    fixed = isinstance(value, datetime.timedelta) or np.datetime_data(value.dtype)[0] not in ("Y", "M", "generic")
    duration = np.timedelta64(value, "ns") if fixed else np.timedelta64("NaT", "ns")
    if not duration > np.timedelta64(0, "ns"):
        raise ValueError(f"time_unit={shown(value)}: expected a positive time of fixed length, of a nanosecond or more")
    return duration


def in_words(duration: np.timedelta64) -> str:
    """A duration in the largest unit that it is whole of, such as "5 days"."""
    nanoseconds = int(duration / np.timedelta64(1, "ns"))
    units = (("days", 86_400 * 10**9), ("hours", 3600 * 10**9), ("minutes", 60 * 10**9), ("seconds", 10**9))
    for name, size in units:
        if nanoseconds % size == 0:
            return f"{nanoseconds // size} {name}"
    return f"{nanoseconds} nanoseconds"


def warn_of_short_spin_up(spin_up_time: float, timestep: float, steps: int) -> None:
    """Warn of a spin-up that is asked for and shorter than one step."""
    if 0 < spin_up_time < timestep:
        warnings.warn(
            f"spin_up_time={spin_up_time:g} is less than one timestep={timestep:g}, so the spin-up has {steps} steps. "
            "Is it in other units than the model's time? Leave it out for at least 400 steps, or give 0 for none",
            XdanWarning,
            stacklevel=3,
        )


def _guard_states(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Put copies around a method from states to states."""

    @functools.wraps(method)
    def guarded(self: Dynamics, x: Tensor, *more: Any, **options: Any) -> Tensor:
        def function(states: Tensor) -> Tensor:
            return method(self, states, *more, **options)

        shape = self.shape
        return isolated(function, x, len(shape), shape, self._label(method.__name__))

    return guarded


def _guard_directions(method: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Put copies around a tangent linear model."""

    @functools.wraps(method)
    def guarded(self: Dynamics, x: Tensor, directions: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        after, pushed = method(self, x.clone(), directions.clone(), steps)
        if after.shape != x.shape or pushed.shape != directions.shape:
            raise ValueError(
                f"{self._label(method.__name__)} gave shapes {tuple(after.shape)} and {tuple(pushed.shape)}: expected "
                f"{tuple(x.shape)} and {tuple(directions.shape)}"
            )
        return after.clone(), pushed.clone()

    return guarded


def check_distances(distances: Any, sites: Tensor, size: int, label: str) -> Tensor | None:
    """Refuse what is no matrix of distances from some components to all.

    Raises
    ------
    ValueError
    """
    if distances is None:
        return None
    shape = (len(sites), size)
    if not isinstance(distances, Tensor) or tuple(distances.shape) != shape:
        kind = tuple(distances.shape) if isinstance(distances, Tensor) else type(distances).__name__
        raise ValueError(
            f"{label} gave {kind}: expected a tensor of shape {shape}, from each of some components to all"
        )
    if distances.dtype == torch.bool or distances.is_complex() or not bool((distances >= 0).all()):
        raise ValueError(f"{label} gave values that are no distances: expected real numbers, 0 or more")
    return distances.clone()


def _guard_distances(method: Callable[..., Any]) -> Callable[..., Any]:
    """Put copies around distances."""

    @functools.wraps(method)
    def guarded(self: Dynamics, sites: Tensor) -> Tensor | None:
        distances = method(self, sites.clone())
        return check_distances(distances, sites, math.prod(self.shape), self._label(method.__name__))

    return guarded


_GUARDS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "step": _guard_states,
    "advance": _guard_states,
    "retreat": _guard_states,
    "rest": _guard_states,
    "advance_along": _guard_directions,
    "distances": _guard_distances,
}
