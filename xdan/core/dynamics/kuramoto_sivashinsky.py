"""The Kuramoto-Sivashinsky model: waves on a ring that grow, steepen and decay, with a spectral step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import integer, real
from ..spaces import MOST_COMPONENTS, Field, Ring, StateSpace
from .base import Dynamics
from .model_time import Duration
from .registry import register_dynamics

_RESOLVED = 2.0  # products must include waves up to this wavenumber at least; waves beyond 1 decay
_LONGEST_STEP = 1.0  # with longer steps, errors of a step grow to some percent
_CONTOUR = 64  # number of points on the circle around each c h, over which its coefficients are averaged


@register_dynamics
class KuramotoSivashinsky(Dynamics, pure=True):
    """Kuramoto-Sivashinsky, du/dt = -u du/dx - d2u/dx2 - d4u/dx4 on a ring.

    Waves longer than 2 pi grow, and shorter waves are damped. The term u du/dx carries variance from long to short
    waves. The mean of u is conserved; spin-ups start with a mean of zero.

    Parameters
    ----------
    sites : int
        Number of sites, equally spaced.
    length : float
        Length of the ring. 32 pi has about 13 positive Lyapunov exponents.
    timestep : float
        Step of the exponential Runge-Kutta scheme, at most 1.
    time_unit : numpy.timedelta64 or datetime.timedelta, optional
        Length of one unit of model time, which records with dates need; None if time has no dimension.

    Raises
    ------
    TypeError
        If `sites` is not an integer, another parameter is not a number, or the time unit is not a time.
    ValueError
        If there are too few sites for the length (the spacing must be at most about 1.04) or more than ten million, or
        the length or step is out of range.

    Notes
    -----
    In Fourier space du_k/dt = c_k u_k + N_k, where c = k^2 - k^4 and N is the transform of -1/2 d(u^2)/dx. The linear
    part is integrated exactly, and N by the fourth-order scheme ETDRK4. The coefficients of the scheme are means over a
    circle around c h, because their formulas cancel near c h = 0.

    Products are de-aliased by the two-thirds rule: waves with wavenumbers beyond a third of the sites decay by the
    linear part alone, and take no part in N. On the attractor they hold only about 1e-5 of the variance. But an
    analysis puts noise into them, which without the rule would fold back onto long waves.

    Transforms are FFTs. A step by products with dense matrices (sites, sites) would take half the time for one state,
    the same time for 20 states, and 2.7 times as long for 1,000 (128 sites, float32, one core).

    References
    ----------
    Kuramoto and Tsuzuki (1976), doi:10.1143/PTP.55.356; Sivashinsky (1977), doi:10.1016/0094-5765(77)90096-0; scheme:
    Cox and Matthews (2002), Eq. 26 to 29, doi:10.1006/jcph.2002.6995; coefficients: Kassam and Trefethen (2005),
    Sec. 2, doi:10.1137/S1064827502410633.

    Examples
    --------
    >>> KuramotoSivashinsky(sites=24, length=22.0).step(torch.full((24,), 0.5))[:3]  # a steady state
    tensor([0.5000, 0.5000, 0.5000])
    """

    name: ClassVar[str] = "kuramoto-sivashinsky"
    spin_up_time = 150.0  # after about 50, noise has grown into waves

    def __init__(
        self,
        sites: int = 128,
        length: float = 32.0 * math.pi,
        timestep: float = 0.5,
        time_unit: Duration | None = None,
    ) -> None:
        self.sites = integer("sites", sites, least=1, most=MOST_COMPONENTS)
        self.length = real("length", length, above=0.0)
        self.timestep = real("timestep", timestep, above=0.0, most=_LONGEST_STEP)
        self.time_unit = time_unit
        self._waves = self.sites // 3 + 1  # number of waves that take part in products, including the mean
        least = 3 * math.ceil(_RESOLVED * self.length / (2 * math.pi))
        if self.sites < least:
            raise ValueError(
                f"sites={self.sites} on a ring of length={self.length:g}: expected at least {least}, so that the "
                "waves in which u is damped are resolved"
            )
        self.space = StateSpace(
            Field("u", Ring(self.sites, self.length, long_name="position on the ring"), conserved=True)
        )
        wavenumber = 2 * math.pi / self.length * torch.arange(self.sites // 2 + 1, dtype=torch.float64)
        self._wavenumber, self._growth = wavenumber[: self._waves], wavenumber**2 - wavenumber**4
        self._coefficients = _coefficients(self._growth[: self._waves], self.timestep)

    def rest(self, noise: Tensor) -> Tensor:
        """Noise without its mean, because the model would conserve the mean."""
        return noise - noise.mean(-1, keepdim=True)

    def tendency(self, x: Tensor) -> Tensor:
        """du/dt of states of shape (..., sites)."""
        modes = torch.fft.rfft(x)
        linear = modes * self._growth.to(dtype=x.dtype, device=x.device)
        steepening = self._steepening(modes, torch.square)(modes[..., : self._waves])
        waves = linear[..., : self._waves] + steepening
        return _on_sites(torch.cat([waves, linear[..., self._waves :]], -1), self.sites)

    def step(self, x: Tensor) -> Tensor:
        """Advance states of shape (..., sites) by one time step."""
        return self.advance(x, 1)

    def advance(self, x: Tensor, steps: int) -> Tensor:
        """Advance states of shape (..., sites). They stay in Fourier space from step to step."""
        return self._advance(x, steps, torch.square)

    def advance_along(self, x: Tensor, directions: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Advance states (B, sites), and directions (B, M, sites) by the tangent linear model, written out."""
        together = torch.cat([x[:, None], directions], 1)
        factor = torch.full((together.shape[1], 1), 2.0, dtype=x.dtype, device=x.device)
        factor[0] = 1.0
        after = self._advance(together, steps, lambda u: factor * u[:, :1] * u)  # u^2, and 2 u v for each direction v
        return after[:, 0], after[:, 1:]

    def second_order_tendency(self, covariance: Tensor) -> Tensor:
        """Covariance of -1/2 d(d^2)/dx and -1/2 d(e^2)/dx. That of d^2 and e^2 is twice the square of E[d e^T].

        Short waves decay while the term acts. Each wave is therefore multiplied by its mean over a third of a step,
        which is the weight of the last node in Simpson's rule.
        """

        def filtered(values: Tensor, factor: Tensor | float) -> Tensor:
            """Rows and columns of the waves that take part in products, multiplied by a factor for each wave."""
            for _ in range(2):
                waves: Tensor = torch.fft.rfft(values)[..., : self._waves] * factor
                values = _on_sites(waves, self.sites).mT
            return values

        decay = self._growth[: self._waves] * self.timestep / 3
        mean = torch.where(decay == 0, 1.0, decay.expm1() / torch.where(decay == 0, 1.0, decay))
        derivative = -0.5j * (self._wavenumber * mean).to(dtype=covariance.dtype, device=covariance.device)
        return filtered(2 * filtered(covariance, 1.0).square(), derivative)

    def _advance(self, x: Tensor, steps: int, square: Callable[[Tensor], Tensor]) -> Tensor:
        """Advance by ETDRK4. `square` gives u^2, or its derivative along directions."""
        modes = torch.fft.rfft(x)
        steepening = self._steepening(modes, square)
        waves, shorter = modes[..., : self._waves], modes[..., self._waves :]
        e, e2, q, f1, f2, f3 = self._coefficients.to(dtype=x.dtype, device=x.device)
        for _ in range(steps):
            now, half = steepening(waves), e2 * waves
            a = half + q * now
            at_a = steepening(a)
            at_b = steepening(half + q * at_a)
            at_c = steepening(e2 * a + q * (2 * at_b - now))
            waves = e * waves + f1 * now + f2 * (at_a + at_b) + f3 * at_c
        decay = (self._growth[self._waves :] * (steps * self.timestep)).exp().to(dtype=x.dtype, device=x.device)
        return _on_sites(torch.cat([waves, decay * shorter], -1), self.sites)

    def _steepening(self, like: Tensor, square: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """-1/2 d(u^2)/dx, for the waves that take part in products."""
        derivative = -0.5j * self._wavenumber.to(dtype=like.dtype, device=like.device)

        def steepening(waves: Tensor) -> Tensor:
            spectrum: Tensor = torch.fft.rfft(square(_on_sites(waves, self.sites)))
            return derivative * spectrum[..., : self._waves]

        return steepening


def _coefficients(growth: Tensor, timestep: float) -> Tensor:
    """E, E2, Q, f1, f2 and f3 of Kassam and Trefethen (2005), Eq. 2.5, shape (6, K): means over a circle."""
    angles = math.pi / _CONTOUR * (2 * torch.arange(_CONTOUR, dtype=torch.float64) + 1)
    z = timestep * growth[:, None] + torch.polar(torch.ones_like(angles), angles)
    e = z.exp()
    on_circle = (
        ((z / 2).exp() - 1) / z,
        (-4 - z + e * (4 - 3 * z + z**2)) / z**3,
        2 * (2 + z + e * (z - 2)) / z**3,
        (-4 - 3 * z - z**2 + e * (4 - z)) / z**3,
    )
    exact = (growth * timestep).exp(), (growth * timestep / 2).exp()
    return torch.stack([*exact, *(timestep * f.mean(1).real for f in on_circle)])


def _on_sites(waves: Tensor, sites: int) -> Tensor:
    """States at the sites from their longest waves."""
    states: Tensor = torch.fft.irfft(waves, sites)
    return states
