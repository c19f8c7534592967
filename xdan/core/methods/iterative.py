"""The iterative ensemble Kalman smoother, and the filter that is its shortest window."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..observing import ErrorCovariance
from .base import Method, Record, State, advance, register_method
from .ensemble import INFLATIONS, EnsembleMethod, Precision, centre, check_inflation
from .finite_size import effective_zeta

VARIANTS = ("transform", "bundle")
_BUNDLE = 1e-4


@register_method("ienks")
class IterativeEnKS(EnsembleMethod):
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
        Limit. A trajectory that reaches it is flagged `unconverged` from then on.

    Raises
    ------
    ValueError
        For sizes below their minimum, an unknown variant, or inflation beside `finite_size`.

    References
    ----------
    Sakov, Oliver and Bertino (2012), doi:10.1175/MWR-D-11-00176.1; Bocquet and Sakov (2012),
    doi:10.5194/npg-19-383-2012; (2014), doi:10.1002/qj.2236.
    """

    outputs: ClassVar[dict[str, str]] = {
        **EnsembleMethod.outputs,
        "smoothed": "site",
        "inflation": "cycle",
        "iterations": "cycle",
        "unconverged": "cycle",
    }
    tunable: ClassVar[dict[str, tuple[float, ...]]] = {"inflation": INFLATIONS}

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
        super().__init__(members)
        if lag < 1:
            raise ValueError(f"lag={lag}: expected at least 1 interval (1 is the iterative EnKF)")
        if variant not in VARIANTS:
            raise ValueError(f"variant={variant!r}: expected one of {VARIANTS}")
        if not tolerance > 0 or iterations < 1:
            raise ValueError(f"tolerance={tolerance}, iterations={iterations}: expected positive numbers")
        if finite_size and inflation != 1.0:
            raise ValueError(f"inflation={inflation!r} with finite_size=True: expected one of the two")
        self.lag, self.inflation, self.finite_size = int(lag), check_inflation(inflation), bool(finite_size)
        self.capped, self.variant = bool(capped), variant
        self.tolerance, self.iterations = float(tolerance), int(iterations)

    def parameters(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        names = ("members", "lag", "inflation", "finite_size", "capped", "variant", "tolerance", "iterations")
        return {name: getattr(self, name) for name in names}

    def prepare(self, record: Record) -> Method:
        """Bind the dynamics, and tune.

        Raises
        ------
        ValueError
            If the record is shorter than the lag.
        """
        if record.observation.shape[1] <= self.lag:
            raise ValueError(
                f"lag={self.lag}: the record has {record.observation.shape[1]} times; expected more than the lag"
            )
        return super().prepare(record)

    def start(self, record: Record) -> State:
        """Members from the climatology; the window has no length yet."""
        state = super().start(record)
        x = state["x"]
        zero = x.new_zeros(len(x))
        steps = torch.zeros(len(x), self.lag, dtype=torch.int64, device=x.device)
        more = {"inflation": zero + 1, "iterations": zero, "unconverged": zero}
        return {**state, "begin": x, "steps": steps, "smoothed": torch.full_like(x[:, 0], torch.nan), **more}

    def first(self, state: State, observation: Tensor, observed: Tensor, error: ErrorCovariance) -> State:
        """Start as every ensemble does; the window begins here."""
        after = super().first(state, observation, observed, error)
        return {**after, "begin": after["x"]}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the members, and the start of the window where it is full."""
        first = int(state["steps"][0, 0])
        begin = advance(dynamics, state["begin"], first)
        newest = torch.full_like(state["steps"][:, :1], steps)
        after = torch.cat([state["steps"][:, 1:], newest], 1)
        return {**state, "x": advance(dynamics, state["x"], steps), "begin": begin, "steps": after}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, error: ErrorCovariance) -> State:
        """Gauss-Newton until every trajectory has converged; those that have stay as they are."""
        m = self.members
        steps = int(state["steps"][0].sum())
        mean, anomalies = centre(state["begin"])
        batch = len(mean)
        identity = torch.eye(m, dtype=mean.dtype, device=mean.device).expand(batch, m, m)
        weights, root, back = mean.new_zeros(batch, m), identity, identity
        zeta = mean.new_full((batch,), float(m - 1))
        active = torch.ones(batch, dtype=torch.bool, device=mean.device)
        broken = ~active
        count = mean.new_zeros(batch)
        x = state["x"]  # the forecast is the propagation at weights of zero
        for iteration in range(self.iterations):
            if iteration:
                inside = root if self.variant == "transform" else _BUNDLE * identity
                x = self._propagate(mean + (weights[:, None] + inside) @ anomalies, steps, active, x)
            lost = ~x.isfinite().flatten(1).all(1)  # a step too far: the run out of the window's start broke down
            broken, active = broken | lost, active & ~lost
            x = torch.where(lost[:, None, None], torch.zeros_like(x), x)
            centred, deviation = centre(x)
            s = error.whiten(deviation, observed)
            if iteration:
                s = back @ s if self.variant == "transform" else s / _BUNDLE
            # The innovation carried back along the tangent to weights of zero: each step is an EnKF(-N) analysis.
            innovation = error.whiten(observation - centred[:, 0], observed) + (weights[:, None] @ s)[:, 0]
            precision = Precision(s, innovation)
            new_zeta = effective_zeta(precision, m, self.capped) if self.finite_size else zeta
            new_weights, inverse_root = precision.solve(new_zeta)
            moved = (new_weights - weights).detach().square().mean(1).sqrt()
            rows = active[:, None, None]
            zeta = torch.where(active, new_zeta, zeta)
            weights = torch.where(active[:, None], new_weights, weights)
            root = torch.where(rows, math.sqrt(m - 1) * inverse_root, root)
            if self.variant == "transform":
                back = torch.where(rows, precision.at(new_zeta) @ inverse_root / math.sqrt(m - 1), back)
            count = count + active
            active = active & ~(moved < self.tolerance)
            if steps == 0:  # nothing between the window's ends: linear
                active = torch.zeros_like(active)
            if not bool(active.any()):
                break
        x0 = mean + weights[:, None] @ anomalies
        begin = x0 + self.number("inflation") * root @ anomalies
        end = advance(self.dynamics, begin, steps)
        return {
            **state,
            "x": torch.where(broken[:, None, None], torch.full_like(end, torch.nan), end),
            "begin": begin,
            "smoothed": x0[:, 0] if bool(state["steps"][0, 0]) else torch.full_like(x0[:, 0], torch.nan),
            "inflation": ((m - 1) / zeta).sqrt() * self.number("inflation"),
            "iterations": count,
            "unconverged": torch.maximum(state["unconverged"], active.to(count.dtype)),
        }

    def _propagate(self, begin: Tensor, steps: int, active: Tensor, x: Tensor) -> Tensor:
        """Members at the end of the window, of the active trajectories; the others stay."""
        if bool(active.all()):
            return advance(self.dynamics, begin, steps)
        rows = active.nonzero()[:, 0]
        return x.index_copy(0, rows, advance(self.dynamics, begin[rows], steps))

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Spread, smoothed mean, inflation, iterations and the flag."""
        names = ("smoothed", "inflation", "iterations", "unconverged")
        return {**super().analysis_outputs(state), **{name: state[name] for name in names}}


@register_method("ienkf")
class IterativeEnKF(IterativeEnKS):
    """Iterative EnKF: the IEnKS with a lag of one interval."""

    def __init__(self, members: int = 40, **parameters: Any) -> None:
        if "lag" in parameters:
            raise ValueError(f"the iterative EnKF has a lag of 1; take {self.name.replace('kf', 'ks')!r} for another")
        super().__init__(members, **parameters)


@register_method("ienks-n")
class FiniteSizeIEnKS(IterativeEnKS):
    """IEnKS-N: no inflation to tune."""

    def __init__(self, members: int = 40, lag: int = 1, **parameters: Any) -> None:
        super().__init__(members, lag, finite_size=True, **parameters)


@register_method("ienkf-n")
class FiniteSizeIEnKF(IterativeEnKF):
    """IEnKF-N: the IEnKS-N with a lag of one interval."""

    def __init__(self, members: int = 40, **parameters: Any) -> None:
        super().__init__(members, finite_size=True, **parameters)
