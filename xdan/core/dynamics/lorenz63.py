"""The Lorenz-63 model: three components of convection between two plates."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import real
from ..spaces import Components, Field, StateSpace
from .base import Dynamics
from .model_time import Duration, with_time_unit
from .registry import register_dynamics
from .stepping import accurate_timestep, runge_kutta_4


@register_dynamics
class Lorenz63(Dynamics, pure=True):
    """Lorenz-63, dx/dt = sigma (y - x), dy/dt = x (rho - z) - y, dz/dt = x y - beta z.

    Parameters
    ----------
    sigma, rho, beta : float
        Prandtl number, reduced Rayleigh number, and aspect of the cells. 10, 28 and 8/3 give chaos.
    timestep : float
        Runge-Kutta 4 step, at most 0.05.
    time_unit : numpy.timedelta64 or datetime.timedelta, optional
        Length of one unit of model time, which records with dates need; None if time has no dimension.

    Raises
    ------
    TypeError
        If a parameter is not a number, or the time unit is not a time.
    ValueError
        If sigma or beta is not positive, a number is not finite, or the step is not in (0, 0.05].

    References
    ----------
    Lorenz (1963), Deterministic nonperiodic flow, Eq. 25 to 27, doi:10.1175/1520-0469(1963)020<0130:DNF>2.0.CO;2.

    Examples
    --------
    >>> Lorenz63(rho=0.5).step(torch.zeros(3))  # the steady state without convection
    tensor([0., 0., 0.])
    """

    name: ClassVar[str] = "lorenz63"

    def __init__(
        self,
        sigma: float = 10.0,
        rho: float = 28.0,
        beta: float = 8.0 / 3.0,
        timestep: float = 0.01,
        time_unit: Duration | None = None,
    ) -> None:
        self.sigma, self.beta = real("sigma", sigma, above=0.0), real("beta", beta, above=0.0)
        self.rho, self.timestep = real("rho", rho), accurate_timestep(timestep)
        self.time_unit = time_unit
        self.space = StateSpace(Field("x", Components(("x", "y", "z"))))

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        parameters = {"sigma": self.sigma, "rho": self.rho, "beta": self.beta, "timestep": self.timestep}
        return with_time_unit(parameters, self.time_unit)

    def tendency(self, x: Tensor) -> Tensor:
        """dx/dt for states of shape (..., 3)."""
        a, b, c = x.unbind(-1)
        return torch.stack([self.sigma * (b - a), a * (self.rho - c) - b, a * b - self.beta * c], -1)

    def advance_along(self, x: Tensor, directions: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Advance states (B, 3), and directions (B, M, 3) by the tangent linear model, written out."""
        together = torch.cat([x[:, None], directions], 1)
        for _ in range(steps):
            together = runge_kutta_4(self._tendency_along, together, self.timestep, pure=True)
        return together[:, 0], together[:, 1:]

    def _tendency_along(self, together: Tensor) -> Tensor:
        """Tendency of states (the first of each row) and of directions at these states (the others)."""
        state = together[:, :1]
        a, b, c = state.unbind(-1)
        u, v, w = together[:, 1:].unbind(-1)
        along = torch.stack([self.sigma * (v - u), u * (self.rho - c) - a * w - v, a * v + b * u - self.beta * w], -1)
        return torch.cat([self.tendency(state), along], 1)
