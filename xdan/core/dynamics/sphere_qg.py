"""Quasi-geostrophic flow of one layer on the sphere, with jets and mountains; spectral, and in physical units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ..checks import integer, real
from ..spaces import Field, FixedInput, Sphere, StateSpace
from .base import Dynamics
from .registry import register_dynamics
from .spherical_harmonics import SphericalHarmonics, Workspace, moved, multiplier
from .stepping import Tendency, runge_kutta_4

RADIUS = 6.371e6  # radius of the Earth, m
DAY = 86_400.0  # s
ROTATION = 7.2921e-5 * DAY  # rotation of the Earth, radians a day
SCALE = RADIUS**2 / DAY  # unit of psi: inside the model, length 1 is the Earth's radius and time 1 is a day
SCALE_HEIGHT = 10_000.0  # H, m
MOUNTAINS = ((40.0, 90.0), (45.0, 255.0))  # latitude and longitude of the tops, degrees
EXTENT = 10.0  # distance from the top at which a mountain's height has fallen to exp(-1/2), degrees of arc
_GRIDS = {21: (32, 64), 42: (64, 128)}
_LONGEST_STEP = 1.0 / 24  # days; with longer steps, fast winds would carry the shortest waves too far
_NOISE_SPEED = 5.0  # root mean square wind of the noise from which spin-ups begin, m s-1
_NOISE_DEGREE = 12.0  # the power of this noise falls beyond this degree
_FINGERPRINT_DECIMALS = 6  # sums of many products differ between machines
_COLUMNS = 32  # number of fields in one pass on a CPU: the arrays of a pass then stay in the caches


@register_dynamics
class SphereQG(Dynamics, pure=True):
    """Equivalent-barotropic quasi-geostrophic flow on the sphere, forced towards a jet in each hemisphere.

    dq/dt = -J(psi, q) + relaxation of the zonal wind - drag - diffusion,

    q = laplacian(psi) - psi / L^2 + f (1 + h / H)

    Parameters
    ----------
    truncation : {21, 42}
        T, the largest degree of the spherical harmonics. The grid is Gaussian, with 32 x 64 or 64 x 128 points.
    jet_speed : float
        Zonal wind in the middle of the jets to which the zonal mean is relaxed, m s-1; at least 0.
    jet_latitude, jet_width : float
        Latitude of a jet's middle, and distance from it at which the wind has fallen to exp(-1/2), degrees.
    relaxation : float, optional
        Time in which the zonal mean wind relaxes to the jets, days; None for no relaxation.
    drag : float, optional
        Time in which the drag slows the wind, days; None for no drag.
    diffusion : float, optional
        Time in which harmonics of degree T decay, days; None for no diffusion.
    deformation_radius : float, optional
        Deformation radius L, m. None for an infinite radius, with which the flow is barotropic.
    mountain_height : float
        Height of two mountains, m; 0 for none.
    timestep : float
        Runge-Kutta 4 step, days, at most 1/24. The default is 1,800 s.

    Raises
    ------
    TypeError
        If the truncation is not an integer, or another parameter is not a number.
    ValueError
        If a parameter is out of range, or a time is shorter than the step.

    Notes
    -----
    The state is the stream function psi in m2 s-1. Model time is in days, so records may have dates. Networks read
    fixed inputs: the sine of latitude, and the height of the mountains relative to their tops.

    In each harmonic of degree n, the drag acts on the relative vorticity alone; so does the relaxation, for m = 0. The
    diffusion damps q by (n (n + 1) / (T (T + 1)))^4 over its time. H is 10 km. The mountains are bells of 10 degrees,
    with their tops at 40 N, 90 E and 45 N, 255 E.

    A step begins with the harmonics of degree 1 to T of the state. The next step leaves out whatever an analysis adds
    beyond these harmonics. It also leaves out the mean of psi, which has no physical meaning. Products are formed on
    the grid, which is fine enough that their harmonics up to T are exact. Without forces, energy and squared q are
    therefore conserved, except for the errors of the Runge-Kutta steps.

    Transforms are products with dense matrices, for many states at once. States stay harmonics from step to step. On a
    circle of 64 points, a fast Fourier transform takes about as long as its matrix, and needs the axes in another order
    than the Legendre products. On 128 points it would take less time.

    With the default parameters, errors grow by 0.14 a day, and by 0.37 with T42. Relaxation is fast, half a day: with a
    drag of 3 days, slower relaxation gives no chaos. `docs/numbers.md` has the climate, its exponents, and the results
    of other parameters.

    References
    ----------
    Equation, drag, diffusion and mountains: Marshall and Molteni (1993), Sec. 2, for one of their levels,
    doi:10.1175/1520-0469(1993)050<1792:TADUOP>2.0.CO;2.

    Examples
    --------
    >>> calm = SphereQG(relaxation=None, mountain_height=0.0)
    >>> float(calm.step(torch.zeros(32, 64)).abs().max())  # air at rest stays at rest
    0.0
    """

    name: ClassVar[str] = "sphere-qg"
    _flows_there: Mapping[torch.dtype, _Flow] = {}  # flows on the device to which `on` moved the model
    spin_up_time = 40.0  # waves reach their full strength after about 20; mountains change the flow until 30

    def __init__(
        self,
        truncation: int = 21,
        jet_speed: float = 110.0,
        jet_latitude: float = 40.0,
        jet_width: float = 5.0,
        relaxation: float | None = 0.5,
        drag: float | None = 3.0,
        diffusion: float | None = 0.1,
        deformation_radius: float | None = 3.0e6,
        mountain_height: float = 2000.0,
        timestep: float = 1.0 / 48,
    ) -> None:
        self.truncation = integer("truncation", truncation)
        if self.truncation not in _GRIDS:
            raise ValueError(f"truncation={self.truncation}: expected one of {list(_GRIDS)}")
        self.jet_speed = real("jet_speed", jet_speed, least=0.0)
        self.jet_latitude = real("jet_latitude", jet_latitude, above=0.0, below=90.0)
        self.jet_width = real("jet_width", jet_width, above=0.0)
        self.timestep = real("timestep", timestep, above=0.0, most=_LONGEST_STEP)
        self.relaxation, self.drag, self.diffusion = (
            None if value is None else real(label, value, least=self.timestep)
            for label, value in (("relaxation", relaxation), ("drag", drag), ("diffusion", diffusion))
        )
        self.deformation_radius = (
            None if deformation_radius is None else real("deformation_radius", deformation_radius, above=0.0)
        )
        self.mountain_height = real("mountain_height", mountain_height, least=0.0, most=SCALE_HEIGHT)
        self.time_unit = np.timedelta64(1, "D")
        sphere = Sphere(*_GRIDS[self.truncation], grid="gaussian")
        sine, mountains = sphere.positions()[:, 0].deg2rad().sin().reshape(sphere.shape), _mountains(sphere)
        self.space = StateSpace(
            Field("psi", sphere, "m2 s-1", "stream function", "atmosphere_horizontal_streamfunction", conserved=True),
            [FixedInput("sine of latitude", sphere, sine), FixedInput("orography", sphere, mountains)],
        )
        flow = self._flow(sine)
        relaxing = torch.where(flow.harmonics.order == 0, _rate(self.relaxation) * flow.vorticity_share, 0.0)
        short = flow.laplacian / flow.laplacian[:, -1:]
        self._damping = relaxing + _rate(self.drag) * flow.vorticity_share + _rate(self.diffusion) * short**4
        self._force = relaxing * self._jets(flow)
        planetary = 2 * ROTATION * sine * (1.0 + self.mountain_height / SCALE_HEIGHT * mountains)
        resolved = flow.harmonics.to_fields(flow.harmonics.to_coefficients(planetary[None]))
        self._planetary = flow.harmonics.to_halves(resolved)

    def rest(self, noise: Tensor) -> Tensor:
        """Large-scale noise, added to the zonal flow in which relaxation and drag are in balance."""
        flow = self._flow(noise)
        eddies = flow.harmonics.to_coefficients(noise.reshape(-1, *self.shape))
        eddies = eddies * (-0.5 * (flow.harmonics.degree / _NOISE_DEGREE) ** 2).exp() * flow.laplacian.rsqrt()
        speed = (eddies.square() * flow.laplacian).sum((0, 1)).sqrt()
        eddies = eddies * (_NOISE_SPEED * DAY / RADIUS / speed.clamp_min(torch.finfo(noise.dtype).tiny))
        zonal = torch.where(self._force == 0, 0.0, self._force / self._damping).to(noise)
        return (SCALE * flow.harmonics.to_fields(zonal + eddies)).reshape(noise.shape)

    def tendency(self, x: Tensor) -> Tensor:
        """Change of psi for states of shape (..., rows, columns), in m2 s-1 a day."""
        return self._in_waves(x[..., None, :, :], self._tendency(x))[..., 0, :, :]

    def step(self, x: Tensor) -> Tensor:
        """Advance states of shape (..., rows, columns) by one time step."""
        return self.advance(x, 1)

    def advance(self, x: Tensor, steps: int) -> Tensor:
        """Advance states of shape (..., rows, columns). They stay spherical harmonics from step to step."""
        return self._advance(x[..., None, :, :], steps)[..., 0, :, :]

    def advance_along(self, x: Tensor, directions: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Advance states (B, rows, columns), and directions (B, M, rows, columns) by the tangent linear model."""
        at_once = _COLUMNS if x.device.type == "cpu" else max(1, directions.shape[1])
        groups = [torch.cat([x[:, None], some], 1) for some in directions.split(at_once, 1)]
        after = [self._advance(group, steps) for group in groups]
        return after[0][:, 0], torch.cat([group[:, 1:] for group in after], 1)

    def on(self, device: torch.device) -> Self:
        """The model on a device, with the matrices of its transforms."""
        other = super().on(device)
        if other is not self:
            other._flows_there = {dtype: self._flow_like(dtype).to(device) for dtype in (torch.float32, torch.float64)}
        return other

    def fingerprint(self) -> Tensor:
        """One step from the two states of a start, in units of the Earth's radius and days, rounded.

        Other models step from a ramp of 0.1 to 1. In m2 s-1 such a ramp is almost no flow.
        """
        with torch.no_grad():
            return (self.step(self.start_states()) / SCALE).round(decimals=_FINGERPRINT_DECIMALS)

    def _advance(self, groups: Tensor, steps: int) -> Tensor:
        """Advance groups (..., 1 + M, rows, columns) of a state and M directions at it."""
        if not steps or not groups.numel():
            return groups
        tendency = self._tendency(groups, groups.shape[-3] - 1)

        def ahead(waves: Tensor) -> Tensor:
            for _ in range(steps):
                waves = runge_kutta_4(tendency, waves, self.timestep, pure=True)
            return waves

        return self._in_waves(groups, ahead)

    def _in_waves(self, groups: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply a function of coefficients (R, T, B, 1 + M) to groups on the grid, (..., 1 + M, rows, columns)."""
        transform, size = self._flow(groups).harmonics, groups.shape[-3]
        fields = (groups / SCALE).reshape(-1, *self.shape)
        at_once = max(1, _COLUMNS // size) if groups.device.type == "cpu" else max(1, len(fields) // size)
        parts = []
        for some in fields.split(at_once * size):
            waves = transform.to_coefficients(some).unflatten(2, (-1, size))
            parts.append(transform.to_fields(function(waves).flatten(2)))
        return SCALE * torch.cat(parts).reshape(groups.shape)

    def _tendency(self, like: Tensor, directions: int = 0) -> Tendency:
        """Change of psi, and of directions at it by the tangent linear model, in coefficients (R, T, B, 1 + M)."""
        flow, space, more_space = self._flow(like), Workspace(like), Workspace(like)
        is_state = torch.eye(1, 1 + directions, dtype=like.dtype, device=like.device)[0]
        damping, planetary = self._damping.to(like)[..., None], self._planetary.to(like)[..., None]
        force = self._force.to(like)[..., None] * is_state

        def carrying(q: Tensor) -> Callable[[str, Tensor], Tensor]:
            """Multiply by q. For directions, give the derivative of the product."""
            if not directions:
                return multiplier(torch.add(q, planetary, out=space("q", q.shape)), space)
            state = q[..., :1]
            at_state = multiplier(torch.add(state, planetary, out=space("q", state.shape)), space)
            along = multiplier(torch.mul(q, 1.0 - is_state, out=more_space("q", q.shape)), more_space)

            def both(name: str, wind: Tensor) -> Tensor:
                one, other = at_state(name, wind), along(name, wind[..., :1])
                return torch.add(one, other, out=space(name, one.shape))

            return both

        def tendency(waves: Tensor) -> Tensor:
            along_lon, along_lat, q = flow.gradients(waves, space)
            times_q = carrying(q)
            change = flow.divergence(times_q("along_lon", along_lon), times_q("along_lat", along_lat), space)
            return change + torch.addcmul(force, damping, waves, value=-1)

        return tendency

    def _flow(self, like: Tensor) -> _Flow:
        there = self._flows_there.get(like.dtype)
        if there is not None and there.laplacian.device == like.device:
            return there
        flow = self._flow_like(like.dtype)
        return flow if like.device.type == "cpu" else flow.to(like.device)

    def _flow_like(self, dtype: torch.dtype) -> _Flow:
        screening = 0.0 if self.deformation_radius is None else (RADIUS / self.deformation_radius) ** 2
        return _flow_of(self.truncation, screening, dtype)

    def _jets(self, flow: _Flow) -> Tensor:
        """Psi of the jets, as coefficients of shape (R, T, 1)."""
        latitude = torch.tensor(self.space.coordinates["lat"].values, dtype=torch.float64)
        transform, away = flow.harmonics, (latitude.abs() - self.jet_latitude) / self.jet_width
        speed = self.jet_speed * DAY / RADIUS * (-0.5 * away**2).exp()
        # By parts: the mean of vorticity times a harmonic over the sphere is that of u times the harmonic's slope.
        means = transform.slopes.mT @ (transform.columns / 2 * transform.pair_share * speed / transform.cosine)
        return torch.where(transform.order == 0, -means[..., None] / flow.laplacian, 0.0)


class _Flow:
    """What advects q, for one truncation and dtype.

    Parameters
    ----------
    transform : SphericalHarmonics
    screening : float
        Square of the Earth's radius divided by L.
    """

    def __init__(self, transform: SphericalHarmonics, screening: float) -> None:
        self.harmonics = transform
        n = transform.degree
        self.laplacian = n * (n + 1)  # minus the eigenvalues of the Laplacian
        stretched = self.laplacian + screening
        self.vorticity_share = self.laplacian / stretched  # vorticity as a share of q, in each harmonic
        self._synthesis = torch.cat([transform.values, transform.slopes, -transform.values * stretched.mT], 1)
        # Psi is q / -stretched. This sign, those of gradients and that of the derivative by parts leave these factors.
        weights = (transform.pair_share / transform.cosine**2)[:, None] / stretched.mT
        self._by_lon, self._by_lat = -(transform.slopes * weights).mT, (transform.values * weights).mT

    def to(self, device: torch.device) -> _Flow:
        """The flow on a device."""
        other = moved(self, device)
        other.harmonics = self.harmonics.to(device)
        return other

    def gradients(self, waves: Tensor, space: Workspace) -> tuple[Tensor, Tensor, Tensor]:
        """Derivative of psi by longitude, its derivative by latitude times the cosine of latitude, and q without f.

        Parameters
        ----------
        waves : Tensor, shape (R, T, B, M)
            Coefficients of psi.
        space : Workspace
            It also holds the results: the next call overwrites them.

        Returns
        -------
        Tensor, shape (2, columns / 2, rows, B, M), three times
        """
        of, (batch, group) = self.harmonics, waves.shape[2:]
        columns = batch * group
        rows = torch.bmm(
            self._synthesis,
            waves.reshape(*waves.shape[:2], columns),
            out=space("rows", (len(self._synthesis), 3 * of.rows, columns)),
        ).view(2, -1, 3 * of.rows * columns)
        psi, others = rows.tensor_split([of.rows * columns], 2)
        half = of.columns // 2
        along_lon = torch.bmm(of.wave_slopes, psi, out=space("first", (2, half, psi.shape[2])))
        others = torch.bmm(of.waves, others, out=space("others", (2, half, others.shape[2])))
        along_lat, q = others.view(2, half, 2, of.rows, batch, group).unbind(2)
        return along_lon.view(2, half, of.rows, batch, group), along_lat, q

    def divergence(self, along_lon: Tensor, along_lat: Tensor, space: Workspace) -> Tensor:
        """Tendency of psi by -J(psi, q), from q times the two derivatives of psi that `gradients` gives.

        Parameters
        ----------
        along_lon, along_lat : Tensor, shape (2, columns / 2, rows, B, M)
        space : Workspace

        Returns
        -------
        Tensor, shape (R, T, B, M)
            In the workspace: the next call overwrites it.
        """
        of, (rows, batch, group) = self.harmonics, along_lon.shape[2:]
        columns = batch * group

        def to_rows(name: str, transposed: Tensor, fields: Tensor) -> Tensor:
            shape = (2, transposed.shape[1], rows * columns)
            return torch.bmm(transposed, fields.reshape(2, -1, shape[2]), out=space(name, shape)).view(
                -1, rows, columns
            )

        by_lat = to_rows("by_lat", of.wave_slopes.mT, along_lat)
        by_lon = to_rows("by_lon", of.waves.mT, along_lon)
        shape = (*self._by_lat.shape[:2], columns)
        change = torch.bmm(self._by_lat, by_lat, out=space("first_change", shape))
        change = torch.baddbmm(change, self._by_lon, by_lon, out=space("change", shape))
        return change.view(*shape[:2], batch, group)


@lru_cache(maxsize=4)
def _flow_of(truncation: int, screening: float, dtype: torch.dtype) -> _Flow:
    """Kept on the CPU only: no object of xdan holds memory of a GPU that it was not made for."""
    with torch.inference_mode(False):  # a tensor made in inference mode could never take part in a derivative
        return _Flow(SphericalHarmonics(truncation, *_GRIDS[truncation], dtype), screening)


def _mountains(sphere: Sphere) -> Tensor:
    """Height of the mountains relative to their tops, shape (rows, columns)."""
    away = sphere.distances(torch.tensor(MOUNTAINS, dtype=torch.float64)) / EXTENT
    return (-0.5 * away**2).exp().sum(0).reshape(sphere.shape)


def _rate(time: float | None) -> float:
    """Rate of a process with this time; zero if the time is None."""
    return 0.0 if time is None else 1.0 / time
