"""The iterative ensemble Kalman smoother, and the iterative filter, which has the shortest window."""

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
_BUNDLE = 1e-4  # distance between the members of a bundle, in analysis spreads


@dataclass(frozen=True, kw_only=True)
class _Iterate(Iterate):
    """An iterate with the Hessian of M weights.

    Attributes
    ----------
    root, back : Tensor, shape (B, M, M)
        Inverse square root of the Hessian at the weights, scaled such that it is 1 for the prior; and its inverse.
    zeta : Tensor, shape (B,)
        Weight zeta of the prior.
    """

    root: Tensor
    back: Tensor
    zeta: Tensor

    @classmethod
    def zero(cls, weights: Tensor) -> _Iterate:
        """Zero weights (B, M), with the anomalies of the prior."""
        batch, m = weights.shape
        ones = weights.new_ones(batch)
        identity = torch.eye(m, dtype=weights.dtype, device=weights.device).expand(batch, m, m)
        numbers = {"zeta": (m - 1) * ones, "cost": torch.inf * ones, "scale": ones, "count": 0 * ones}
        return cls(weights=weights, target=weights, root=identity, back=identity, **numbers)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


@register_method
class IterativeEnKS(WindowedEnsemble):
    """IEnKS: Gauss-Newton in the space of the members, over a window that moves by one interval in each cycle.

    The members at the start of the window are moved until they fit the newest observations, at its end. The older
    observations were assimilated in earlier cycles (single data assimilation). With a lag of one interval this is the
    iterative EnKF.

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.
    lag : int
        Number of intervals L of the window, at least 1.
    inflation : float or "tune"
        Factor of the analysis anomalies at the start of the window. Do not combine it with `finite_size`.
    finite_size : bool
        Replace inflation by the finite-size prior (IEnKS-N).
    capped : bool
        See "enkf-n".
    variant : {"transform", "bundle"}
        How sensitivities are estimated: by members with the analysis spread, or by a bundle of close members.
    tolerance : float
        Gauss-Newton stops if the root mean square of the step of the weights is below this.
    iterations : int
        Largest number of iterations. An analysis that reaches it is flagged `unconverged`.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a size is below its minimum, the variant is unknown, or inflation and `finite_size` are combined.

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
        """Refuse parameters that the class sets once and for all."""
        for name, value in cls.fixed.items():
            if name in parameters:
                raise ValueError(
                    f"{name}={shown(parameters[name])}: {cls.name!r} has a {name} of {value!r}, expected no other; "
                    "take 'ienks' to choose it"
                )

    def start(self, record: Record) -> State:
        """Members from the climatology; the window has no intervals yet."""
        state = super().start(record)
        zero = state["x"].new_zeros(len(state["x"]))
        return {**state, "inflation": zero + 1, "iterations": zero, "unconverged": zero}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Damped Gauss-Newton until every trajectory has converged. Converged trajectories do not change any more."""
        m = self.members
        steps, dynamics = sum(self._window.counts(state)), self._window.at_begin(state, self.dynamics)
        mean, anomalies = centre(state["begin"])
        batch = len(mean)
        at = _Iterate.zero(mean.new_zeros(batch, m))
        trial = at.weights
        active = torch.arange(batch, device=mean.device)
        lost = torch.zeros(batch, dtype=torch.bool, device=mean.device)
        x = state["x"]  # the forecast is the run through the window with zero weights
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
            # If a step does not reduce the cost, it is halved: the linearisation does not hold so far away.
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
        # A trajectory that reached the limit takes the best of all its iterates.
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
        """Cost and Hessian at weights (B, M), and the weights at the minimum of the linearised problem.

        Parameters
        ----------
        weights : Tensor, shape (B, M)
        s : Tensor, shape (B, M, P)
            Whitened anomalies of H(x) at the window's end, for a unit change of each weight.
        missed : Tensor, shape (B, P)
            Whitened innovation of the mean at the window's end.
        count : Tensor, shape (B,)
            Number of runs over the window.
        """
        size = self.members - 1
        zeta = self._zeta(weights)
        cost = self._cost(missed, weights, zeta)
        # The innovation is extrapolated linearly to zero weights: each step is then an analysis of the EnKF(-N).
        precision = Precision(s, missed + (weights[:, None] @ s)[:, 0])
        target, inverse_root = precision.solve(zeta)
        root, back = math.sqrt(size) * inverse_root, precision.at(zeta) @ inverse_root / math.sqrt(size)
        numbers = {"zeta": zeta, "cost": cost, "scale": torch.ones_like(cost), "count": count}
        return _Iterate(weights=weights, target=target, root=root, back=back, **numbers)

    def _zeta(self, weights: Tensor) -> Tensor:
        """Weight of the prior, shape (B,): M - 1, or the zeta of the finite-size prior at these weights.

        The dual minimum of the linearised problem has the same fixed point, but is not used. Over long windows its
        first step goes where the linearisation does not hold, and the iteration ends in another minimum.
        """
        m = self.members
        square = weights.square().sum(1)
        if not self.finite_size:
            return torch.full_like(square, m - 1.0)
        zeta = (m + 1) / (m / (m - 1) + square)
        return zeta.clamp_max(m - 1.0) if self.capped else zeta

    def _cost(self, missed: Tensor, weights: Tensor, zeta: Tensor) -> Tensor:
        """Cost, shape (B,), of weights that leave a whitened innovation `missed`."""
        m = self.members
        prior = zeta * weights.square().sum(1)
        if self.finite_size:
            # The cost is minimal over the zeta that are allowed. Without a cap this is the primal cost.
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
    """IEnKS-N: the IEnKS with the finite-size prior, so that no inflation has to be tuned."""

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
