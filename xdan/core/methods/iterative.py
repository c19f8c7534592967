"""The iterative ensemble Kalman smoother, and the filter that is its shortest window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import choice, integer, real, shown, switch
from ..observing import ObservingSystem
from .advancing import advance
from .arguments import number_or_tune
from .declarations import INFLATION, ITERATIONS, SPREADS, UNCONVERGED, Tunable
from .ensemble import INFLATIONS, Precision, centre, compare
from .iterates import Iterate
from .record import Record, State
from .registry import register_method
from .windowed_ensemble import WindowedEnsemble

VARIANTS = ("transform", "bundle")
_BUNDLE = 1e-4  # of the analysis spread: how far the members of a bundle are apart


@dataclass(frozen=True, kw_only=True)
class _Iterate(Iterate):
    """An iterate with the Hessian at its weights, those of M members.

    Attributes
    ----------
    root, back : Tensor, shape (B, M, M)
        Inverse square root of the Hessian there, scaled to be 1 for the prior; and its inverse.
    zeta : Tensor, shape (B,)
        Weight of the prior.
    """

    root: Tensor
    back: Tensor
    zeta: Tensor

    @classmethod
    def zero(cls, weights: Tensor) -> _Iterate:
        """Weights of zero (B, M) and the prior's own anomalies."""
        batch, m = weights.shape
        one = weights.new_ones(batch)
        identity = torch.eye(m, dtype=weights.dtype, device=weights.device).expand(batch, m, m)
        numbers = {"zeta": (m - 1) * one, "cost": torch.inf * one, "scale": one, "count": 0 * one}
        return cls(weights=weights, target=weights, root=identity, back=identity, **numbers)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


@register_method
class IterativeEnKS(WindowedEnsemble):
    """IEnKS: Gauss-Newton in the space of the members over a window of intervals, shifted by one a cycle.

    The members at the start of the window are moved until the newest observations at its end are met; older ones were
    assimilated before (single data assimilation). With a lag of one interval it is the iterative EnKF.

    Parameters
    ----------
    members : int
    lag : int
        L, intervals of the window, at least 1.
    inflation : float or "tune"
        Factor of the analysis anomalies at the start of the window. Not with `finite_size`.
    finite_size : bool
        Replace inflation by the finite-size prior (IEnKS-N).
    capped : bool
        As for "enkf-n".
    variant : {"transform", "bundle"}
        How sensitivities are estimated: with members that have the analysis spread, or with close ones.
    tolerance : float
        Gauss-Newton stops when the root mean square of the step of the weights is below this.
    iterations : int
        Limit. An analysis that reaches it is flagged `unconverged`.

    Raises
    ------
    TypeError
        For arguments of another type.
    ValueError
        For sizes below their minimum, an unknown variant, or inflation beside `finite_size`.

    References
    ----------
    Sakov, Oliver and Bertino (2012), doi:10.1175/MWR-D-11-00176.1; Bocquet and Sakov (2012),
    doi:10.5194/npg-19-383-2012; (2014), doi:10.1002/qj.2236.
    """

    name: ClassVar[str] = "ienks"
    tunable: ClassVar[Mapping[str, Tunable]] = {"inflation": INFLATIONS}

    def __init__(
        self,
        members: int = 40,
        lag: int = 1,
        inflation: float | str = 1.0,
        finite_size: bool = False,
        capped: bool = True,
        variant: str = "transform",
        tolerance: float = 1e-3,
        iterations: int = 10,
    ) -> None:
        super().__init__(members, lag)
        self.inflation = number_or_tune("inflation", inflation)
        self.finite_size, self.capped = switch("finite_size", finite_size), switch("capped", capped)
        self.variant = choice("variant", variant, VARIANTS)
        self.tolerance = real("tolerance", tolerance, above=0.0)
        self.iterations = integer("iterations", iterations, least=1)
        if self.finite_size and self.inflation != 1.0:
            raise ValueError(f"inflation={inflation!r} with finite_size=True: expected one of the two")
        self.outputs = (*SPREADS, self._window.output, self._window.spread, INFLATION, ITERATIONS, UNCONVERGED)

    @classmethod
    def _refuse(cls, parameters: Mapping[str, Any]) -> None:
        """Refuse parameters that the class sets for good."""
        for name, value in cls.fixed.items():
            if name in parameters:
                raise ValueError(
                    f"{name}={shown(parameters[name])}: {cls.name!r} has a {name} of {value!r}, expected no other; "
                    "take 'ienks' to choose it"
                )

    def start(self, record: Record) -> State:
        """Members from the climatology; the window has no length yet."""
        state = super().start(record)
        zero = state["x"].new_zeros(len(state["x"]))
        return {**state, "inflation": zero + 1, "iterations": zero, "unconverged": zero}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Damped Gauss-Newton until every trajectory has converged; those that have stay as they are."""
        m = self.members
        steps, dynamics = sum(self._window.counts(state)), self._window.at_begin(state, self.dynamics)
        mean, anomalies = centre(state["begin"])
        batch = len(mean)
        at = _Iterate.zero(mean.new_zeros(batch, m))
        trial = at.weights
        active = torch.arange(batch, device=mean.device)
        lost = torch.zeros(batch, dtype=torch.bool, device=mean.device)
        x = state["x"]  # the forecast is the propagation at weights of zero
        for iteration in range(self.iterations):
            now = at.rows(active)
            if iteration:
                inside = now.root if self.variant == "transform" else _BUNDLE * _identity(now.root)
                x = advance(dynamics, mean[active] + (trial[:, None] + inside) @ anomalies[active], steps)
            finite = x.isfinite().flatten(1).all(1)
            if not iteration:
                lost = ~finite
            s, missed = compare(
                torch.where(finite[:, None, None], x, 0.0), observation[active], observed[active], observing
            )
            if iteration:
                s = now.back @ s if self.variant == "transform" else s / _BUNDLE
            tried = self._linearised(trial, s, missed, now.count + 1)
            # A step that does not bring the cost down is halved: the tangent was followed too far.
            slack = math.sqrt(torch.finfo(tried.cost.dtype).eps) * now.cost.abs()
            better = finite & (tried.cost <= now.cost + torch.nan_to_num(slack, posinf=0.0))
            now = tried.where(better, now.halved())
            at = now if len(active) == batch else at.replaced(active, now)
            moved = now.scale * (now.target - now.weights).detach().square().mean(1).sqrt()
            going = (moved >= self.tolerance) & ~lost[active]
            active, now = active[going], now.rows(going)
            if not len(active):
                break
            trial = now.weights + now.scale[:, None] * (now.target - now.weights)
        unconverged = torch.zeros_like(lost).index_fill(0, active, True)
        # Where the limit was reached, the best of all iterates.
        weights = torch.where(unconverged[:, None], at.weights, at.target)
        x0 = mean + weights[:, None] @ anomalies
        begin = x0 + self.number("inflation") * at.root @ anomalies
        end = advance(dynamics, begin, steps)
        return {
            **state,
            "x": torch.where(lost[:, None, None], torch.full_like(end, torch.nan), end),
            "begin": begin,
            "smoothed": self._window.smoothed(state, x0[:, 0]),
            "smoothed_spread": self._window.smoothed(state, (at.root @ anomalies).std(1)),
            "inflation": ((m - 1) / at.zeta).sqrt() * self.number("inflation"),
            "iterations": at.count,
            "unconverged": unconverged.to(at.count.dtype),
        }

    def _linearised(self, weights: Tensor, s: Tensor, missed: Tensor, count: Tensor) -> _Iterate:
        """Cost and Hessian at weights (B, M), and where the linearised problem has its minimum.

        Parameters
        ----------
        weights : Tensor, shape (B, M)
        s : Tensor, shape (B, M, P)
            Whitened anomalies of H(x) at the window's end, for a unit change of each weight.
        missed : Tensor, shape (B, P)
            Whitened innovation of the mean there.
        count : Tensor, shape (B,)
            Runs over the window.
        """
        size = self.members - 1
        zeta = self._zeta(weights)
        cost = self._cost(missed, weights, zeta)
        # The innovation carried back along the tangent to weights of zero: each step is an EnKF(-N) analysis.
        precision = Precision(s, missed + (weights[:, None] @ s)[:, 0])
        target, inverse_root = precision.solve(zeta)
        root, back = math.sqrt(size) * inverse_root, precision.at(zeta) @ inverse_root / math.sqrt(size)
        numbers = {"zeta": zeta, "cost": cost, "scale": torch.ones_like(cost), "count": count}
        return _Iterate(weights=weights, target=target, root=root, back=back, **numbers)

    def _zeta(self, weights: Tensor) -> Tensor:
        """Weight of the prior, shape (B,): M - 1, or what the finite-size prior gives at these weights.

        Not the dual minimum of the linearised problem, which has the same fixed point: over long windows its first
        step goes where the tangent is not valid, and ends in another minimum.
        """
        m = self.members
        square = weights.square().sum(1)
        if not self.finite_size:
            return torch.full_like(square, m - 1.0)
        zeta = (m + 1) / (m / (m - 1) + square)
        return zeta.clamp_max(m - 1.0) if self.capped else zeta

    def _cost(self, missed: Tensor, weights: Tensor, zeta: Tensor) -> Tensor:
        """Cost of weights that leave a whitened innovation, shape (B,)."""
        m = self.members
        prior = zeta * weights.square().sum(1)
        if self.finite_size:
            # Smallest over zeta, in the range that is allowed: the primal cost where it is free.
            prior = prior + zeta * m / (m - 1) - (m + 1) * zeta.log()
        return (0.5 * (missed.square().sum(1) + prior)).detach()


@register_method
class IterativeEnKF(IterativeEnKS):
    """Iterative EnKF: the IEnKS with a lag of one interval."""

    name: ClassVar[str] = "ienkf"
    fixed: ClassVar[Mapping[str, Any]] = {"lag": 1}

    def __init__(self, members: int = 40, **parameters: Any) -> None:
        self._refuse(parameters)
        super().__init__(members, **self.fixed, **parameters)


@register_method
class FiniteSizeIEnKS(IterativeEnKS):
    """IEnKS-N: no inflation to tune."""

    name: ClassVar[str] = "ienks-n"
    fixed: ClassVar[Mapping[str, Any]] = {"finite_size": True}

    def __init__(self, members: int = 40, lag: int = 1, **parameters: Any) -> None:
        self._refuse(parameters)
        super().__init__(members, lag, **self.fixed, **parameters)


@register_method
class FiniteSizeIEnKF(IterativeEnKS):
    """IEnKF-N: the IEnKS-N with a lag of one interval."""

    name: ClassVar[str] = "ienkf-n"
    fixed: ClassVar[Mapping[str, Any]] = {"lag": 1, "finite_size": True}

    def __init__(self, members: int = 40, **parameters: Any) -> None:
        self._refuse(parameters)
        super().__init__(members, **self.fixed, **parameters)
