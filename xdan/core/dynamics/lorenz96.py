"""The Lorenz-96 model: a ring of sites with advection, damping and forcing."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .base import Coordinate, Dynamics, register_dynamics, runge_kutta_4

_COLUMNS = 1024  # states per pass: the buffers of one pass stay in the second-level cache


@register_dynamics
class Lorenz96(Dynamics):
    """Lorenz-96, dx_n/dt = (x_{n+1} - x_{n-2}) x_{n-1} - x_n + F on a ring.

    Parameters
    ----------
    sites : int
        Number of sites, at least 4.
    forcing : float
        F; 8 is chaotic.
    timestep : float
        Runge-Kutta 4 step, 0.05 or less.

    Raises
    ------
    ValueError
        If there are fewer than 4 sites, or the step is not in (0, 0.05].

    References
    ----------
    Lorenz and Emanuel (1998); Bocquet et al., Eq. 6.

    Examples
    --------
    >>> Lorenz96(sites=6).step(torch.full((6,), 8.0))  # the steady state x = F
    tensor([8., 8., 8., 8., 8., 8.])
    """

    name: ClassVar[str] = "lorenz96"
    dims = ("x",)

    def __init__(self, sites: int = 40, forcing: float = 8.0, timestep: float = 0.05) -> None:
        if sites < 4:
            raise ValueError(f"sites={sites}: Lorenz-96 couples four neighbours, so expected at least 4")
        if not 0.0 < timestep <= 0.05:
            raise ValueError(f"timestep={timestep}: expected a step in (0, 0.05], beyond it RK4 is inaccurate")
        self.sites, self.forcing, self.timestep = sites, float(forcing), float(timestep)
        axis = {"axis": "X", "long_name": "site on the ring", "units": "1"}
        self.coordinates = {"x": Coordinate(tuple(range(sites)), axis)}

    def parameters(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        return {"sites": self.sites, "forcing": self.forcing, "timestep": self.timestep}

    def rest(self, noise: Tensor) -> Tensor:
        """Perturb the unstable steady state x = F."""
        return self.forcing + noise

    def tendency(self, x: Tensor) -> Tensor:
        """dx/dt of Eq. 6 for states of shape (..., sites)."""
        ahead, behind, two_behind = x.roll(-1, -1), x.roll(1, -1), x.roll(2, -1)
        return torch.addcmul(self.forcing - x, ahead - two_behind, behind)

    def step(self, x: Tensor) -> Tensor:
        """Advance states of shape (..., sites) by one `timestep`."""
        return runge_kutta_4(self.tendency, x, self.timestep)

    def advance(self, x: Tensor, steps: int) -> Tensor:
        """Advance states of shape (..., sites).

        In place in cached buffers without a gradient, by `_Step` with one, by plain operations inside a torch.func
        transform. Second derivatives by repeated `torch.autograd.grad` need `step`.
        """
        if steps == 0 or torch._C._functorch.is_functorch_wrapped_tensor(x):
            return super().advance(x, steps)
        if torch.is_grad_enabled() and x.requires_grad:
            columns = x.reshape(-1, self.sites).T
            for _ in range(steps):
                columns = _Step.apply(columns, self.forcing, self.timestep)  # type: ignore[no-untyped-call]
            return columns.T.reshape(x.shape)
        flat = x.detach().reshape(-1, self.sites)
        parts = [self._advance_columns(part.T, steps).T for part in flat.split(_COLUMNS)]
        return torch.cat(parts).reshape(x.shape)

    def _advance_columns(self, x: Tensor, steps: int) -> Tensor:
        """RK4 on states as columns, shape (B columns of N rows), the rolls as offsets into padded buffers.

        With the stages X2 = x + h/2 k1, X3 = x + h/2 k2, X4 = x + h k3 and k4 the tendency at X4, the new state is
        (X2 + 2 X3 + X4 - x) / 3 + h/6 k4: no k is formed, and a stage is x + c F - c X + c (advection of X).
        """
        n, h, forcing = self.sites, self.timestep, self.forcing
        rows = [_Padded(x, n) for _ in range(4)]
        state, second, third, fourth = (row.sites for row in rows)
        difference, known, partial = (x.new_empty(n, x.shape[1]) for _ in range(3))
        state.copy_(x)
        for _ in range(steps):
            for stage, (c, row) in enumerate(zip((h / 2, h / 2, h), rows[:3], strict=True)):
                if stage != 1:  # the second stage has the first one's c
                    torch.add(state, c * forcing, out=known)
                row.close()
                torch.sub(row.ahead, row.two_behind, out=difference)
                torch.add(known, row.sites, alpha=-c, out=partial)
                torch.addcmul(partial, difference, row.behind, value=c, out=rows[stage + 1].sites)
            row = rows[3].close()
            torch.sub(row.ahead, row.two_behind, out=difference)
            torch.sub(second, state, out=partial)
            partial.add_(third, alpha=2).add_(fourth, alpha=1 - h / 2).mul_(1 / 3).add_(h / 6 * forcing)
            torch.addcmul(partial, difference, row.behind, value=h / 6, out=state)
        return state


class _Padded:
    """States as columns with two ghost rows before the first site and one after the last; neighbours as views."""

    __slots__ = ("_ghosts", "ahead", "behind", "sites", "two_behind")

    def __init__(self, like: Tensor, n: int) -> None:
        whole = like.new_empty(n + 3, like.shape[1])
        self.sites, self.ahead, self.behind, self.two_behind = whole[2:-1], whole[3:], whole[1 : n + 1], whole[:n]
        self._ghosts = [(whole[:2], whole[n : n + 2]), (whole[n + 2], whole[2])]

    def close(self) -> _Padded:
        """Fill the ghosts."""
        for ghost, site in self._ghosts:
            ghost.copy_(site)
        return self


class _Step(torch.autograd.Function):
    """One RK4 step on states as columns, shape (N, B), its adjoint written out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forcing: float, h: float) -> Tensor:
        """Advance the columns."""
        k1, *s1 = _tendency_columns(x, forcing)
        k2, *s2 = _tendency_columns(torch.add(x, k1, alpha=h / 2), forcing)
        k3, *s3 = _tendency_columns(torch.add(x, k2, alpha=h / 2), forcing)
        k4, *s4 = _tendency_columns(torch.add(x, k3, alpha=h), forcing)
        ctx.save_for_backward(*s1, *s2, *s3, *s4)
        ctx.h = h
        return torch.add(x, k2.add_(k3).mul_(2).add_(k1).add_(k4), alpha=h / 6)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        """Run the four stages backwards."""
        h, saved = ctx.h, ctx.saved_tensors
        a4 = _tendency_adjoint(g * (h / 6), *saved[6:8])
        a3 = _tendency_adjoint(torch.add(g * (h / 3), a4, alpha=h), *saved[4:6])
        a2 = _tendency_adjoint(torch.add(g * (h / 3), a3, alpha=h / 2), *saved[2:4])
        a1 = _tendency_adjoint(torch.add(g * (h / 6), a2, alpha=h / 2), *saved[0:2])
        return a1.add_(a2).add_(a3).add_(a4).add_(g), None, None


def _tendency_columns(x: Tensor, forcing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tendency, and the factors x_{n+1} - x_{n-2} and x_{n-1} that its adjoint needs."""
    n = x.shape[0]
    ring = torch.cat([x[-2:], x, x[:1]])
    difference, behind = ring[3:] - ring[:n], ring[1 : n + 1]
    return torch.addcmul(forcing - x, difference, behind), difference, behind


def _tendency_adjoint(g: Tensor, difference: Tensor, behind: Tensor) -> Tensor:
    """Transpose of the tendency's Jacobian: site m is the n + 1, n - 2, n - 1 and n of four equations."""
    n = g.shape[0]
    p, q = g * behind, g * difference
    ring = torch.cat([p[-1:], p, p[:2]])
    out = (ring[:n] - ring[3:]).sub_(g)
    out[:-1] += q[1:]
    out[-1] += q[0]
    return out
