"""The two-scale Lorenz-96 model: slow sites on a ring, each coupled to fast sites on a finer ring."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..checks import integer, real
from ..spaces import MOST_COMPONENTS, Field, Ring, StateSpace
from ..user_functions import in_transform
from .base import Dynamics
from .ghost_rings import GhostRing
from .model_time import Duration
from .registry import register_dynamics
from .stepping import runge_kutta_4

_LARGEST_STEP = 0.01  # with longer steps, Runge-Kutta 4 does not follow the fast sites
_REAL = ("forcing", "coupling", "amplitude_ratio", "time_ratio")  # parameters that may be tensors with a gradient
_COLUMNS = 128  # number of states in one pass: the buffers of a pass then stay in the second-level cache


@register_dynamics
class TwoScaleLorenz96(Dynamics, pure=True):
    """Two-scale Lorenz-96: K slow sites U on a ring, and J fast sites V in the sector of each.

    dU_k/dt = (U_{k+1} - U_{k-2}) U_{k-1} - U_k + F - (h c / b) sum_j V_{j,k}

    dV_i/dt = c b (V_{i-1} - V_{i+2}) V_{i+1} - c V_i + (h c / b) U_k

    All V form one ring of K J sites, i = J k + j. The first site of a sector follows the last of the previous sector.

    Parameters
    ----------
    sites : int
        Number K of slow sites, at least 4.
    fast : int
        Number J of fast sites for each slow site.
    forcing, coupling, amplitude_ratio, time_ratio : float
        F, h, b and c: V is about b times smaller than U, and c times faster.
    timestep : float
        Runge-Kutta 4 step, at most 0.01.
    time_unit : numpy.timedelta64 or datetime.timedelta, optional
        Length of one unit of model time, which records with dates need; None if time has no dimension.

    Raises
    ------
    TypeError
        If a number of sites is not an integer, another parameter is not a number, or the time unit is not a time.
    ValueError
        If there are fewer than 4 slow or fast sites, more than ten million, or another parameter is out of range.

    Notes
    -----
    The fields are `U` on the dim `x` and `V` on the dim `x_fast`, both in units of the distance between slow sites.
    U_k lies in the middle of its sector.

    References
    ----------
    Lorenz (1996), Predictability: a problem partly solved, Eq. 2 and 3; Wilks (2005), doi:10.1256/qj.04.03.

    Examples
    --------
    >>> model = TwoScaleLorenz96(sites=4, fast=2, coupling=0.0)
    >>> model.step(torch.tensor([20.0] * 4 + [0.0] * 8))[:5]  # the steady state U = F, V = 0 without coupling
    tensor([20., 20., 20., 20.,  0.])
    """

    name: ClassVar[str] = "two-scale-lorenz96"
    spin_up_time = 10.0

    def __init__(
        self,
        sites: int = 8,
        fast: int = 32,
        forcing: float = 20.0,
        coupling: float = 1.0,
        amplitude_ratio: float = 10.0,
        time_ratio: float = 10.0,
        timestep: float = 0.005,
        time_unit: Duration | None = None,
    ) -> None:
        self.sites = integer("sites", sites, least=4, most=MOST_COMPONENTS)
        self.fast = integer("fast", fast, least=1, most=MOST_COMPONENTS // self.sites)
        self.forcing, self.coupling = real("forcing", forcing), real("coupling", coupling)
        self.amplitude_ratio = real("amplitude_ratio", amplitude_ratio, above=0.0)
        self.time_ratio = real("time_ratio", time_ratio, above=0.0)
        self.timestep = real("timestep", timestep, above=0.0, most=_LARGEST_STEP)
        self.time_unit = time_unit
        count = self.sites * self.fast
        places = [(i + 0.5) / self.fast - 0.5 for i in range(count)]
        slow = Ring(self.sites, float(self.sites), long_name="slow site on the ring")
        finer = Ring(places, float(self.sites), "x_fast", long_name="place between slow sites")
        self.space = StateSpace([Field("U", slow, long_name="slow"), Field("V", finer, long_name="fast")])

    @property
    def _exchange(self) -> float:
        """The factor h c / b."""
        return self.coupling * self.time_ratio / self.amplitude_ratio

    def rest(self, noise: Tensor) -> Tensor:
        """Perturb U = F. V starts smaller, by `amplitude_ratio`."""
        u, v = noise[..., : self.sites], noise[..., self.sites :]
        return torch.cat([self.forcing + u, v / self.amplitude_ratio], -1)

    def tendency(self, x: Tensor) -> Tensor:
        """dx/dt for states of shape (..., K + K J), U before V."""
        change = self._advection(x, x) + self._linear(x)
        return torch.cat([change[..., : self.sites] + self.forcing, change[..., self.sites :]], -1)

    def advance_along(self, x: Tensor, directions: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Advance states (B, N), and directions (B, M, N) by the tangent linear model, written out."""

        def tendency(together: Tensor) -> Tensor:
            state, along = together[:, :1], together[:, 1:]
            change = self._advection(state, along) + self._advection(along, state) + self._linear(along)
            return torch.cat([self.tendency(state), change], 1)

        together = torch.cat([x[:, None], directions], 1)
        for _ in range(steps):
            together = runge_kutta_4(tendency, together, self.timestep, pure=True)
        return together[:, 0], together[:, 1:]

    def advance(self, x: Tensor, steps: int) -> Tensor:
        """Advance states of shape (..., K + K J). Without a derivative: in place, in buffers."""
        tensors = any(isinstance(getattr(self, name), Tensor) for name in _REAL)
        if steps == 0 or tensors or in_transform(x) or (torch.is_grad_enabled() and x.requires_grad):
            return super().advance(x, steps)
        flat = x.detach().reshape(-1, x.shape[-1])
        return torch.cat([_Columns(self, part.T).advance(steps).T for part in flat.split(_COLUMNS)]).reshape(x.shape)

    def _advection(self, x: Tensor, y: Tensor) -> Tensor:
        """(y_{k+1} - y_{k-2}) x_{k-1} for U and c b (y_{i-1} - y_{i+2}) x_{i+1} for V. It is linear in x and in y."""
        (u, v), (p, q) = (z.tensor_split([self.sites], -1) for z in (x, y))
        slow = (p.roll(-1, -1) - p.roll(2, -1)) * u.roll(1, -1)
        fast = (q.roll(1, -1) - q.roll(-2, -1)) * v.roll(-1, -1)
        return torch.cat([slow, self.time_ratio * self.amplitude_ratio * fast], -1)

    def _linear(self, x: Tensor) -> Tensor:
        """Damping, and the exchange between U and V."""
        u, v = x.tensor_split([self.sites], -1)
        pull = v.unflatten(-1, (self.sites, self.fast)).sum(-1)
        push = u.repeat_interleave(self.fast, -1)
        return torch.cat([-u - self._exchange * pull, self._exchange * push - self.time_ratio * v], -1)


class _Columns:
    """States as columns (N, B), stepped in place.

    The stages are X2 = x + h/2 k1, X3 = x + h/2 k2 and X4 = x + h k3; k4 is the tendency at X4. The new state is
    (X2 + 2 X3 + X4 - x) / 3 + h/6 k4. No k is formed.
    """

    def __init__(self, model: TwoScaleLorenz96, x: Tensor) -> None:
        self.model, k = model, model.sites
        self.slow, self.fast = (part.clone(memory_format=torch.contiguous_format) for part in x.tensor_split([k]))
        self.stages = GhostRing(self.slow, 2, 1), GhostRing(self.fast, 1, 2)
        self.sums = torch.empty_like(self.slow), torch.empty_like(self.fast)
        self.differences = torch.empty_like(self.slow), torch.empty_like(self.fast)
        self.partial = torch.empty_like(self.fast)

    def advance(self, steps: int) -> Tensor:
        """Take `steps` steps, and return the states after them, U before V."""
        h = self.model.timestep
        u, v = (ring.sites for ring in self.stages)
        for _ in range(steps):
            u.copy_(self.slow)
            v.copy_(self.fast)
            for state, total in zip((self.slow, self.fast), self.sums, strict=True):
                torch.neg(state, out=total)
            for weight, reach in ((1, h / 2), (2, h / 2), (1, h)):
                self._stage(self.slow, self.fast, reach)
                self.sums[0].add_(u, alpha=weight)
                self.sums[1].add_(v, alpha=weight)
            for total in self.sums:
                total.div_(3)
            self._stage(*self.sums, h / 6)
            self.slow.copy_(u)
            self.fast.copy_(v)
        return torch.cat([self.slow, self.fast])

    def _stage(self, slow: Tensor, fast: Tensor, reach: float) -> None:
        """Add `reach` times the tendency at the stages to the states, and write the result into the stages."""
        model, (u_ring, v_ring) = self.model, self.stages
        (du, dv), shape = self.differences, (model.sites, model.fast, -1)
        u, v = u_ring.close().at, v_ring.close().at
        exchange, c = model._exchange * reach, model.time_ratio * reach
        torch.sub(u[1], u[-2], out=du).mul_(u[-1]).sub_(u[0]).add_(model.forcing)
        torch.sub(v[-1], v[2], out=dv)
        du.mul_(reach).sub_(v[0].view(shape).sum(1), alpha=exchange).add_(slow)
        torch.add(fast.view(shape), u[0][:, None], alpha=exchange, out=self.partial.view(shape))
        self.partial.addcmul_(dv, v[1], value=model.amplitude_ratio * c)
        torch.sub(self.partial, v[0], alpha=c, out=v[0])
        u[0].copy_(du)
