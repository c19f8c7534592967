"""The observing system: H and R together, and the projected innovation."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from ..keywords import constructor_checks_keywords
from .covariances import check_real, covariance_factor, pivots
from .operators import Operator
from .positions import InterpolationOperator, Positions

_TIMES = 8  # number of times of a moving H that represent all times
_PIVOTS = 100  # R's scaled pivots must exceed this times the dtype's resolution, or solutions with R lose digits


@constructor_checks_keywords
class ObservingSystem:
    """H and R of y = H(x) + e, e normal with covariance R; P observations of a state of N sites.

    H is the identity on the state's sites, or an operator. R is diagonal or full. A mask (B, P) says which observations
    there are at a time. Rows of H, and rows and columns of R, of missing observations are left out.

    Parameters
    ----------
    std : Tensor, shape () or (P,), or broadcastable to the observations
        Standard deviations of independent errors, in units of the observations. Give either `std` or `covariance`.
    covariance : Tensor, shape (P, P)
        The full covariance R of the observation errors.
    operator : Operator, optional
        Observation operator H. By default the identity: observations are the flattened state's sites, P = N.
    in_time : bool
        Whether the standard deviations differ in time, with shape (K, P) or (K, 1). `at` and `during` select times.
    positions : Positions, optional
        Positions of an operator's observations, for localisation.

    Attributes
    ----------
    differs : bool
        Whether H or R differ in time. It stays True for a system of one time that `at` has selected.

    Raises
    ------
    TypeError
        If an argument is not a tensor of real floating-point numbers.
    ValueError
        If a standard deviation is not positive and finite, or R is not square, symmetric and positive definite.

    Examples
    --------
    >>> import torch, xdan
    >>> observing = xdan.ObservingSystem(std=torch.tensor(0.5))
    >>> x, innovation = torch.zeros(1, 3), torch.tensor([[1.0, 2.0, 3.0]])
    >>> observed = torch.tensor([[True, True, False]])
    >>> observing.project_innovation(innovation, observed, x)  # R^-1 d; zero where nothing is observed
    tensor([[4., 8., 0.]])
    """

    def __init__(
        self,
        std: Tensor | None = None,
        covariance: Tensor | None = None,
        operator: Operator | None = None,
        in_time: bool = False,
        positions: Positions | None = None,
    ) -> None:
        if (std is None) == (covariance is None):
            raise ValueError("expected exactly one of std= and covariance=")
        self.std, self.covariance, self.operator, self.positions = std, covariance, operator, positions
        self.error_in_time = in_time
        self.differs = self.in_time
        self._factor: Tensor | None = None
        self._exact: Tensor | None = None  # R before `to` rounded it
        if std is not None:
            check_real("observation error standard deviation", std)
            positive = (std > 0) & torch.isfinite(std)
            if not bool(positive.all()):
                bad = std[~positive].flatten()[0]
                raise ValueError(f"observation error standard deviation {bad:g}: expected positive finite values")
        if covariance is not None:
            self._factor = covariance_factor("R", covariance)

    @property
    def direct(self) -> bool:
        """Whether the state's sites are observed directly: H is the identity, and P = N."""
        return self.operator is None

    @property
    def in_time(self) -> bool:
        """Whether the system holds H or R for several times, which differ."""
        return self.error_in_time or self.moves or (self.positions is not None and self.positions.times is not None)

    @property
    def moves(self) -> bool:
        """Whether the system holds H for several times."""
        return self.operator is not None and self.operator.moves

    @property
    def linear(self) -> bool:
        """Whether H x is a product with a matrix."""
        return self.operator is None or self.operator.linear

    def as_matrix(self) -> Tensor | None:
        """H as a matrix (P, N), if the operator has one."""
        return None if self.operator is None else self.operator.as_matrix()

    def size(self, sites: int) -> int:
        """Number P of observations for this number of sites."""
        return sites if self.operator is None else self.operator.size

    def to(self, dtype: torch.dtype, device: torch.device | str) -> ObservingSystem:
        """The system with R in another dtype or on another device, and with its H.

        Raises
        ------
        ValueError
            If R loses its digits in the dtype: a variance becomes 0 or infinite, or the matrix nearly singular.
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
            smallest = float(pivots(self._factor, self.covariance).min())
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
        """H and R at time k."""
        return self._picked(k, False) if self.in_time else self

    def during(self, times: slice | Tensor) -> ObservingSystem:
        """H and R at some of the times."""
        return self._picked(times, True) if self.in_time else self

    def at_times(self, times: Tensor) -> ObservingSystem:
        """H and R for a batch whose rows are at these positions in time, int64 of shape (B,)."""
        return self._picked(times, False) if self.in_time else self

    def permuted(self, permutation: Tensor) -> ObservingSystem:
        """R for a state with permuted components, x[..., permutation], whose sites are observed directly."""
        moved = copy.copy(self)
        if self.std is not None and self.std.ndim and self.std.shape[-1] > 1:
            moved.std = self.std[..., permutation]
        for name in ("covariance", "_exact"):
            matrix = getattr(self, name)
            if matrix is not None:
                setattr(moved, name, matrix[permutation][:, permutation])
        if moved.covariance is not None:
            moved._factor = covariance_factor("R", moved.covariance)
        return moved

    def repeat(self, count: int) -> ObservingSystem:
        """H and R for a batch whose rows are repeated, each `count` times in a row."""
        repeated = copy.copy(self)
        if self.std is not None and self.std.ndim > 1:
            repeated.std = self.std.repeat_interleave(count, 0)
        if self.operator is not None:
            repeated.operator = self.operator.repeat(count)
        return repeated

    def _picked(self, times: int | slice | Tensor, in_time: bool) -> ObservingSystem:
        picked = copy.copy(self)
        if self.error_in_time:
            assert self.std is not None
            picked.std, picked.error_in_time = self.std[times], in_time
        if self.operator is not None:
            picked.operator = self.operator.picked(times, in_time)
        if self.positions is not None:
            picked.positions = self.positions.picked(times, in_time)
        return picked

    def kept(self, like: Tensor) -> Tensor | None:
        """What of H and R differs in time, for a method that needs it at later times.

        Parameters
        ----------
        like : Tensor, shape (B, P)
            Observations.

        Returns
        -------
        Tensor, shape (B, P, Q), or None where nothing differs
            `kept_before` makes a system of it.
        """
        if not self.differs:
            return None
        columns = []
        if self.std is not None:
            columns.append(self.std.to(like).expand(like.shape)[..., None])
        if self.operator is not None:
            columns += self.operator.kept(like)
        return torch.cat(columns, -1) if columns else None

    def kept_before(self, kept: Tensor | None) -> ObservingSystem:
        """H and R of the time at which `kept` was called. A standard deviation of zero (no time yet) counts as 1."""
        if kept is None:
            return self
        before, count = copy.copy(self), 0
        if self.std is not None:
            before.std, count = torch.where(kept[..., 0] > 0, kept[..., 0], 1.0), 1
        if self.operator is not None:
            before.operator = self.operator.before(kept[..., count:])
        return before

    def observe(self, x: Tensor) -> Tensor:
        """H(x) of states (..., N), shape (..., P)."""
        return x if self.operator is None else self.operator(x)

    def tangent(self, x: Tensor, directions: Tensor) -> Tensor:
        """H'(x) v: the derivative of H at x (B, N) along directions v (B, M, N), shape (B, M, P)."""
        return directions if self.operator is None else self.operator.tangent(x, directions)

    def adjoint(self, x: Tensor, v: Tensor) -> Tensor:
        """H'(x)^T v for v (B, P) in observation space, at x (B, N), shape (B, N)."""
        return v if self.operator is None else self.operator.adjoint(x, v)

    def observed_covariances(self, x: Tensor, p: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """H P and H P H^T of symmetric P (..., N, N), shapes (..., P, N) and (..., P, P); zero if not observed."""
        if self.operator is None:
            rows = torch.where(observed[..., :, None], p, torch.zeros_like(p))
            return rows, torch.where(observed[..., None, :], rows, torch.zeros_like(p))
        p = p.expand(len(x), *p.shape[-2:])
        rows = self.operator.tangent(x, p).mT * observed[..., None]
        return rows, self.operator.tangent(x, rows) * observed[..., None, :]

    def gain_on_state(self, gain: Tensor, x: Tensor) -> Tensor:
        """K H for a gain (B, N, P) with zero columns for missing observations, shape (B, N, N)."""
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
            State at which H is linearised.
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
        seen, onto_state = self.operator.spread(x, variance, observed)
        rows = innovation if many else innovation[:, None]
        solved = torch.linalg.solve(seen + self.covariance_of(observed), (rows * observed[:, None]).mT)
        answer = onto_state(solved)
        return answer if many else answer[:, 0]

    def errors_from(self, noise: Tensor, observed: Tensor | None = None) -> Tensor:
        """Turn standard normal noise of shape (..., P) into errors with covariance R, or R of the observed part."""
        if self.std is not None:
            return noise * self.std
        assert self._factor is not None
        if observed is None:
            return noise @ self._factor.T
        colored: Tensor = (self._masked_factor(observed) @ noise[..., None])[..., 0]
        return colored

    def independent(self) -> ObservingSystem | None:
        """The system with standard deviations in the place of a covariance; None if errors are correlated."""
        if self.covariance is None:
            return self
        variance = self.covariance.diagonal()
        if bool((self.covariance != torch.diag_embed(variance)).any()):
            return None
        plain = copy.copy(self)
        plain.covariance = plain._factor = plain._exact = None
        plain.std = variance.sqrt()
        return plain

    def error_variance(self) -> Tensor:
        """Diagonal of R, broadcastable to the observations: (..., P), or (..., K, P) if it differs in time."""
        if self.std is not None:
            return self.std**2
        assert self.covariance is not None
        return self.covariance.diagonal()

    def typical_error(self, climate: Tensor, part: slice | None = None) -> float:
        """Typical standard deviation of an observation error at a site, for normalisation, in the state's units.

        Parameters
        ----------
        climate : Tensor, shape (B, N)
            States of the climate, at which H is linearised. They are used if there is an operator.
        part : slice, optional
            Components of the field whose error is wanted; by default all components.

        Returns
        -------
        float
            Root of the mean variance in R. With an operator: lambda_max(H^T R^-1 H)^(-1/2), the standard deviation of
            the direction that is observed best. Then a step of the projected innovation times its square is not too
            long. Infinite for components that the operator does not observe.
        """
        if self.operator is None:
            variance = self.error_variance()
            if part is not None:
                variance = variance.expand(*variance.shape[:-1], climate.shape[1])[..., part]
            return math.sqrt(float(variance.mean()))
        now = self.at(int(self.std.mean(1).argmin()) if self.error_in_time and self.std is not None else 0)
        assert now.operator is not None
        if isinstance(now.operator, InterpolationOperator):
            state = climate[:1]
            every = torch.ones(1, now.operator.size, dtype=torch.bool, device=climate.device)
            variance = torch.zeros_like(state) if part is not None else torch.ones_like(state)
            variance[:, slice(None) if part is None else part] = 1.0
            square = now.operator.spread(state, variance, every)[0]
            white = now.whiten(now.whiten(square, every).mT, every)
            largest = math.sqrt(float(torch.linalg.matrix_norm(white, ord=2).max()))
            return 1.0 / largest if largest > 0 or part is None else math.inf
        unit = torch.eye(climate.shape[1], dtype=climate.dtype, device=climate.device)
        slopes = now.operator.tangent(climate, unit.expand(len(climate), *unit.shape))
        white = now.whiten(slopes, torch.ones_like(slopes[:, 0], dtype=torch.bool))
        seen = float(torch.linalg.matrix_norm(white if part is None else white[:, part], ord=2).max())
        return 1.0 / seen if seen > 0 or part is None else math.inf

    def climate_variance(self, states: Tensor) -> Tensor:
        """Variance of H(x) over states (S, N), shape (P,). If H moves: its mean over some times, shape ()."""
        if not self.moves:
            return self.observe(states).var(0)
        return torch.stack([self.at(k).observe(states).var(0).mean() for k in self.telling_times()]).mean()

    def telling_times(self) -> list[int]:
        """Positions of times that represent all times: those at which R differs, and some of a moving H."""
        times: list[int] = [0]
        if self.operator is not None and self.operator.times is not None:
            times = torch.linspace(0, self.operator.times - 1, _TIMES).round().long().tolist()
        if self.error_in_time and self.std is not None:
            _, which = self.std.unique(dim=0, return_inverse=True)
            first = torch.full((int(which.max()) + 1,), len(which), device=which.device)
            times += first.scatter_reduce(0, which, torch.arange(len(which), device=which.device), "amin").tolist()
        return sorted(set(times))

    def covariance_of(self, observed: Tensor) -> Tensor:
        """R of the observations with mask (..., P), with unit diagonal elsewhere, shape (..., P, P)."""
        pair = observed[..., :, None] & observed[..., None, :]
        if self.covariance is not None:
            full = self.covariance
        else:
            assert self.std is not None
            full = torch.diag_embed((self.std**2).expand(observed.shape))
        eye = torch.eye(observed.shape[-1], dtype=full.dtype, device=full.device)
        return torch.where(pair, full, eye)

    def whiten(self, v: Tensor, observed: Tensor) -> Tensor:
        """R^{-1/2} v for v in observation space, with zeros where nothing is observed.

        Parameters
        ----------
        v : Tensor, shape (B, P) or (B, M, P)
            Innovations, or anomalies H(x).
        observed : Tensor of bool, shape (B, P)

        Returns
        -------
        Tensor, shape of `v`
            R^{-1/2} is the inverse of the lower Cholesky factor of R, restricted to the observations.
        """
        rows = observed if v.ndim == observed.ndim else observed[:, None]
        selected = torch.where(rows, v, torch.zeros((), dtype=v.dtype, device=v.device))
        if self.std is not None:
            # Standard deviations of rows (B, P) are the same for all members of a row.
            return selected / (self.std[:, None] if v.ndim > observed.ndim and self.std.ndim == 2 else self.std)
        factor = self._masked_factor(observed)
        columns = selected[..., None] if v.ndim == observed.ndim else selected.mT
        white: Tensor = torch.linalg.solve_triangular(factor, columns, upper=False)
        return white[..., 0] if v.ndim == observed.ndim else white.mT

    def project_innovation(self, innovation: Tensor, observed: Tensor, x: Tensor | None = None) -> Tensor:
        """Projected innovation zeta = H^T R^{-1} (y - H(x_f)) of Eq. 2. It is zero at sites without observations.

        Parameters
        ----------
        innovation : Tensor, shape (B, P)
            y - H(x_f). Only observed entries are used.
        observed : Tensor of bool, shape (B, P)
        x : Tensor, shape (B, N), optional
            x_f, at which a nonlinear H is linearised.

        Returns
        -------
        Tensor, shape (B, N)
        """
        weighted = self._weigh(innovation, observed)
        if x is None:
            assert self.direct
            return weighted
        return self.adjoint(x, weighted)

    def _weigh(self, innovation: Tensor, observed: Tensor) -> Tensor:
        """R^{-1} d of the observations (B, P), and zero elsewhere."""
        if self.std is not None:
            zero = torch.zeros((), dtype=innovation.dtype, device=innovation.device)
            return torch.where(observed, innovation, zero) / self.std**2
        white = self.whiten(innovation, observed)
        factor = self._masked_factor(observed)
        zeta: Tensor = torch.linalg.solve_triangular(factor.mT, white[..., None], upper=True)
        return zeta[..., 0]

    def _masked_factor(self, observed: Tensor) -> Tensor:
        """Lower Cholesky factor of `covariance_of`, shape (..., P, P)."""
        assert self._factor is not None
        if bool(observed.all()):
            return self._factor
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(self.covariance_of(observed))
        if bool(info.any()):  # after rounding, R is no longer positive definite
            assert self._exact is not None
            exact = ObservingSystem(covariance=self._exact)
            factor = torch.linalg.cholesky(exact.covariance_of(observed)).to(factor.dtype)
        return factor
