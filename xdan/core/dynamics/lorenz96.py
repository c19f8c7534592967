"""The Lorenz-96 model: a ring of sites with advection, damping and forcing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..checks import integer, real, real_array, shown
from ..pool import Pool
from ..spaces import MOST_COMPONENTS, Field, Ring, StateSpace
from ..user_functions import in_transform
from .base import Dynamics
from .ghost_rings import GhostRing
from .model_time import Duration, with_time_unit
from .registry import register_dynamics
from .stepping import accurate_timestep

_COLUMNS = 1024  # number of states in one pass: the buffers of a pass then stay in the second-level cache


@register_dynamics
class Lorenz96(Dynamics, pure=True):
    """Lorenz-96, dx_n/dt = (x_{n+1} - x_{n-2}) x_{n-1} - x_n + F on a ring.

    Parameters
    ----------
    sites : int
        Number of sites, at least 4, because four neighbouring sites are coupled.
    forcing : float or sequence of float, length sites
        Forcing F: one number, or one for each site. 8 gives chaos.
    timestep : float
        Runge-Kutta 4 step, at most 0.05.
    time_unit : numpy.timedelta64 or datetime.timedelta, optional
        Length of one unit of model time, which records with dates need; None if time has no dimension. With 5 days,
        errors grow as in the atmosphere.

    Raises
    ------
    TypeError
        If `sites` is not an integer, another parameter is not a number, or the time unit is not a time.
    ValueError
        If there are fewer than 4 sites or more than ten million, the forcing has another length, or the step is not in
        (0, 0.05].

    References
    ----------
    Lorenz and Emanuel (1998); Bocquet et al., Eq. 6.

    Examples
    --------
    >>> Lorenz96(sites=6).step(torch.full((6,), 8.0))  # the steady state x = F
    tensor([8., 8., 8., 8., 8., 8.])
    >>> Lorenz96(sites=4, forcing=[8, 8, 4, 4]).tendency(torch.zeros(4))
    tensor([8., 8., 4., 4.])
    """

    name: ClassVar[str] = "lorenz96"
    second_order_reach: ClassVar[int | None] = 2

    def __init__(
        self,
        sites: int = 40,
        forcing: float | Sequence[float] = 8.0,
        timestep: float = 0.05,
        time_unit: Duration | None = None,
    ) -> None:
        self.sites = integer("sites", sites, least=4, most=MOST_COMPONENTS)
        self.forcing, self.timestep = _forcing(forcing, self.sites), accurate_timestep(timestep)
        self.time_unit = time_unit
        at_sites = isinstance(self.forcing, tuple)
        self._forcing_at_sites = torch.tensor(self.forcing, dtype=torch.float64) if at_sites else None
        self._tapes: Pool[_Tape] = Pool()
        self.space = StateSpace(Field("x", Ring(self.sites)))

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        forcing = list(self.forcing) if isinstance(self.forcing, tuple) else self.forcing
        parameters = {"sites": self.sites, "forcing": forcing, "timestep": self.timestep}
        return with_time_unit(parameters, self.time_unit)

    def rest(self, noise: Tensor) -> Tensor:
        """Perturb the unstable steady state x = F."""
        return self._forcing_of(noise) + noise

    def tendency(self, x: Tensor) -> Tensor:
        """dx/dt of Eq. 6 for states of shape (..., sites)."""
        ahead, behind, two_behind = x.roll(-1, -1), x.roll(1, -1), x.roll(2, -1)
        return torch.addcmul(self._forcing_of(x) - x, ahead - two_behind, behind)

    def _forcing_of(self, x: Tensor) -> float | Tensor:
        """F as it is added to states (..., sites): a number, or a tensor, () or (sites,), like the states."""
        forcing: Any = self.forcing
        if isinstance(forcing, Tensor):
            return forcing.to(dtype=x.dtype, device=x.device)
        if not isinstance(self.forcing, tuple):
            return self.forcing
        assert self._forcing_at_sites is not None
        return self._forcing_at_sites.to(dtype=x.dtype, device=x.device)

    def advance_along(self, x: Tensor, directions: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Advance states (B, sites), and directions (B, M, sites) by the tangent linear model, written out."""
        h, forcing = self.timestep, self._forcing_of(x)
        for _ in range(steps):
            stage, along = x, directions
            total, total_along = torch.zeros_like(x), torch.zeros_like(directions)
            for weight, c in zip((1, 2, 2, 1), (h / 2, h / 2, h, None), strict=True):
                ring, ring_along = _with_neighbours(stage), _with_neighbours(along)
                behind, difference = ring[..., 1:-2], ring[..., 3:] - ring[..., :-3]
                k = torch.addcmul(forcing - stage, difference, behind)
                k_along = (ring_along[..., 3:] - ring_along[..., :-3]) * behind[:, None]
                k_along = torch.addcmul(k_along, ring_along[..., 1:-2], difference[:, None]) - along
                total, total_along = total + weight * k, torch.add(total_along, k_along, alpha=weight)
                if c is not None:
                    stage, along = torch.add(x, k, alpha=c), torch.add(directions, k_along, alpha=c)
            x, directions = torch.add(x, total, alpha=h / 6), torch.add(directions, total_along, alpha=h / 6)
        return x, directions

    def second_order_tendency(self, covariance: Tensor) -> Tensor:
        """Covariance of (d_{n+1} - d_{n-2}) d_{n-1} and the same term of e, by Isserlis' theorem."""
        sites = covariance.shape[-1]
        ring = _with_neighbours(_with_neighbours(covariance).mT).mT

        def at(row: int, column: int) -> Tensor:
            return ring[..., 2 + row : 2 + row + sites, 2 + column : 2 + column + sites]

        differences = at(1, 1) - at(1, -2) - at(-2, 1) + at(-2, -2)
        crossed = (at(1, -1) - at(-2, -1)) * (at(-1, 1) - at(-1, -2))
        return torch.addcmul(crossed, differences, at(-1, -1))

    def advance(self, x: Tensor, steps: int) -> Tensor:
        """Advance states of shape (..., sites).

        Without a gradient: in place, in cached buffers. With a gradient: by `_Step`. In a transform of torch.func: by
        plain operations. Second derivatives by repeated `torch.autograd.grad` need `step`.
        """
        forcing = self._forcing_of(x)
        if steps == 0 or in_transform(x) or (isinstance(forcing, Tensor) and in_transform(forcing)):
            return super().advance(x, steps)
        if _wants_gradient(x, forcing):
            return self._advance_with_gradient(x.reshape(-1, self.sites).T, _as_column(forcing), steps).T.reshape(
                x.shape
            )
        flat = x.detach().reshape(-1, self.sites)
        parts = [self._advance_columns(part.T, _as_column(forcing), steps).T for part in flat.split(_COLUMNS)]
        return torch.cat(parts).reshape(x.shape)

    def advance_each(self, x: Tensor, steps: int, values: Mapping[str, Tensor]) -> Tensor:
        """Advance states (B, sites), each with its own forcing, (B,) or (B, sites)."""
        if steps == 0 or set(values) != {"forcing"} or any(in_transform(one) for one in (x, values["forcing"])):
            return super().advance_each(x, steps, values)
        forcing = values["forcing"].to(dtype=x.dtype, device=x.device)
        rows = forcing[None] if forcing.ndim == 1 else forcing.T
        if _wants_gradient(x, forcing):
            return self._advance_with_gradient(x.T, rows, steps).T
        parts = zip(x.detach().split(_COLUMNS), rows.split(_COLUMNS, 1), strict=True)
        return torch.cat([self._advance_columns(part.T, some, steps).T for part, some in parts])

    def _advance_with_gradient(self, columns: Tensor, forcing: float | Tensor, steps: int) -> Tensor:
        """RK4 for states as columns (N, B), with gradients with respect to the states and the forcing."""
        for _ in range(steps):
            columns = _Step.apply(columns, forcing, self.timestep, self._tapes)  # type: ignore[no-untyped-call]
        return columns

    def _advance_columns(self, x: Tensor, forcing: float | Tensor, steps: int) -> Tensor:
        """RK4 for states as columns, of shape (N, B)."""
        tape = _Tape(x, keep=False)
        state = tape.stages[0].sites
        state.copy_(x)
        for _ in range(steps):
            tape.step(forcing, self.timestep, out=state)
        return state


def _forcing(forcing: Any, sites: int) -> float | tuple[float, ...]:
    if isinstance(forcing, Real):
        return real("forcing", forcing)
    values = real_array("forcing", forcing)
    if values.ndim == 0:
        return float(values)
    if values.shape != (sites,):
        raise ValueError(
            f"forcing={shown(forcing)} has shape {values.shape}: expected a number, or one for each of the {sites} "
            "sites"
        )
    return tuple(values.tolist())


def _wants_gradient(x: Tensor, forcing: float | Tensor) -> bool:
    """Whether a derivative with respect to the states or the forcing is recorded."""
    wanted = x.requires_grad or (isinstance(forcing, Tensor) and forcing.requires_grad)
    return wanted and torch.is_grad_enabled()


def _as_column(forcing: float | Tensor) -> float | Tensor:
    """F as it is added to states as columns."""
    return forcing[:, None] if isinstance(forcing, Tensor) and forcing.ndim else forcing


def _with_neighbours(x: Tensor) -> Tensor:
    """States (..., sites) with the last two sites before the first, and the first after the last, (..., sites + 3)."""
    return torch.cat([x[..., -2:], x, x[..., :1]], -1)


class _Tape:
    """The stages of a step, and the differences x_{n+1} - x_{n-2} at each stage, in buffers that are used again.

    The stages are X2 = x + h/2 k1, X3 = x + h/2 k2 and X4 = x + h k3; k4 is the tendency at X4. The new state is
    (X2 + 2 X3 + X4 - x) / 3 + h/6 k4. No k is formed: a stage is x + c F - c X + c (advection of X).
    """

    def __init__(self, like: Tensor, keep: bool = True) -> None:
        self.stages = [GhostRing(like, 2, 1) for _ in range(4)]
        # If no gradient is wanted, one buffer serves all stages and stays in the cache.
        self.differences = [GhostRing(like, 0, 1) for _ in range(4)] if keep else [GhostRing(like, 0, 1)] * 4
        self.known, self.partial = torch.empty_like(self.stages[0].sites), torch.empty_like(self.stages[0].sites)
        self.gradient = GhostRing(like, 1, 2) if keep else None

    def step(self, forcing: float | Tensor, h: float, out: Tensor) -> None:
        """Compute the new state from the first stage's sites. `out` gets it, and may be these sites."""
        known, partial = self.known, self.partial
        state, second, third, fourth = (ring.sites for ring in self.stages)
        for stage, c in enumerate((h / 2, h / 2, h)):
            ring, difference = self.stages[stage].close(), self.differences[stage].sites
            if stage != 1:  # the second stage has the c of the first
                torch.add(state, c * forcing, out=known)
            torch.sub(ring.at[1], ring.at[-2], out=difference)
            torch.add(known, ring.sites, alpha=-c, out=partial)
            torch.addcmul(partial, difference, ring.at[-1], value=c, out=self.stages[stage + 1].sites)
        ring, difference = self.stages[3].close(), self.differences[3].sites
        torch.sub(ring.at[1], ring.at[-2], out=difference)
        torch.sub(second, state, out=partial)
        partial.add_(third, alpha=2).add_(fourth, alpha=1 - h / 2).mul_(1 / 3).add_(h / 6 * forcing)
        torch.addcmul(partial, difference, ring.at[-1], value=h / 6, out=out)

    def adjoint(self, g: Tensor, h: float, by_forcing: Tensor | None = None) -> Tensor:
        """Gradient with respect to the state before the step, from that of the state after it: four stages backwards.

        The gradient with respect to the forcing, at every site of every state, is added to `by_forcing`.
        """
        assert self.gradient is not None
        v, share, total = self.gradient, self.known, g.clone()
        torch.mul(g, h / 6, out=v.sites)
        for stage, (weight, c) in zip(
            (3, 2, 1, 0), ((h / 3, h), (h / 3, h / 2), (h / 6, h / 2), (0.0, 0.0)), strict=True
        ):
            v.close()
            if by_forcing is not None:
                by_forcing.add_(v.sites)
            x, difference = self.stages[stage].at, self.differences[stage].close().at[1]
            # Site m occurs in four equations, as n + 1, n - 2, n - 1 and n.
            torch.mul(v.at[-1], x[-2], out=share).addcmul_(v.at[2], x[1], value=-1)
            share.addcmul_(v.at[1], difference).sub_(v.sites)
            total.add_(share)
            if stage:
                torch.mul(share, c, out=v.sites).add_(g, alpha=weight)
        return total


class _Step(torch.autograd.Function):
    """One RK4 step for states as columns, shape (N, B), with a written-out adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forcing: float | Tensor, h: float, tapes: Pool[_Tape]) -> Tensor:
        """Advance the columns."""
        lease = tapes.lease((x.shape, x.dtype), lambda: _Tape(x), keep=x.device.type == "cpu")
        lease.value.stages[0].sites.copy_(x)
        out = torch.empty_like(lease.value.known)
        lease.value.step(forcing, h, out)
        ctx.lease, ctx.h = lease, h
        ctx.forcing_shape = forcing.shape if isinstance(forcing, Tensor) else None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Run the four stages backwards."""
        by_forcing = torch.zeros_like(g) if ctx.needs_input_grad[1] else None
        by_state = ctx.lease.value.adjoint(g, ctx.h, by_forcing)
        return by_state, None if by_forcing is None else by_forcing.sum_to_size(ctx.forcing_shape), None, None
