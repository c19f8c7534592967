"""Ensemble filters with tuned or adaptive inflation, and with relaxation of the analysis anomalies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import choice, real, shown
from ..dynamics import Dynamics
from ..observing import ObservingSystem
from .arguments import number_or_tune
from .backward import PRIOR_INFLATION, BackwardPass, EnsembleBackward
from .declarations import Output, Tunable
from .ensemble import INFLATIONS, centre
from .finite_size import InflatedEnsemble
from .record import Record, State

ADAPTIVE = "adaptive"
RELAXATIONS = ("rtps", "rtpp")
_LOWEST, _HIGHEST = 1.0, 25.0  # range of alpha, the adaptive factor of the forecast error covariance
_LEFT_OUT = {"relaxation": None, "relaxation_factor": 0.5, "inflation_std": 0.1}  # config leaves these defaults out


class AdaptiveEnsemble(InflatedEnsemble):
    """An ensemble filter whose inflation is a number, is tuned, or follows the innovations; relaxation is possible.

    A subclass gives `update`, the analysis. `update` multiplies the anomalies by `factor`.

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.
    inflation : float, "tune" or "adaptive"
        Factor by which the analysis anomalies are multiplied. With "adaptive", the forecast anomalies are multiplied
        instead, by the root of alpha. Alpha is a factor of their covariance, estimated in every cycle after `spin_up`.
    spin_up : int
        Number of first cycles whose inflation comes from the finite-size prior of the EnKF-N.
    model_noise : {"draws", "sqrt-core"}
        How the forecast includes the model's errors; see `EnsembleMethod`.
    relaxation : {"rtps", "rtpp"}, optional
        Move the spread ("rtps") or the anomalies ("rtpp") of the analysis back towards the forecast's. By default
        neither.
    relaxation_factor : float or "tune"
        How far the relaxation goes: 0 is the analysis, 1 is the forecast.
    inflation_std : float
        For "adaptive": standard deviation of alpha before the innovations of a cycle are known. With a larger number,
        alpha follows changes faster and has larger random errors.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a number is out of range, a name is unknown, or `relaxation_factor` is "tune" without a relaxation.

    Notes
    -----
    For one observation, let d be the innovation, r the error variance, and v the ensemble's variance of H(x). Each of
    the p observations has E[d^2] = alpha v + r. The innovations of one cycle therefore give the estimate

        alpha_o = (sum d^2 / r - p) / (sum v / r),    var_o = (2 / p) ((alpha_b sum v / r + p) / (sum v / r))^2,

    The factor alpha_b of the previous cycle has the variance var_b = `inflation_std`^2. The new factor is

        alpha = (var_o alpha_b + var_b alpha_o) / (var_o + var_b),

    limited to the range from 1 to 25. With localisation each component has an alpha: its sums weigh each observation by
    the taper.

    "rtps" multiplies the analysis anomalies by 1 + a (s_f / s_a - 1), where s_f and s_a are the spreads of the forecast
    and of the analysis. "rtpp" replaces the analysis anomalies x_a' by (1 - a) x_a' + a x_f'.

    References
    ----------
    Miyoshi (2011), doi:10.1175/2010MWR3570.1, Eq. 10 to 14; Li, Kalnay and Miyoshi (2009), doi:10.1002/qj.371;
    Whitaker and Hamill (2012), doi:10.1175/MWR-D-11-00276.1, for "rtps"; Zhang, Snyder and Sun (2004),
    doi:10.1175/1520-0493(2004)132<1238:IOIEAO>2.0.CO;2, for "rtpp".
    """

    shares: ClassVar[tuple[str, ...]] = ("relaxation_factor",)  # tunable parameters that are at most 1
    tunable: ClassVar[Mapping[str, Tunable]] = {
        "inflation": replace(INFLATIONS, words=(ADAPTIVE,)),
        "relaxation_factor": Tunable(tuple(0.1 * k for k in range(1, 10)), zero=True),
    }

    def __init__(
        self,
        members: int = 40,
        inflation: float | str = 1.01,
        spin_up: int = 100,
        model_noise: str = "draws",
        relaxation: str | None = None,
        relaxation_factor: float | str = 0.5,
        inflation_std: float = 0.1,
    ) -> None:
        adaptive = isinstance(inflation, str) and inflation == ADAPTIVE
        if isinstance(inflation, str) and inflation not in ("tune", ADAPTIVE):
            raise ValueError(f"inflation={shown(inflation)}: expected 'tune', {ADAPTIVE!r} or a positive finite number")
        super().__init__(members, 1.0 if adaptive else inflation, spin_up, model_noise)
        self.inflation = ADAPTIVE if adaptive else self.inflation
        self.relaxation = None if relaxation is None else choice("relaxation", relaxation, RELAXATIONS)
        self.relaxation_factor = number_or_tune("relaxation_factor", relaxation_factor, zero=True)
        if isinstance(self.relaxation_factor, float):
            real("relaxation_factor", self.relaxation_factor, most=1.0)
        elif self.relaxation is None:
            raise ValueError(
                f"relaxation_factor='tune' without a relaxation: expected relaxation= one of {list(RELAXATIONS)}"
            )
        self.inflation_std = real("inflation_std", inflation_std, above=0.0)
        if adaptive:
            what = "inflation of the forecast anomalies, from innovations"
            self.outputs = (*self.outputs, Output("inflation", what, "state" if self.local else "cycle"))

    @property
    def local(self) -> bool:
        """Whether each component has an inflation factor, if the inflation follows the innovations."""
        return False

    @property
    def factor(self) -> float:
        """Inflation of the analysis anomalies. It is 1 if the forecast anomalies are inflated by the innovations."""
        return 1.0 if self.inflation == ADAPTIVE else self.number("inflation")

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters. Defaults of adaptive inflation and relaxation are left out, so old runs can resume."""
        return {name: v for name, v in super().config().items() if name not in _LEFT_OUT or v != _LEFT_OUT[name]}

    def take_candidates(self, candidates: Any) -> None:
        """Set the values that tuning tries. Values of `relaxation_factor` must be at most 1."""
        super().take_candidates(candidates)
        for name in set(self.shares) & set(self.to_tune()):
            for value in self.tried(name):
                real(f"candidates of {name}", value, most=1.0)

    def check_backward(self, dynamics: Dynamics) -> None:
        """Refuse a backward pass over a run with relaxed anomalies."""
        super().check_backward(dynamics)
        if self.relaxation is not None:
            why = f"relaxation={self.relaxation!r} changes the anomalies beside the weights of the members"
            raise ValueError(self.without_backward_pass(why))

    def backward_pass(self, dynamics: Dynamics) -> BackwardPass:
        """Backward pass of an ensemble: the inflation is that of the analysis or that of the forecast."""
        self.check_backward(dynamics)
        return EnsembleBackward(self.factor)

    def start(self, record: Record) -> State:
        """Members, not inflated yet."""
        state = super().start(record)
        if self.inflation != ADAPTIVE:
            return state
        x = state["x"]
        return {**state, "inflation": torch.ones_like(x[:, 0] if self.local else x[:, 0, 0])}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Inflate the forecast if the inflation is adaptive, update it, and relax the anomalies."""
        prior = state
        if self.inflation == ADAPTIVE and not self.spins_up(state):
            prior = self._inflated(state, observation, observed, observing)
        after = self.update(prior, observation, observed, observing)
        if prior is not state and not self.local:
            after = {**after, PRIOR_INFLATION: prior["inflation"]}
        if self.relaxation is None:
            return after
        return {**after, "x": self._relaxed(centre(state["x"])[1], after["x"])}

    @abstractmethod
    def update(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Turn a forecast state into an analysis state, as `analyse`, with the anomalies multiplied by `factor`."""

    def summed(self, values: Tensor, observing: ObservingSystem) -> Tensor:
        """Sums over observations of values (B, P), shape (B,). If inflation is local: weighted sums, shape (B, N)."""
        del observing  # subclasses with localisation read the positions from it
        return values.sum(1)

    def _inflated(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Forecast state whose anomalies are multiplied by the root of the new alpha."""
        mean, anomalies = centre(state["x"])
        seen = observing.observe(state["x"])
        precision = observed / observing.error_variance().to(seen)
        misfit = torch.where(observed, observation - seen.mean(1), 0.0).square() * precision
        spread, count, square = (
            self.summed(part, observing) for part in (seen.var(1) * precision, observed.to(seen), misfit)
        )
        alpha = posterior_inflation(state["inflation"].square(), square, spread, count, self.inflation_std**2)
        root = alpha.sqrt()
        return {**state, "x": mean + root.reshape(len(root), 1, -1) * anomalies, "inflation": root}

    def _relaxed(self, forecast: Tensor, x: Tensor) -> Tensor:
        """Analysis members (B, M, N) whose anomalies are relaxed to forecast anomalies."""
        share, (mean, anomalies) = self.number("relaxation_factor"), centre(x)
        if self.relaxation == "rtpp":
            return mean + (1 - share) * anomalies + share * forecast
        before, after = forecast.std(1), anomalies.std(1)
        ratio = torch.where(after > 0, before / torch.where(after > 0, after, 1.0), 1.0)
        return mean + (1 + share * (ratio - 1))[:, None] * anomalies


def posterior_inflation(alpha: Tensor, square: Tensor, spread: Tensor, count: Tensor, variance: float) -> Tensor:
    """Factor of the forecast error covariance after the innovations of a cycle.

    Parameters
    ----------
    alpha : Tensor
        Factor of the previous cycle.
    square, spread, count : Tensor, shape of `alpha`
        Three sums over the observations: squared innovations divided by error variances; the ensemble's variances
        divided by error variances; the number of observations. Where `spread` and `count` are zero, alpha stays.
    variance : float
        Variance of the previous factor, `inflation_std`^2.

    Returns
    -------
    Tensor, shape of `alpha`
    """
    known = (count > 0) & (spread > 0)
    count, spread = torch.where(known, count, 1.0), torch.where(known, spread, 1.0)
    estimate = (square - count) / spread
    of_estimate = 2 / count * (alpha + count / spread).square()
    after = (of_estimate * alpha + variance * estimate) / (of_estimate + variance)
    return torch.where(known, after.clamp(_LOWEST, _HIGHEST), alpha)
