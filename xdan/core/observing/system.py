"""The observing system: H and R together, and the projected innovation."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from ..checks import shown
from ..random import Purpose, normal
from .operators import Operator
from .sites import Sites

_SYMMETRIC = 1e-5  # of the two standard deviations: by so much may the halves of a covariance differ
_PIVOTS = 100  # times a dtype's resolution: R's scaled pivots are larger, or solutions with R lose their digits


class ObservingSystem:
    """Gaussian observation errors: R diagonal, or full; and the operator H that they are errors of.

    Sites that are not observed are handled by a mask: their rows and columns of R drop out.

    Parameters
    ----------
    std : Tensor, shape () or state shape, or broadcastable to the observations
        Standard deviations of independent errors. Exclusive with `covariance`.
    covariance : Tensor, shape (P, P)
        Full R over the observations.
    operator : Operator, optional
        H, by default the identity: observations are the flattened state's sites, P = N.
    in_time : bool
        The standard deviations differ from time to time, shape (K, P) or (K, 1): `at` and `during` pick from them.

    Raises
    ------
    TypeError
        For what is no tensor of real floating-point numbers.
    ValueError
        If a standard deviation is not positive and finite, or R is not square, symmetric and positive definite.
    """

    def __init__(
        self,
        std: Tensor | None = None,
        covariance: Tensor | None = None,
        operator: Operator | None = None,
        in_time: bool = False,
    ) -> None:
        if (std is None) == (covariance is None):
            raise ValueError("expected exactly one of std= and covariance=")
        self.std, self.covariance, self.operator, self.in_time = std, covariance, operator, in_time
        self._factor: Tensor | None = None
        self._exact: Tensor | None = None  # R as it was given, where `to` has rounded it
        if std is not None:
            _check_real("observation error standard deviation", std)
            positive = (std > 0) & torch.isfinite(std)
            if not bool(positive.all()):
                bad = std[~positive].flatten()[0]
                raise ValueError(f"observation error standard deviation {bad:g}: expected positive finite values")
        if covariance is not None:
            self._factor = covariance_factor("R", covariance)

    def to(self, dtype: torch.dtype, device: torch.device | str) -> ObservingSystem:
        """The same R in another dtype or on another device.

        Raises
        ------
        ValueError
            If R loses its digits in the dtype: a variance that is 0 or infinite there, or a matrix near singular.
        """
        moved = copy.copy(self)
        for key, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, key, value.to(dtype=dtype, device=device))
        remedy = "scale the state and its errors to other units, or take float64"
        if self.std is not None and moved.std is not None and self.std.dtype != dtype:
            variance = moved.std**2
            held = (variance >= torch.finfo(dtype).tiny) & variance.isfinite()
            if not bool(held.all()):
                bad = self.std[~held.to(self.std.device)].flatten()[0]
                raise ValueError(
                    f"observation error standard deviation {bad:g}: expected a square that {dtype} can hold; {remedy}"
                )
        if self._factor is not None and self.covariance is not None and self.covariance.dtype != dtype:
            smallest = float(_pivots(self._factor, self.covariance).min())
            if smallest < _PIVOTS * torch.finfo(dtype).eps:
                raise ValueError(
                    f"R is too near to a singular matrix for {dtype}: an observation's error is known from the others' "
                    f"to {smallest:.1g} of its deviation; expected more than {_PIVOTS * torch.finfo(dtype).eps:.1g}; "
                    f"{remedy}, or add to R's diagonal"
                )
            exact = self.covariance if self._exact is None else self._exact
            moved._exact = exact.to(device=device)
        return moved

    def at(self, k: int) -> ObservingSystem:
        """R of the k-th time."""
        return self._picked(k, False) if self.in_time else self

    def during(self, times: slice) -> ObservingSystem:
        """R of some of the times."""
        return self._picked(times, True) if self.in_time else self

    def at_times(self, times: Tensor) -> ObservingSystem:
        """R for a batch, each of whose rows has the time at a position of its own, (B,)."""
        return self._picked(times, False) if self.in_time else self

    def repeat(self, count: int) -> ObservingSystem:
        """R for a batch, each of whose rows stands `count` times; where R is the same for all, that."""
        if self.std is None or self.std.ndim < 2:
            return self
        repeated = copy.copy(self)
        repeated.std = self.std.repeat_interleave(count, 0)
        return repeated

    def _picked(self, times: int | slice | Tensor, in_time: bool) -> ObservingSystem:
        assert self.std is not None
        picked = copy.copy(self)
        picked.std, picked.in_time = self.std[times], in_time
        return picked

    def observe(self, x: Tensor) -> Tensor:
        """H(x) of states (..., N), shape (..., P)."""
        return x if self.operator is None else self.operator(x)

    def tangent(self, x: Tensor, directions: Tensor) -> Tensor:
        """Derivative of H at x (B, N) along directions (B, M, N), shape (B, M, P)."""
        return directions if self.operator is None else self.operator.tangent(x, directions)

    def observed_covariances(self, x: Tensor, p: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """H P and H P H^T of symmetric P (..., N, N), shapes (..., P, N) and (..., P, P), zero where not observed."""
        if self.operator is None:
            rows = torch.where(observed[..., :, None], p, torch.zeros_like(p))
            return rows, torch.where(observed[..., None, :], rows, torch.zeros_like(p))
        p = p.expand(len(x), *p.shape[-2:])
        rows = self.operator.tangent(x, p).mT * observed[..., None]
        return rows, self.operator.tangent(x, rows) * observed[..., None, :]

    def gain_on_state(self, gain: Tensor, x: Tensor) -> Tensor:
        """K H of a gain (B, N, P) whose columns are zero where not observed, shape (B, N, N)."""
        if self.operator is None:
            return gain
        size = x.shape[1]
        unit = torch.eye(size, dtype=x.dtype, device=x.device).expand(len(x), size, size)
        return gain @ self.operator.tangent(x, unit).mT

    def interpolate(self, x: Tensor, variance: Tensor, innovation: Tensor, observed: Tensor) -> Tensor:
        """Increment V H^T (H V H^T + R)^-1 d of optimal interpolation with independent background errors.

        Parameters
        ----------
        x : Tensor, shape (B, N)
            Where H is linearised.
        variance : Tensor, broadcastable to (B, N)
            Diagonal of V.
        innovation : Tensor, shape (B, P) or (B, M, P)
        observed : Tensor of bool, shape (B, P)

        Returns
        -------
        Tensor, shape (B, N) or (B, M, N)
        """
        many = innovation.ndim > observed.ndim
        if self.operator is None:
            gain = torch.where(observed, variance / (variance + self.error_variance()), torch.zeros_like(x))
            return (gain[:, None] if many else gain) * innovation
        size = x.shape[1]
        unit = torch.eye(size, dtype=x.dtype, device=x.device).expand(len(x), size, size)
        slopes = self.operator.tangent(x, unit) * observed[:, None]  # rows of H^T
        weighted = variance.expand(x.shape)[..., None] * slopes
        total = slopes.mT @ weighted + self.covariance_of(observed)
        rows = innovation if many else innovation[:, None]
        solved = torch.linalg.solve(total, (rows * observed[:, None]).mT)
        answer: Tensor = (weighted @ solved).mT
        return answer if many else answer[:, 0]

    def errors_from(self, noise: Tensor, observed: Tensor | None = None) -> Tensor:
        """Turn standard normal noise of shape (..., P) into errors with covariance R, or R of what is observed."""
        if self.std is not None:
            return noise * self.std
        assert self._factor is not None
        if observed is None:
            return noise @ self._factor.T
        colored: Tensor = (self._masked_factor(observed) @ noise[..., None])[..., 0]
        return colored

    def error_variance(self) -> Tensor:
        """Diagonal of R, broadcastable to the observations, (..., P), or (..., K, P) where it differs in time."""
        if self.std is not None:
            return self.std**2
        assert self.covariance is not None
        return self.covariance.diagonal()

    def typical_error(self, climate: Tensor) -> float:
        """Typical standard deviation of an observation of a site, to normalise with.

        With an operator, that of the direction seen best from states of the climate, shape (B, N): the projected
        innovation times its square is then no step too long, lambda_max(H^T R^-1 H)^(-1/2).
        """
        if self.operator is None:
            return math.sqrt(float(self.error_variance().mean()))
        unit = torch.eye(climate.shape[1], dtype=climate.dtype, device=climate.device)
        slopes = self.operator.tangent(climate, unit.expand(len(climate), *unit.shape))
        now = self.at(int(self.std.mean(1).argmin()) if self.in_time and self.std is not None else 0)
        white = now.whiten(slopes, torch.ones_like(slopes[:, 0], dtype=torch.bool))
        return 1.0 / float(torch.linalg.matrix_norm(white, ord=2).max())

    def covariance_of(self, observed: Tensor) -> Tensor:
        """R of the observed sites, unit diagonal elsewhere, shape (..., N, N)."""
        pair = observed[..., :, None] & observed[..., None, :]
        if self.covariance is not None:
            full = self.covariance
        else:
            assert self.std is not None
            full = torch.diag_embed((self.std**2).expand(observed.shape))
        eye = torch.eye(observed.shape[-1], dtype=full.dtype, device=full.device)
        return torch.where(pair, full, eye)

    def whiten(self, v: Tensor, observed: Tensor) -> Tensor:
        """R^{-1/2} H v, with zeros where nothing is observed.

        Parameters
        ----------
        v : Tensor, shape (B, N) or (B, M, N)
            States or anomalies.
        observed : Tensor of bool, shape (B, N)

        Returns
        -------
        Tensor, shape of `v`
            H is the selection of the observed sites; R^{-1/2} is the inverse Cholesky factor.
        """
        rows = observed if v.ndim == observed.ndim else observed[:, None]
        selected = torch.where(rows, v, torch.zeros((), dtype=v.dtype, device=v.device))
        if self.std is not None:
            return selected / self.std
        factor = self._masked_factor(observed)
        columns = selected[..., None] if v.ndim == observed.ndim else selected.mT
        white: Tensor = torch.linalg.solve_triangular(factor, columns, upper=False)
        return white[..., 0] if v.ndim == observed.ndim else white.mT

    def project_innovation(self, innovation: Tensor, observed: Tensor, x: Tensor | None = None) -> Tensor:
        """Projected innovation zeta = H^T R^{-1} (y - H(x_f)) of Eq. 2, zero at sites that nothing observes.

        Parameters
        ----------
        innovation : Tensor, shape (B, P)
            y - H(x_f); read where observed only.
        observed : Tensor of bool, shape (B, P)
        x : Tensor, shape (B, N), optional
            x_f, where a nonlinear H has its adjoint.

        Returns
        -------
        Tensor, shape (B, N)
        """
        weighted = self._precise(innovation, observed)
        if self.operator is None:
            return weighted
        assert x is not None
        return self.operator.adjoint(x, weighted)

    def _precise(self, innovation: Tensor, observed: Tensor) -> Tensor:
        """R^{-1} of what is observed, zero elsewhere."""
        if self.std is not None:
            zero = torch.zeros((), dtype=innovation.dtype, device=innovation.device)
            return torch.where(observed, innovation, zero) / self.std**2
        white = self.whiten(innovation, observed)
        factor = self._masked_factor(observed)
        zeta: Tensor = torch.linalg.solve_triangular(factor.mT, white[..., None], upper=True)
        return zeta[..., 0]

    def _masked_factor(self, observed: Tensor) -> Tensor:
        """Lower Cholesky factor of `covariance_of`, shape (..., N, N)."""
        assert self._factor is not None
        if bool(observed.all()):
            return self._factor
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(self.covariance_of(observed))
        if bool(info.any()):  # rounded, it is not positive definite any more
            assert self._exact is not None
            exact = ObservingSystem(covariance=self._exact)
            factor = torch.linalg.cholesky(exact.covariance_of(observed)).to(factor.dtype)
        return factor


def covariance_factor(label: str, matrix: Tensor) -> Tensor:
    """Lower Cholesky factor of a covariance matrix.

    Parameters
    ----------
    label : str
        What messages call the matrix.
    matrix : Tensor, shape (P, P)

    Raises
    ------
    TypeError
        For what is no tensor of real numbers.
    ValueError
        If it is not square, finite, symmetric relative to its variances, and positive definite in its dtype.
    """
    _check_real(label, matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"{label} has shape {tuple(matrix.shape)}: expected a square matrix")
    if not bool(matrix.isfinite().all()):
        raise ValueError(f"{label} holds values that are not finite: expected a covariance matrix")
    if not is_symmetric(matrix):
        raise ValueError(f"{label} is not symmetric; expected a covariance matrix")
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    singular = 10 * len(matrix) * torch.finfo(matrix.dtype).eps  # of a variance: rounding alone leaves as much
    if int(info) or not bool((_pivots(factor, matrix) ** 2 > singular).all()):
        raise ValueError(f"{label} is not positive definite; expected a covariance matrix of full rank")
    return factor


def is_symmetric(matrix: Tensor) -> bool:
    """Whether the halves of a covariance matrix (P, P) are equal, relative to its standard deviations."""
    deviation = matrix.diagonal().abs().sqrt()
    return not bool(((matrix - matrix.T).abs() > _SYMMETRIC * deviation[:, None] * deviation).any())


def _pivots(factor: Tensor, matrix: Tensor) -> Tensor:
    """Share of each deviation that the variables before it do not tell, shape (P,)."""
    return factor.diagonal() / matrix.diagonal().sqrt()


def _check_real(label: str, value: Any) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else shown(value)
        raise TypeError(f"{label} is {kind}: expected a tensor of real floating-point numbers")


def split_observation(observation: Tensor) -> tuple[Tensor, Tensor]:
    """Values with zeros for NaN, and the mask of what is observed; both of the observation's shape."""
    observed = ~torch.isnan(observation)
    return torch.nan_to_num(observation, nan=0.0), observed


def observe(
    truth: Tensor,
    sites: Sites,
    observing: ObservingSystem,
    trajectory: Tensor,
    time: Tensor,
    seed: int,
) -> Tensor:
    """Observations y = H x + noise of Eq. 1b, NaN where nothing is observed.

    Parameters
    ----------
    truth : Tensor, shape (R, K, N)
        Flattened states.
    trajectory, time : Tensor of int64, shape (R,) and (K,)
        Labels that key the noise and the sites.

    Returns
    -------
    Tensor, shape (R, K, P)

    Raises
    ------
    ValueError
        If the operator gives values that are not finite.
    """
    seen = observing.observe(truth)
    if observing.operator is not None and not bool(seen.isfinite().all()):
        raise ValueError(
            "the observation operator gave values that are not finite at the truth: expected finite ones, as NaN says "
            "that nothing is observed; choose with observe= which observations are made"
        )
    size = seen.shape[-1]
    noise = normal(seed, Purpose.OBSERVATION_ERROR, trajectory, time, size)
    observation = seen + observing.errors_from(
        noise.to(truth)
    )  # (K, P) deviations, one row a time, where they differ in time
    if sites.kind == "all":
        return observation
    mask = sites.mask(size, trajectory, time, seed)
    return torch.where(mask, observation, torch.full((), torch.nan, dtype=truth.dtype, device=truth.device))
