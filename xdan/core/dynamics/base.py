"""What a dynamics is: a state with named dims, and a step that is batched over leading axes."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..random import Purpose, normal
from ..tangent import push_forward

Tendency = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Coordinate:
    """Values and CF attributes of one dim of the state."""

    values: tuple[float | str, ...]
    attributes: dict[str, str] = field(default_factory=dict)


def runge_kutta_4(tendency: Tendency, x: Tensor, timestep: float) -> Tensor:
    """Advance dx/dt = tendency(x) by one step of the classical fourth-order Runge-Kutta scheme."""
    k1 = tendency(x)
    k2 = tendency(torch.add(x, k1, alpha=timestep / 2))
    k3 = tendency(torch.add(x, k2, alpha=timestep / 2))
    k4 = tendency(torch.add(x, k3, alpha=timestep))
    return x + timestep / 6 * (k1 + 2 * (k2 + k3) + k4)


class Dynamics(ABC):
    """An autonomous model M of Eq. 1a, differentiable and batched over leading axes.

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
        Model time after which a random start lies on the attractor.
    """

    name: ClassVar[str] = "unnamed"
    dims: tuple[str, ...]
    coordinates: dict[str, Coordinate]
    timestep: float
    units: str = "1"
    spin_up_time: float = 20.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        return tuple(len(self.coordinates[dim].values) for dim in self.dims)

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
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
            If the interval is not a positive multiple of `timestep`.
        """
        if not math.isfinite(interval):
            raise ValueError(
                f"an interval of {interval}: expected a positive multiple of the time step {self.timestep:g}"
            )
        ratio = interval / self.timestep
        steps = round(ratio)
        if steps < 1 or not math.isclose(ratio, steps, rel_tol=1e-4):
            raise ValueError(
                f"an interval of {interval:g} is not a positive multiple of the {self.name} time step "
                f"{self.timestep:g}; choose the interval or the dynamics' timestep= so that it is"
            )
        return steps

    def fingerprint(self) -> Tensor:
        """Where a step takes a fixed state, rounded: tells dynamics of one name and description from each other."""
        x = torch.linspace(0.1, 1.0, math.prod(self.shape), dtype=torch.float64).reshape(1, *self.shape)
        with torch.no_grad():
            return self.advance(x, 1).cpu().round(decimals=9)

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
        """
        like = torch.zeros(()) if like is None else like
        keys, origin = torch.as_tensor(labels, dtype=torch.int64).cpu(), torch.zeros(1, dtype=torch.int64)
        size = math.prod(self.shape)
        noise = torch.cat([normal(seed, purpose, keys, origin, size, member) for member in range(members)], 1)
        with torch.no_grad():
            start = self.rest(noise.to(like).reshape(-1, *self.shape))
            state = self.advance(start, round(self.spin_up_time / self.timestep))
        return state.reshape(len(keys), members, *self.shape)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.parameters() == other.parameters()

    def __hash__(self) -> int:
        return hash((type(self), repr(self.parameters())))

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self.parameters().items())
        return f"{type(self).__name__}({inside})"


class CustomDynamics(Dynamics):
    """A user's own model from a torch function.

    Parameters
    ----------
    tendency : callable, optional
        dx/dt for states of shape (..., *shape), stepped by Runge-Kutta 4.
    step : callable, optional
        The advance over one `timestep`, instead of `tendency`.
    state : mapping
        Each dim's name to its length or to its coordinate values.
    timestep : float
        Internal step in model time units.
    name : str
        Written into stores. A store that names it is opened with `dynamics=`, as functions are not stored.
    spin_up_time, units
        As for `Dynamics`.
    rest : callable, optional
        From standard normal noise to a state to spin up from.
    distance : callable, optional
        From component indices of shapes (n, 1) and (1, N) of the flattened state to their distances, (n, N);
        localised methods need it.

    Raises
    ------
    ValueError
        Unless exactly one of `tendency` and `step` is given, or if the state has no dims.

    Examples
    --------
    >>> import torch
    >>> decay = CustomDynamics(lambda x: -x, state={"x": 3}, timestep=0.1, spin_up_time=0.0)
    >>> decay.advance(torch.ones(2, 3), 10).shape
    torch.Size([2, 3])
    """

    name = "custom"

    def __init__(
        self,
        tendency: Tendency | None = None,
        *,
        step: Tendency | None = None,
        state: Mapping[str, int | Sequence[float] | Sequence[str]],
        timestep: float,
        name: str = "custom",
        spin_up_time: float = 20.0,
        units: str = "1",
        rest: Tendency | None = None,
        distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        if (tendency is None) == (step is None):
            raise ValueError("expected exactly one of tendency= and step=")
        if not state:
            raise ValueError("state= names no dims; expected for example state={'x': 40}")
        if not timestep > 0:
            raise ValueError(f"timestep={timestep}: expected a positive number")
        self._tendency, self._step, self._rest, self._distance = tendency, step, rest, distance
        self.coordinates = {
            dim: Coordinate(tuple(range(value) if isinstance(value, int) else value)) for dim, value in state.items()
        }
        self.dims = tuple(state)
        self.timestep, self.spin_up_time, self.units = timestep, spin_up_time, units
        self.label = name

    def parameters(self) -> dict[str, Any]:
        """Describe the dynamics; functions are named, not stored."""
        function = self._tendency or self._step
        return {
            "label": self.label,
            "function": getattr(function, "__qualname__", type(function).__name__),
            "state": {dim: list(c.values) for dim, c in self.coordinates.items()},
            "timestep": self.timestep,
            "spin_up_time": self.spin_up_time,
        }

    def __eq__(self, other: object) -> bool:
        # The name of a function does not tell it from another of the same scope.
        return (
            isinstance(other, CustomDynamics)
            and super().__eq__(other)
            and torch.equal(self.fingerprint(), other.fingerprint())
        )

    __hash__ = Dynamics.__hash__

    def step(self, x: Tensor) -> Tensor:
        """Advance states of shape (..., *shape) by one `timestep`."""
        if self._step is not None:
            return self._step(x)
        assert self._tendency is not None
        return runge_kutta_4(self._tendency, x, self.timestep)

    def retreat(self, x: Tensor, steps: int) -> Tensor:
        """Go back in time with the tendency."""
        if self._tendency is None:
            return super().retreat(x, steps)
        for _ in range(steps):
            x = runge_kutta_4(self._tendency, x, -self.timestep)
        return x

    def distances(self, sites: Tensor) -> Tensor | None:
        """Distances from some components to all."""
        if self._distance is None:
            return None
        return self._distance(sites[:, None], torch.arange(math.prod(self.shape), device=sites.device)[None])

    def rest(self, noise: Tensor) -> Tensor:
        """Turn noise into a state to spin up from."""
        return noise if self._rest is None else self._rest(noise)


_REGISTRY: dict[str, type[Dynamics]] = {}


def register_dynamics(cls: type[Dynamics]) -> type[Dynamics]:
    """Register a dynamics class under its `name`, so that stores can refer to it."""
    _REGISTRY[cls.name] = cls
    return cls


def dynamics_to_json(dynamics: Dynamics) -> dict[str, Any]:
    """Describe a dynamics as a name and its parameters."""
    return {"name": dynamics.name, "parameters": dynamics.parameters()}


def dynamics_from_json(description: Mapping[str, Any]) -> Dynamics:
    """Make the dynamics that a store names.

    Raises
    ------
    ValueError
        If the name is not registered or the parameters do not fit; nothing is imported.
    """
    name = description.get("name")
    if name not in _REGISTRY:
        raise ValueError(
            f"dynamics {name!r} is not registered; known are {sorted(_REGISTRY)}. "
            "Pass dynamics= with the model that made the record"
        )
    cls, parameters = _REGISTRY[name], dict(description.get("parameters", {}))
    accepted = set(inspect.signature(cls).parameters)
    if unknown := set(parameters) - accepted:
        raise ValueError(
            f"dynamics {name!r} has no parameters {sorted(unknown)}; it takes {sorted(accepted)}. "
            "Was the store written by a newer xdan? Otherwise pass dynamics="
        )
    return cls(**parameters)
