"""The finite-size ensemble Kalman filter, EnKF-N, which needs no tuned inflation; its prior for other ensembles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import choice, integer, switch
from ..dynamics import Dynamics
from ..eigen import eigh
from ..observing import ObservingSystem
from .arguments import number_or_tune
from .backward import BackwardPass, EnsembleBackward
from .declarations import INFLATION, SPREADS, Output, Tunable
from .ensemble import INFLATIONS, EnsembleMethod, InverseRoot, Precision, centre, compare
from .record import Record, State
from .registry import register_method

_BISECTIONS, _NEWTON = 24, 2  # steps that bracket a minimum of the dual cost, and steps that refine it
_LOWEST, _GRID = 1e-6, 32  # smallest zeta relative to the largest, and number of grid points between them
_EQUAL = 1e-7  # two minima whose costs differ by less than this (relative, or absolute if small) are equally good
FORMS = ("dual", "primal")


@register_method
class FiniteSizeEnKF(EnsembleMethod):
    """EnKF-N; by default in its dual form with a cap, so that it never deflates.

    An ensemble estimates the mean and the covariance with errors. The prior of the EnKF-N takes these errors into
    account. Its dual form has one scalar, zeta. The analysis is that of a square-root EnKF with the inflation
    sqrt((M - 1) / zeta).

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.
    capped : bool
        True: search zeta in (0, M - 1] (the practical Dirac-Jeffreys form). False: search in (0, (M + 1) / eps].
    form : {"dual", "primal"}
        "primal" minimises over the weights of the members. Its analysis precision is the whole Hessian of the cost,
        with the correction of rank one that the dual form leaves out. The primal form has no cap.
    rotate : bool
        Rotate the anomalies at random after each analysis, such that the members keep their mean.
    model_noise : {"draws", "sqrt-core"}
        How the forecast includes the covariance Q of the model's errors, if the model has one. "draws" draws an error
        for each member. "sqrt-core" transforms the anomalies within the space of the members.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If there are fewer than 2 members, or `form` or `model_noise` is unknown.

    References
    ----------
    Bocquet (2011), doi:10.5194/npg-18-735-2011, for the primal; Bocquet, Raanes and Hannart (2015),
    doi:10.5194/npg-22-645-2015, Sect. 4 for the dual and 5 for the cap.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.cycle(xdan.FiniteSizeEnKF(members=10))
    >>> bool(ds.dan.score(run, burn_in=10).rmse < 1.0)
    True
    """

    name: ClassVar[str] = "enkf-n"
    outputs: tuple[Output, ...] = (*SPREADS, INFLATION)

    def __init__(
        self,
        members: int = 40,
        capped: bool = True,
        form: str = "dual",
        rotate: bool = False,
        model_noise: str = "draws",
    ) -> None:
        super().__init__(members, model_noise)
        self.capped, self.form, self.rotate = (
            switch("capped", capped),
            choice("form", form, FORMS),
            switch("rotate", rotate),
        )

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters. The default of `rotate` is left out, so that old runs can resume."""
        return {name: value for name, value in super().config().items() if name != "rotate" or value}

    def backward_pass(self, dynamics: Dynamics) -> BackwardPass:
        """Backward pass for members whose forecast the finite-size prior inflates."""
        self.check_backward(dynamics)
        return EnsembleBackward(prior="inflation")

    def start(self, record: Record) -> State:
        """Members, not inflated yet."""
        state = super().start(record)
        return {**state, "inflation": state["x"].new_ones(len(state["x"]))}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis, symmetric square root."""
        m = self.members
        mean, anomalies = centre(state["x"])
        precision = Precision(*compare(state["x"], observation, observed, observing))
        if self.form == "dual":
            zeta = effective_zeta(precision, m, self.capped)
            weights, root = precision.solve(zeta)
        else:
            weights, root, zeta = primal_minimum(precision, m)
        # `root` inflates the uniform vector, whose eigenvalue is 0. This does not matter: the anomalies have zero mean.
        root = math.sqrt(m - 1) * root
        x = mean + (weights[:, None] + (self.turned(root, state) if self.rotate else root)) @ anomalies
        return {**state, "x": x, "inflation": ((m - 1) / zeta).sqrt()}


class InflatedEnsemble(EnsembleMethod):
    """An ensemble filter with tuned inflation. In its first cycles the finite-size prior adds inflation.

    Without this addition, an ensemble that starts from the climatology is lost before it comes near the truth.

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.
    inflation : float or "tune"
        Factor by which the analysis anomalies are multiplied.
    spin_up : int
        Number of first cycles with this addition. The burn-in of a score should be longer.
    model_noise : {"draws", "sqrt-core"}
        How the forecast includes the covariance Q of the model's errors, if the model has one. "draws" draws an error
        for each member. "sqrt-core" transforms the anomalies within the space of the members.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If `spin_up` is negative, or the inflation is not positive.
    """

    tunable: ClassVar[Mapping[str, Tunable]] = {"inflation": INFLATIONS}

    def __init__(
        self, members: int = 40, inflation: float | str = 1.01, spin_up: int = 100, model_noise: str = "draws"
    ) -> None:
        super().__init__(members, model_noise)
        self.inflation, self.spin_up = number_or_tune("inflation", inflation), integer("spin_up", spin_up, least=0)

    def backward_pass(self, dynamics: Dynamics) -> BackwardPass:
        """Backward pass for members that the analysis has inflated."""
        self.check_backward(dynamics)
        return EnsembleBackward(self.number("inflation"))

    def spins_up(self, state: State) -> bool:
        """Whether the coming analysis is one of the first `spin_up`."""
        return bool((state["cycle"] < self.spin_up).any())

    def prior_inflation(self, zeta: Tensor | float, x: Tensor) -> Tensor:
        """Factor of the forecast's anomalies, (B,), that is equivalent to a weight zeta; for members (B, M, N)."""
        return ((self.members - 1) / (zeta if isinstance(zeta, Tensor) else x.new_full((len(x),), zeta))).sqrt()

    def zeta(self, precision: Precision, state: State) -> Tensor | float:
        """Weight of the prior in an analysis: M - 1, or less during spin-up if the innovations ask for it."""
        if not self.spins_up(state):
            return float(self.members - 1)
        return effective_zeta(precision, self.members, capped=True)


def effective_zeta(precision: Precision, members: int, capped: bool) -> Tensor:
    """Zeta of the dual form. It is differentiable, implicitly: by one Newton step at the minimum.

    Returns
    -------
    Tensor, shape (B,)
    """
    with torch.no_grad():
        zeta = dual_minimum(precision.values, precision.rotated(), members, capped)
    if not precision.gram.requires_grad:
        return zeta
    inside = zeta < (members - 1 if capped else math.inf)
    # d cost / d zeta = |w|^2 + eps - (M + 1) / zeta with w = P^{-1} S d.
    weights, _ = precision.solve(zeta)
    slope = weights.square().sum(-1) + members / (members - 1) - (members + 1) / zeta
    with torch.no_grad():
        _, curvature = _derivatives(zeta, precision.values, precision.rotated() ** 2, members)
    return torch.where(inside, zeta - (slope - slope.detach()) / curvature, zeta)


def _derivatives(zeta: Tensor, values: Tensor, squared: Tensor, members: int) -> tuple[Tensor, Tensor]:
    """First and second derivative of the dual cost; `squared` is c^2."""
    shifted = zeta[..., None] + values
    first = (squared / shifted**2).sum(-1) + members / (members - 1) - (members + 1) / zeta
    return first, (members + 1) / zeta**2 - 2 * (squared / shifted**3).sum(-1)


def primal_minimum(precision: Precision, members: int) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise |d - S^T w|^2 / 2 + (M + 1) / 2 ln(eps + |w|^2) over the weights.

    Returns
    -------
    weights : Tensor, shape (B, M)
    root : Tensor, shape (B, M, M)
        Inverse square root of the Hessian at the minimum.
    zeta : Tensor, shape (B,)
        Zeta of the dual form, (M + 1) / (eps + |w|^2).
    """
    eps = members / (members - 1)
    # At the minimum, (M + 1) / (eps + |w|^2) is the zeta of the dual form without its cap.
    zeta = effective_zeta(precision, members, capped=False)
    weights, _ = precision.solve(zeta)
    rank_one = (2 * zeta**2 / (members + 1))[:, None, None] * weights[:, :, None] * weights[:, None, :]
    hessian = precision.at((members + 1) / (eps + weights.square().sum(-1))) - rank_one
    with torch.no_grad():
        values, vectors = eigh(hessian)
        # Where the cost is not convex the Hessian is no precision: a small part of the prior's bounds it from below.
        values = values.clamp_min(1e-3 * (members - 1))
    root: Tensor = InverseRoot.apply(hessian, values, vectors)  # type: ignore[no-untyped-call]
    return weights, root, zeta


def dual_minimum(values: Tensor, c: Tensor, members: int, capped: bool) -> Tensor:
    """Minimise the dual cost over zeta.

    D(zeta) = sum_k d_k^2 / (1 + s_k^2 / zeta) + eps zeta - (M + 1) ln zeta, eps = M / (M - 1), with s the singular
    values of the whitened anomalies and d = c / s the rotated innovation. The part of the innovation outside the
    anomalies' span does not depend on zeta.

    Large innovations make several minima. The result is the lowest minimum between a millionth of the largest zeta and
    the largest zeta, both ends included. The sign of the slope on a logarithmic grid separates the minima. Each term of
    the slope is a hump about eight grid points wide. Two minima between neighbouring grid points count as one.

    Parameters
    ----------
    values : Tensor, shape (..., M)
        Squares s^2 of the singular values.
    c : Tensor, shape (..., M)
        Products s d.
    members : int
        Number of members M.
    capped : bool
        Search up to M - 1 instead of (M + 1) / eps. Beyond (M + 1) / eps, D only grows.

    Returns
    -------
    Tensor, shape (...)
    """
    squared = c**2
    top = float(members - 1) if capped else (members + 1) * (members - 1) / members
    high = torch.full_like(values[..., 0], top)
    low = high * _LOWEST
    zeta = _refined(low, high, values, squared, members, top)
    grid = torch.logspace(math.log10(_LOWEST), 0.0, _GRID, dtype=values.dtype, device=values.device) * top
    inverse = (grid[:, None] + values[..., None, :]).reciprocal()
    slope = (inverse.square() @ squared[..., None])[..., 0] + members / (members - 1) - (members + 1) / grid
    several = _starts(slope).sum(-1) > 1
    if bool(several.any()):
        zeta[several] = _lowest(zeta[several], grid, slope[several], values[several], squared[several], members)
    return zeta


def _refined(low: Tensor, high: Tensor, values: Tensor, squared: Tensor, members: int, top: float) -> Tensor:
    """Bisect from where the dual cost falls to where it grows, then take Newton steps."""
    for _ in range(_BISECTIONS):
        middle = (low * high).sqrt()
        rising = _derivatives(middle, values, squared, members)[0] > 0
        high, low = torch.where(rising, middle, high), torch.where(rising, low, middle)
    for _ in range(_NEWTON):
        first, second = _derivatives(high, values, squared, members)
        better = high - first / second
        # At the cap the slope has no root.
        high = torch.where((high < top) & (second > 0) & (better > low), better.clamp_max(top), high)
    return high


def _starts(slope: Tensor) -> Tensor:
    """Which stretches hold a minimum, (..., G + 1): the one below the grid, those between points, the one above."""
    falling = torch.nn.functional.pad(slope <= 0, (1, 0), value=True)  # the range ends here: no minimum lies outside
    rising = torch.nn.functional.pad(slope > 0, (0, 1), value=True)
    return falling & rising


def _lowest(zeta: Tensor, grid: Tensor, slope: Tensor, values: Tensor, squared: Tensor, members: int) -> Tensor:
    """Lowest of several minima, (B,). The result is `zeta`, (B,), if no minimum is lower by more than rounding."""
    row, stretch = _starts(slope).nonzero(as_tuple=True)
    low, high = grid[(stretch - 1).clamp_min(0)], grid[stretch.clamp_max(len(grid) - 1)]
    minimum = _refined(low, high, values[row], squared[row], members, float(grid[-1]))
    cost = _dual_cost(minimum, values[row], squared[row], members)
    least = torch.full_like(zeta, torch.inf, dtype=cost.dtype).scatter_reduce(0, row, cost, "amin")
    other = torch.zeros_like(zeta).index_put((row[cost == least[row]],), minimum[cost == least[row]])
    known = _dual_cost(zeta, values, squared, members)
    return torch.where(least < known - _EQUAL * (1 + known.abs()), other, zeta)


def _dual_cost(zeta: Tensor, values: Tensor, squared: Tensor, members: int) -> Tensor:
    """Dual cost minus sum_k d_k^2, in double precision."""
    zeta, values, squared = zeta.double(), values.double(), squared.double()
    fit = (squared / (zeta[..., None] + values)).sum(-1)
    return members / (members - 1) * zeta - (members + 1) * zeta.log() - fit
