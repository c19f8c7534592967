"""Objectives of networks that give a distribution: members, or a Gaussian by its mean and a root of its covariance."""

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

_TINY = 1e-30  # keeps the root's gradient finite at zero, in any units
_DRAWS = 8  # of a Gaussian in the energy score: its mean does not depend on their number
_REACH = 6.0  # radius of the taper, in distances between neighbours
_SHRINKAGE = 0.05  # share of the diagonal in a covariance of draws: it stays positive definite


def crps(members: Tensor, truth: Tensor) -> Tensor:
    """Fair continuous ranked probability score, mean over the state; (B, T, M, N), (B, T, N) to (B, T)."""
    m = members.shape[2]
    ordered = members.sort(2).values
    # sum_ij |x_i - x_j| = 2 sum_k (2 k - M - 1) x_(k).
    rank = torch.arange(1, m + 1, dtype=members.dtype, device=members.device)[:, None]
    between = (2 * (2 * rank - m - 1) * ordered).sum(2) / (m * (m - 1))
    return ((members - truth[:, :, None]).abs().mean(2) - 0.5 * between).mean(-1)


def gaussian_crps(mean: Tensor, deviations: Tensor, truth: Tensor) -> Tensor:
    """Continuous ranked probability score of Gaussians, mean over the state; three of (B, T, N) to (B, T).

    With e = truth - mean, s the deviation and z = e / s: e (2 Phi(z) - 1) + s (2 phi(z) - 1 / sqrt(pi)), Eq. 21 of
    Gneiting and Raftery (2007), doi:10.1198/016214506000001437.
    """
    error = truth - mean
    z = error / deviations
    density = math.sqrt(2 / math.pi) * (-0.5 * z.square()).exp()
    return (error * torch.erf(z / math.sqrt(2)) + deviations * (density - 1 / math.sqrt(math.pi))).mean(-1)


def energy_score(members: Tensor, truth: Tensor) -> Tensor:
    """Fair energy score, distances being root mean squares over the state; (B, T, M, N), (B, T, N) to (B, T)."""
    m = members.shape[2]

    def distance(difference: Tensor) -> Tensor:
        return (difference.square().mean(-1) + _TINY).sqrt()

    to_truth = distance(members - truth[:, :, None]).mean(2)
    first, second = torch.triu_indices(m, m, 1, device=members.device)
    between = distance(members[:, :, first] - members[:, :, second]).mean(2)
    return to_truth - 0.5 * between


def log_score(mean: Tensor, root: LocalRoot, truth: Tensor) -> Tensor:
    """Negative logarithm of the Gaussian density at the truth, for each component of the state.

    (|u|^2 / 2 + ln |det L| + N ln(2 pi) / 2) / N with L u = truth - mean; the logarithmic score of Gneiting and Raftery
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
    """Variational free energy of a Gaussian analysis q = N(m, L L^T), for each component of the state.

    E_q[-ln p(y | x)] + KL(q || p_f), p_f = N(x_f, P_f), without the constant of p(y | x):

        (|R^{-1/2} (y - H m)|^2 + |R^{-1/2} H' L|^2 + |F^{-1} (m - x_f)|^2 + |F^{-1} L|^2 - N) / 2
            + ln |det F| - ln |det L|,

    F being a root of P_f and |.| the Frobenius norm. Over all m and L it is least at Bayes's analysis, for linear H the
    Kalman filter's, and there it is -ln p(y). A nonlinear H is linearised at m.

    Parameters
    ----------
    mean, forecast : Tensor, shape (B, N)
    root, covariance : Tensor, shape (B, N, N)
        L, and P_f.
    observation, observed : Tensor, shape (B, P)
        Zero, and False, where nothing is observed.
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
    """Continuous ranked probability score, site by site: of members, or of a Gaussian in closed form.

    A strictly proper score: Gneiting and Raftery (2007), and Ferro (2014) for the fair form of members.
    """

    name: ClassVar[str] = "crps"
    needs_members: ClassVar[bool] = True
    needs_spread: ClassVar[bool] = True

    def loss(self, rollout: Rollout) -> Tensor:
        """`crps` of the members, or `gaussian_crps`."""
        truth = rollout.scaled(rollout.truth())
        if rollout.members is not None:
            return crps(rollout.scaled(rollout.members), truth)
        return gaussian_crps(rollout.scaled(rollout.analysis), rollout.scaled_root().deviations, truth)


@register_objective
class EnergyScore(Objective):
    """Energy score of all sites together, of members or of draws from a Gaussian; strictly proper, in its fair form."""

    name: ClassVar[str] = "energy"
    needs_members: ClassVar[bool] = True
    needs_spread: ClassVar[bool] = True

    def loss(self, rollout: Rollout) -> Tensor:
        """`energy_score` of the members, or of draws that follow from the bits of the observations."""
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
    """Negative logarithm of the density that a Gaussian network gives the truth; strictly proper.

    By default it is the mean of two scores: that of each component by itself, from which the deviations learn, and that
    of all together, from which the correlations learn, with these deviations. A sparse root cannot hold all
    correlations, and deviations that learn from the score of all together make up for
    that: they are then not those of the components.

    Parameters
    ----------
    marginal : bool
        False: the score of all together alone.
    """

    name: ClassVar[str] = "log-score"
    needs_spread: ClassVar[bool] = True
    power: ClassVar[int] = -1

    def __init__(self, marginal: bool = True) -> None:
        self.marginal = switch("marginal", marginal)

    def loss(self, rollout: Rollout) -> Tensor:
        """`log_score`, cycle by cycle, and that of the components."""
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
    """Variational free energy of the analysis: the distribution nearest to Bayes's, without the truth.

    At each cycle E_q[-ln p(y | x)] + KL(q || p_f), q the network's Gaussian and p_f that of the forecast
    (`free_energy`). The forecast's covariance is that of `members` draws from the analysis before, advanced by the
    model, tapered, with a small share of its diagonal added. No gradient passes through the forecast's distribution nor
    through the model: each cycle asks for the best analysis of its forecast and its observations. Gradients pass
    through the memory. The first cycle of a window has no loss, as no analysis in the window comes before it.

    Parameters
    ----------
    members : int
        Draws that are advanced, at least 2.
    radius : float, optional
        Of the taper of Gaspari and Cohn, which vanishes from twice the radius, in the units of the coordinates. By
        default six times the distance between neighbours; no taper for components without places.
    inflation : float
        Factor of the deviations of the forecast. A sparse root cannot hold all correlations, and the nearest one in the
        sense of this objective is too small: without inflation the spread may shrink from cycle to cycle, as that of a
        small ensemble does.

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
        """Refuse networks without a spread, and those that hold a correction of the model."""
        super().check(network, contents)
        if network.model_correction() is not None:
            raise ValueError(
                f"objective={self.name!r}: the network {network.name!r} learns a correction of the model, and no "
                "gradient passes through the model here; expected a network without, or objective='log-score'"
            )

    def loss(self, rollout: Rollout) -> Tensor:
        """`free_energy` of every cycle, 0 where no analysis comes before."""
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
        """P_f at the k-th cycle, (B, N, N), from draws of the analysis before."""
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
        """Taper of all pairs of components, (N, N); None for components without distances."""
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
    """Advance members (B, M, N) by the model, which stands so many steps on at each trajectory's clock."""
    if dynamics.autonomous:
        return advance(dynamics, members, steps)
    clock = clock.expand(len(members))
    ahead = torch.empty_like(members)
    for start in clock.unique().tolist():
        rows = clock == start
        ahead[rows] = advance(dynamics.from_step(start), members[rows], steps)
    return ahead


def noise_of(observation: Tensor, draws: int, size: int) -> Tensor:
    """Standard normal numbers (B, draws, size) that follow from the bits of observations (B, P).

    They are the same in any process and for any cut of a batch, and others at each cycle.
    """
    key = mixed_bits(observation).sum(1)
    numbers = normal(0, Purpose.ANALYSIS_DRAW, key, torch.zeros_like(key[:1]), draws * size)
    return numbers.reshape(len(key), draws, size).to(observation)
