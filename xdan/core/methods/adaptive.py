"""Ensemble filters whose inflation may follow the innovations, and whose analysis anomalies may be relaxed."""

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
_LOWEST, _HIGHEST = 1.0, 25.0  # of the factor of the forecast error covariance that innovations may ask for
_LEFT_OUT = {"relaxation": None, "relaxation_factor": 0.5, "inflation_std": 0.1}  # defaults, which config leaves out


class AdaptiveEnsemble(InflatedEnsemble):
    """An ensemble filter with an inflation that is a number, tuned, or follows the innovations; or with relaxation.

    A subclass gives `update`, the analysis, and multiplies the anomalies there by `factor`.

    Parameters
    ----------
    members : int
    inflation : float, "tune" or "adaptive"
        Factor of the analysis anomalies. "adaptive" multiplies the forecast anomalies instead, by the root of a factor
        alpha of their covariance, which is estimated at every cycle after the first ones.
    spin_up : int
        First cycles that take the inflation which the finite-size prior asks for.
    model_noise : {"draws", "sqrt-core"}
        How a forecast takes up the model's errors, as for `EnsembleMethod`.
    relaxation : {"rtps", "rtpp"}, optional
        Bring the spread of the analysis ("rtps"), or its anomalies ("rtpp"), back towards those of the forecast.
    relaxation_factor : float or "tune"
        Share of the way back, from 0 to 1.
    inflation_std : float
        Standard deviation of alpha before the innovations of a cycle are seen, for "adaptive". A larger one follows
        faster, and errs more.

    Raises
    ------
    TypeError
        For arguments of another type.
    ValueError
        For a number out of range, an unknown name, or a relaxation to tune where there is none.

    Notes
    -----
    With d the innovation of an observation, r its error variance and v the ensemble's variance of H(x), each of p
    observations has E[d^2] = alpha v + r. The innovations of one cycle so give the estimate

        alpha_o = (sum d^2 / r - p) / (sum v / r),    var_o = (2 / p) ((alpha_b sum v / r + p) / (sum v / r))^2,

    and alpha_b of the cycle before, with the variance var_b = `inflation_std`^2, becomes

        alpha = (var_o alpha_b + var_b alpha_o) / (var_o + var_b),

    between 1 and 25. With localisation each component has an alpha, and the sums are weighed by its taper.

    Relaxation multiplies analysis anomalies by 1 + a (s_f / s_a - 1), with the spreads s_f of the forecast and s_a of
    the analysis ("rtps"), or replaces them by (1 - a) x_a' + a x_f' ("rtpp").

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
        """Whether every component has an inflation, where it follows the innovations."""
        return False

    @property
    def factor(self) -> float:
        """Inflation of the analysis anomalies: 1 where that of the forecast follows the innovations."""
        return 1.0 if self.inflation == ADAPTIVE else self.number("inflation")

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters; runs of before adaptive inflation and relaxation go on."""
        return {name: v for name, v in super().config().items() if name not in _LEFT_OUT or v != _LEFT_OUT[name]}

    def take_candidates(self, candidates: Any) -> None:
        """Set the values to try, as every method does; those of a share are at most 1."""
        super().take_candidates(candidates)
        for name in set(self.shares) & set(self.to_tune()):
            for value in self.tried(name):
                real(f"candidates of {name}", value, most=1.0)

    def check_backward(self, dynamics: Dynamics) -> None:
        """Refuse to go back over a run whose anomalies are relaxed."""
        super().check_backward(dynamics)
        if self.relaxation is not None:
            why = f"relaxation={self.relaxation!r} changes the anomalies beside the weights of the members"
            raise ValueError(self.without_backward_pass(why))

    def backward_pass(self, dynamics: Dynamics) -> BackwardPass:
        """That of members that the analysis has inflated, or whose forecast it has."""
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
        """Inflate the forecast where that is asked for, update it, and relax the anomalies."""
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
        """Sums over observations of values (B, P), shape (B,); where inflation is local, weighed sums (B, N)."""
        del observing  # with localisation it says where observations lie
        return values.sum(1)

    def _inflated(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """A forecast state with anomalies multiplied by the root of a new alpha."""
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
        The factor before.
    square, spread, count : Tensor, shape of `alpha`
        Sums over observations: of squared innovations and of the ensemble's variances, both divided by error variances;
        and the number of observations. Where the last two are zero the factor stays.
    variance : float
        Of the factor before.

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
