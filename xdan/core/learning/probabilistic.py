"""Objectives for networks that give a distribution: members, or a Gaussian with a mean and a root of its covariance."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import integer, real, switch
from ..dynamics import Dynamics
from ..local_roots import LocalRoot
from ..methods.advancing import advance
from ..networks import AnalysisNetwork
from ..observing import ObservingSystem, split_observation
from ..random import Purpose, normal
from ..tapers import gaspari_cohn
from .objectives import Objective, WindowContents, register_objective
from .rollout import Rollout, mixed_bits

_TINY = 1e-30  # keeps the gradient of a root finite at zero, in any units
_DRAWS = 8  # number of draws from a Gaussian in the energy score; the mean score does not depend on it
_REACH = 6.0  # default radius of the taper, in distances between neighbours
_SHRINKAGE = 0.05  # share of the diagonal that is added to a covariance of draws, so that it is positive definite


def crps(members: Tensor, truth: Tensor) -> Tensor:
    """Fair continuous ranked probability score, averaged over the state; from (B, T, M, N), (B, T, N) to (B, T)."""
    m = members.shape[2]
    ordered = members.sort(2).values
    # sum_ij |x_i - x_j| = 2 sum_k (2 k - M - 1) x_(k).
    rank = torch.arange(1, m + 1, dtype=members.dtype, device=members.device)[:, None]
    between = (2 * (2 * rank - m - 1) * ordered).sum(2) / (m * (m - 1))
    return ((members - truth[:, :, None]).abs().mean(2) - 0.5 * between).mean(-1)


def gaussian_crps(mean: Tensor, deviations: Tensor, truth: Tensor) -> Tensor:
    """Continuous ranked probability score of Gaussians, averaged over the state; from three (B, T, N) to (B, T).

    With e = truth - mean, the standard deviation s and z = e / s: e (2 Phi(z) - 1) + s (2 phi(z) - 1 / sqrt(pi)),
    Eq. 21 of Gneiting and Raftery (2007), doi:10.1198/016214506000001437.
    """
    error = truth - mean
    z = error / deviations
    density = math.sqrt(2 / math.pi) * (-0.5 * z.square()).exp()
    return (error * torch.erf(z / math.sqrt(2)) + deviations * (density - 1 / math.sqrt(math.pi))).mean(-1)


def energy_score(members: Tensor, truth: Tensor) -> Tensor:
    """Fair energy score; distances are root mean squares over the state; from (B, T, M, N), (B, T, N) to (B, T)."""
    m = members.shape[2]

    def distance(difference: Tensor) -> Tensor:
        return (difference.square().mean(-1) + _TINY).sqrt()

    to_truth = distance(members - truth[:, :, None]).mean(2)
    first, second = torch.triu_indices(m, m, 1, device=members.device)
    between = distance(members[:, :, first] - members[:, :, second]).mean(2)
    return to_truth - 0.5 * between


def log_score(mean: Tensor, root: LocalRoot, truth: Tensor) -> Tensor:
    """Negative logarithm of the Gaussian density at the truth, divided by the number of components.

    (|u|^2 / 2 + ln |det L| + N ln(2 pi) / 2) / N with L u = truth - mean: the logarithmic score of Gneiting and Raftery
    (2007), Sect. 4.1.

    Parameters
    ----------
    mean, truth : Tensor, shape (..., N)
    root : LocalRoot, entries of shape (..., N, L)

    Returns
    -------
    Tensor, shape (...)
    """
    solved, log_determinant = root.solve(truth - mean)
    n = mean.shape[-1]
    return (0.5 * solved.square().sum(-1) + log_determinant) / n + 0.5 * math.log(2 * math.pi)


def free_energy(
    mean: Tensor,
    root: Tensor,
    forecast: Tensor,
    covariance: Tensor,
    observation: Tensor,
    observed: Tensor,
    observing: ObservingSystem,
) -> Tensor:
    """Variational free energy of a Gaussian analysis q = N(m, L L^T), divided by the number of components.

    It is E_q[-ln p(y | x)] + KL(q || p_f), p_f = N(x_f, P_f), without the constant of p(y | x):

        (|R^{-1/2} (y - H m)|^2 + |R^{-1/2} H' L|^2 + |F^{-1} (m - x_f)|^2 + |F^{-1} L|^2 - N) / 2
            + ln |det F| - ln |det L|,

    Here F is a root of P_f and |.| is the Frobenius norm. The free energy is least if m and L are those of the Bayesian
    analysis; for linear H this is the Kalman filter's, and the minimum is -ln p(y). A nonlinear H is linearised at m.

    Parameters
    ----------
    mean, forecast : Tensor, shape (B, N)
    root, covariance : Tensor, shape (B, N, N)
        The root L, and the forecast covariance P_f.
    observation, observed : Tensor, shape (B, P)
        Zero and False where nothing is observed.
    observing : ObservingSystem

    Returns
    -------
    Tensor, shape (B,)

    References
    ----------
    Luk et al. (2024), learning optimal filters using variational inference.
    """
    factor = torch.linalg.cholesky(covariance)
    ahead = torch.cat([(mean - forecast)[..., None], root], -1)
    to_forecast = torch.linalg.solve_triangular(factor, ahead, upper=False).square().sum((-2, -1))
    misfit = observing.whiten(observation - observing.observe(mean), observed).square().sum(-1)
    spread = observing.whiten(observing.tangent(mean, root.mT), observed).square().sum((-2, -1))
    volumes = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) - torch.linalg.slogdet(root).logabsdet
    n = mean.shape[-1]
    energy: Tensor = (0.5 * (misfit + spread + to_forecast - n) + volumes) / n
    return energy


@register_objective
class CRPS(Objective):
    """Continuous ranked probability score at each site, of members, or of a Gaussian in closed form.

    The score is strictly proper: Gneiting and Raftery (2007), and Ferro (2014) for the fair form with members.
    """

    name: ClassVar[str] = "crps"
    needs_members: ClassVar[bool] = True
    needs_spread: ClassVar[bool] = True

    def loss(self, rollout: Rollout) -> Tensor:
        """`crps` of the members, or `gaussian_crps` of a Gaussian."""
        truth = rollout.scaled(rollout.truth())
        if rollout.members is not None:
            return crps(rollout.scaled(rollout.members), truth)
        return gaussian_crps(rollout.scaled(rollout.analysis), rollout.scaled_root().deviations, truth)


@register_objective
class EnergyScore(Objective):
    """Energy score of all sites together, of members or of draws from a Gaussian. Its fair form is strictly proper."""

    name: ClassVar[str] = "energy"
    needs_members: ClassVar[bool] = True
    needs_spread: ClassVar[bool] = True

    def loss(self, rollout: Rollout) -> Tensor:
        """`energy_score` of the members, or of draws whose random numbers follow from the observations' bits."""
        truth = rollout.scaled(rollout.truth())
        if rollout.members is not None:
            return energy_score(rollout.scaled(rollout.members), truth)
        root, mean = rollout.scaled_root(), rollout.scaled(rollout.analysis)
        columns = []
        for k in range(mean.shape[1]):
            noise = noise_of(rollout.window.observation[:, k], _DRAWS, mean.shape[-1])
            rows = LocalRoot(root.entries[:, k, None], root.places)
            columns.append(mean[:, k, None] + rows.apply(noise))
        return energy_score(torch.stack(columns, 1), truth)


@register_objective
class LogScore(Objective):
    """Negative logarithm of the density that a Gaussian network gives to the truth. The score is strictly proper.

    By default it is the mean of two scores. The score of each component trains the standard deviations. The score of
    all components together, with these standard deviations held constant, trains the correlations. The two are
    separated because a sparse root cannot hold all correlations: with the second score alone, the standard deviations
    compensate for missing correlations, and are then not those of the components.

    Parameters
    ----------
    marginal : bool
        Whether to use both scores. False uses the score of all components together alone.
    """

    name: ClassVar[str] = "log-score"
    needs_spread: ClassVar[bool] = True
    power: ClassVar[int] = -1

    def __init__(self, marginal: bool = True) -> None:
        self.marginal = switch("marginal", marginal)

    def loss(self, rollout: Rollout) -> Tensor:
        """`log_score` of each cycle, and the score of the components."""
        mean, truth, root = rollout.scaled(rollout.analysis), rollout.scaled(rollout.truth()), rollout.scaled_root()
        deviations = root.deviations
        if self.marginal:
            root = LocalRoot(root.entries * (deviations.detach() / deviations)[..., None], root.places)
        each = range(mean.shape[1])
        together = torch.stack(
            [log_score(mean[:, k], LocalRoot(root.entries[:, k], root.places), truth[:, k]) for k in each], 1
        )
        if not self.marginal:
            return together
        alone = 0.5 * ((truth - mean) / deviations).square() + deviations.log()
        return 0.5 * (together + alone.mean(-1) + 0.5 * math.log(2 * math.pi))


@register_objective
class Variational(Objective):
    """Variational free energy of the analysis, which needs no truth. It is least for the Bayesian analysis.

    At each cycle it is E_q[-ln p(y | x)] + KL(q || p_f), where q is the network's Gaussian and p_f the forecast's
    (`free_energy`). The model advances `members` draws from the previous analysis. The forecast's covariance is that of
    these draws, tapered, with a small share of its diagonal added. No gradient passes through the forecast's
    distribution or the model: each cycle asks for the best analysis of its forecast and its observations. Gradients
    pass through the memory. The first cycle of a window has no loss, because the window has no analysis before it.

    Parameters
    ----------
    members : int
        Number of draws that the model advances, at least 2.
    radius : float, optional
        Radius of the taper of Gaspari and Cohn, in the units of the coordinates. The taper is zero from twice this
        radius on. By default six times the distance between neighbours, and no taper for components without places.
    inflation : float
        Factor of the forecast's standard deviations. A sparse root cannot hold all correlations, and the root that this
        objective prefers is too small. Without inflation the spread may therefore shrink from cycle to cycle, like the
        spread of a small ensemble.

    References
    ----------
    Luk et al. (2024), learning optimal filters using variational inference.
    """

    name: ClassVar[str] = "variational"
    needs_truth: ClassVar[bool] = False
    needs_spread: ClassVar[bool] = True
    least_window: ClassVar[int] = 2
    power: ClassVar[int] = -1
    through_model: ClassVar[bool] = False

    def __init__(self, members: int = 20, radius: float | None = None, inflation: float = 1.0) -> None:
        self.members = integer("members", members, least=2)
        self.inflation = real("inflation", inflation, above=0.0)
        self.radius = None if radius is None else real("radius", radius, above=0.0)
        self._taper: tuple[Any, Tensor] | None = None

    def check(self, network: AnalysisNetwork, contents: WindowContents) -> None:
        """Refuse networks without a spread, and networks with a correction of the model."""
        super().check(network, contents)
        if network.model_correction() is not None:
            raise ValueError(
                f"objective={self.name!r}: the network {network.name!r} learns a correction of the model, and no "
                "gradient passes through the model here; expected a network without, or objective='log-score'"
            )

    def loss(self, rollout: Rollout) -> Tensor:
        """`free_energy` of each cycle; 0 where there is no previous analysis."""
        root = rollout.root
        assert root is not None
        columns = [rollout.analysis[:, 0].sum(-1) * 0.0]
        for k in range(1, rollout.analysis.shape[1]):
            observation, observed = split_observation(rollout.window.observation[:, k])
            now, before = (LocalRoot(root.entries[:, at], root.places) for at in (k, k - 1))
            covariance = self._forecast_covariance(rollout, before.detached(), k)
            forecast, observing = rollout.forecast[:, k].detach(), rollout.observing.at(rollout.window.start + k)
            value = free_energy(
                rollout.analysis[:, k], now.dense, forecast, covariance, observation, observed, observing
            )
            columns.append(torch.where(rollout.lost[:, k - 1] | rollout.lost[:, k], 0.0, value))
        return torch.stack(columns, 1)

    @torch.no_grad()
    def _forecast_covariance(self, rollout: Rollout, before: LocalRoot, k: int) -> Tensor:
        """P_f at cycle k, (B, N, N), from draws of the previous analysis."""
        assert rollout.dynamics is not None
        window, steps = rollout.window, rollout.window.steps[k]
        mean = rollout.analysis[:, k - 1].detach()
        noise = noise_of(window.observation[:, k - 1], self.members, mean.shape[-1])
        drawn = mean[:, None] + LocalRoot(before.entries[:, None], before.places).apply(noise)
        ahead = advanced(rollout.dynamics, drawn, steps, window.clock_at(k))
        anomalies = ahead - ahead.mean(1, keepdim=True)
        covariance = self.inflation**2 / (self.members - 1) * (anomalies.mT @ anomalies)
        if (taper := self._tapering(rollout.dynamics, covariance)) is not None:
            covariance = covariance * taper
        variances = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
        return (1 - _SHRINKAGE) * covariance + _SHRINKAGE * variances

    def _tapering(self, dynamics: Dynamics, like: Tensor) -> Tensor | None:
        """Taper between all components, (N, N); None for components without distances."""
        key = dynamics.space, like.device, like.dtype
        if self._taper is None or self._taper[0] != key:
            distances = dynamics.space.distances(torch.arange(dynamics.space.size))
            if distances is None:
                return None
            near = distances.masked_fill(distances <= 0, torch.inf).amin(1).median()
            radius = float(_REACH * near) if self.radius is None else self.radius
            self._taper = key, gaspari_cohn(distances, radius).to(like)
        return self._taper[1]


def advanced(dynamics: Dynamics, members: Tensor, steps: int, clock: Tensor) -> Tensor:
    """Advance members (B, M, N) by the model. `clock` says at which step each trajectory stands."""
    if dynamics.autonomous:
        return advance(dynamics, members, steps)
    clock = clock.expand(len(members))
    ahead = torch.empty_like(members)
    for start in clock.unique().tolist():
        rows = clock == start
        ahead[rows] = advance(dynamics.from_step(start), members[rows], steps)
    return ahead


def noise_of(observation: Tensor, draws: int, size: int) -> Tensor:
    """Standard normal numbers (B, draws, size) that depend on the bits of observations (B, P) alone.

    They are the same in any process and for any division of a batch, and different at each cycle.
    """
    key = mixed_bits(observation).sum(1)
    numbers = normal(0, Purpose.ANALYSIS_DRAW, key, torch.zeros_like(key[:1]), draws * size)
    return numbers.reshape(len(key), draws, size).to(observation)
