"""State augmentation: a model whose state also holds parameters of another model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import shown
from ..dynamics import Dynamics
from ..dynamics.registry import dynamics_to_json
from ..dynamics.spin_up import SpinUpError, begin_states, try_spin_up
from ..observing import ObservingSystem, Operator
from ..random import Purpose, normal
from ..spaces import Components, Field, StateSpace
from .priors import Priors

_FAR = 1e12  # a distance so large that every taper is zero


class AugmentedDynamics(Dynamics, pure=True):
    """A model together with some of its parameters, z = (x, theta). The model with theta advances x; theta is constant.

    Each parameter is a field on the geometry `Components`, after the fields of the model. The climatology draws
    parameters from their prior, and spins up each state with its parameters. The parameters may have a random walk,
    theta_{k+1} = theta_k + w_k with w_k ~ N(0, walk^2). The walk is then a part of the model error Q.

    Parameters
    ----------
    model : Dynamics
        The model. The prior's mean replaces its values of the parameters.
    priors : Priors
        Priors of the parameters.
    walk : Tensor, shape (p,), optional
        Standard deviation of the random walk in one interval between analyses. By default parameters do not walk.

    References
    ----------
    Anderson (2001), doi:10.1175/1520-0493(2001)129<2884:AEAKFF>2.0.CO;2, Sect. 5.

    Examples
    --------
    >>> from xdan import Lorenz96
    >>> from xdan.core.estimation.priors import read_priors
    >>> model = Lorenz96(sites=4)
    >>> both = AugmentedDynamics(model, read_priors(model, {"forcing": (7.0, 1.0)}))
    >>> both.advance(torch.tensor([[6.0, 6.0, 6.0, 6.0, 6.0]]), 10).round(decimals=3)  # the steady state x = F
    tensor([[6., 6., 6., 6., 6.]])
    """

    name: ClassVar[str] = "augmented"

    def __init__(self, model: Dynamics, priors: Priors, walk: Tensor | None = None) -> None:
        means = priors.split(priors.mean)
        self.model, self.priors = model.with_parameters(**means), priors
        self.walk = torch.zeros_like(priors.mean) if walk is None else walk
        fields = list(model.space)
        if taken := sorted({field.name for field in fields} & set(priors.names)):
            raise ValueError(
                f"the parameters {taken} of {model.label!r} are called as fields of its state: expected other names"
            )
        for name, size in zip(priors.names, priors.sizes, strict=True):
            place = Components(size, f"{name}_component", f"component of the parameter {name}")
            fields.append(Field(name, place, long_name=f"parameter {name}"))
        self.space = StateSpace(fields)
        self.size = math.prod(model.shape)
        self.timestep, self.spin_up_time = model.timestep, model.spin_up_time
        self.time_unit, self.time_origin = model.time_unit, model.time_origin
        self.autonomous = model.autonomous
        self._first, self._model_step = model._first, model._model_step
        error = model.model_error
        if error is not None and error.covariance is not None:
            covariance = torch.block_diag(error.covariance, self.walk.square().diag())
            self.model_error = self.with_model_error(covariance=covariance).model_error
        elif error is not None or bool(self.walk.any()):
            deviations = torch.zeros(self.size, dtype=torch.float64) if error is None else error.std
            self.model_error = self.with_model_error(std=torch.cat([deviations, self.walk])).model_error

    @property
    def label(self) -> str:
        """Name of the model, and names of its parameters, in messages."""
        return f"{self.model.label} with {', '.join(self.priors.names)}"

    def config(self) -> dict[str, Any]:
        """Plain JSON that identifies the model."""
        described = dynamics_to_json(self.model)
        return {"model": described, "parameters": self.priors.described(), "walk": self.walk.tolist()}

    def advance(self, x: Tensor, steps: int) -> Tensor:
        """Advance states of shape (..., N + p), each with its own parameters."""
        if steps == 0:
            return x
        flat = x.reshape(-1, x.shape[-1])
        model = self.model._copied(_first=self._first, _model_step=self._model_step)
        states, parameters = flat.split([self.size, flat.shape[1] - self.size], 1)
        values = self.priors.split(parameters)
        ahead = model.advance_each(states.reshape(-1, *model.shape), steps, values)
        return torch.cat([ahead.reshape(states.shape), parameters], 1).reshape(x.shape)

    def step(self, x: Tensor, *time: float) -> Tensor:
        """Advance by one step. `time` is there if the model depends on time."""
        return self.starting_at(*time).advance(x, 1) if time else self.advance(x, 1)

    def rest(self, noise: Tensor) -> Tensor:
        """The model's start, with parameters drawn from the prior."""
        states, standard = noise.split([self.size, noise.shape[-1] - self.size], -1)
        started = self.model.rest(states.reshape(*noise.shape[:-1], *self.model.shape)).reshape(states.shape)
        return torch.cat([started, self.priors.scaled(standard)], -1)

    def climatology(
        self,
        labels: Any,
        seed: int,
        *,
        members: int = 1,
        purpose: Purpose = Purpose.INITIAL_STATE,
        like: Tensor | None = None,
    ) -> Tensor:
        """States spun up with parameters from the prior. With a given climatology: its states, and such parameters."""
        if self.model.given_climate is None:
            with self._naming_the_prior():
                return super().climatology(labels, seed, members=members, purpose=purpose, like=like)
        x = self.model.climatology(labels, seed, members=members, purpose=purpose, like=like)
        keys, count = torch.as_tensor(labels, dtype=torch.int64).cpu(), len(self.priors.mean)
        noise = normal(seed, purpose, keys, torch.ones(1, dtype=torch.int64), members * count)
        return torch.cat([x.flatten(2), self.priors.scaled(noise.reshape(len(x), members, count).to(x))], 2)

    def try_draws(self, labels: Tensor, seed: int, members: int, like: Tensor) -> None:
        """Spin up the members with extreme parameters, for at most half a second.

        Parameters
        ----------
        labels : Tensor of int64, shape (R,)
            Labels of trajectories.
        seed, members : int
        like : Tensor

        Raises
        ------
        ValueError
            If a state is not finite afterwards.
        """
        if self.model.given_climate is not None:
            return
        with self._naming_the_prior():
            states = begin_states(self, labels, seed, members, Purpose.ENSEMBLE, like)
            parameters = states[:, self.size :]
            extreme = torch.cat([parameters.argmin(0), parameters.argmax(0)]).unique()
            try_spin_up(self, states[extreme])

    @contextmanager
    def _naming_the_prior(self) -> Iterator[None]:
        """Add to the message of a failed spin-up that its parameters were drawn from the prior."""
        try:
            yield
        except SpinUpError as reason:
            priors = ", ".join(
                f"{name}: ({shown(mean)}, {shown(deviation)})"
                for name, (mean, deviation) in self.priors.described().items()
            )
            raise SpinUpError(
                f"{reason}. The states are spun up with parameters that are drawn from the prior ({priors}): where the "
                "model cannot bear them, take a narrower prior"
            ) from None

    def distances(self, sites: Tensor) -> Tensor | None:
        """Distances in the model's space. All observations are near to a parameter, and all components are far from it.

        A localised analysis therefore updates parameters by the observations of the whole space.
        """
        of_state = sites < self.size
        apart = self.model.distances(sites[of_state])
        if apart is None:
            return None
        rows = torch.full((len(sites), self.space.size), _FAR, dtype=apart.dtype, device=sites.device)
        rows[of_state, : self.size] = apart
        rows[~of_state, : self.size] = 0.0
        rows[torch.arange(len(sites)), sites] = 0.0
        return rows


class _OfState(Operator, pure=True):
    """An observation operator of the model's state, for states that are followed by parameters."""

    def __init__(self, operator: Operator, size: int, parameters: int) -> None:
        self.inner, self.state_size, self.parameters = operator, size, parameters
        self.size, self.linear, self.moves = operator.size, operator.linear, operator.moves

    def _around(self, operator: Operator) -> Operator:
        return self if operator is self.inner else _OfState(operator, self.state_size, self.parameters)

    def __call__(self, x: Tensor) -> Tensor:
        return self.inner(x[..., : self.state_size])

    def tangent(self, x: Tensor, directions: Tensor) -> Tensor:
        """Derivative of the inner operator; parameters have no effect."""
        return self.inner.tangent(x[..., : self.state_size], directions[..., : self.state_size])

    def adjoint(self, x: Tensor, v: Tensor) -> Tensor:
        """Adjoint of the inner operator, and zero for parameters."""
        return torch.nn.functional.pad(self.inner.adjoint(x[..., : self.state_size], v), (0, self.parameters))

    def as_matrix(self) -> Tensor | None:
        """Matrix of the inner operator, with columns of zeros for the parameters."""
        matrix = self.inner.as_matrix()
        return None if matrix is None else torch.nn.functional.pad(matrix, (0, self.parameters))

    def picked(self, times: int | slice | Tensor, in_time: bool) -> Operator:
        """H at some of the times."""
        return self._around(self.inner.picked(times, in_time))

    def repeat(self, count: int) -> Operator:
        """H for repeated rows."""
        return self._around(self.inner.repeat(count))

    @property
    def times(self) -> int | None:
        """Number of times of the inner operator."""
        return self.inner.times

    def kept(self, like: Tensor) -> list[Tensor]:
        """What of H differs in time."""
        return self.inner.kept(like)

    def before(self, kept: Tensor) -> Operator:
        """H of the time at which `kept` was called."""
        return self._around(self.inner.before(kept))

    def identity(self, states: Tensor) -> list[Tensor]:
        """Tensors that distinguish the inner operator from others."""
        return self.inner.identity(states[..., : self.state_size])


def observing_augmented(observing: ObservingSystem, size: int, parameters: int) -> ObservingSystem:
    """H and R for states of N components that are followed by p parameters, which are not observed.

    If the state's components are observed directly, the parameters count as observed too, with errors of 1. Their
    observations must then be NaN.

    Parameters
    ----------
    observing : ObservingSystem
    size, parameters : int
        N and p.
    """
    if observing.operator is not None:
        operator = _OfState(observing.operator, size, parameters)
        return ObservingSystem(observing.std, observing.covariance, operator, observing.error_in_time)
    if observing.covariance is not None:
        identity = torch.eye(parameters, dtype=observing.covariance.dtype)
        return ObservingSystem(covariance=torch.block_diag(observing.covariance, identity))
    std = observing.std
    assert std is not None
    if std.ndim and std.shape[-1] > 1:
        std = torch.cat([std, std.new_ones(*std.shape[:-1], parameters)], -1)
    return ObservingSystem(std, in_time=observing.error_in_time)
