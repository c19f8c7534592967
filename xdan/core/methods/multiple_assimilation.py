"""Ensemble smoother with multiple data assimilation: several steps, each with larger observation errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from ..checks import choice, integer, real, shown
from ..observing import ObservingSystem
from .advancing import advance
from .arguments import number_or_tune
from .declarations import SPREADS, Tunable
from .ensemble import INFLATIONS, Precision, centre, compare
from .finite_size import effective_zeta
from .record import State
from .registry import register_method
from .windowed_ensemble import WindowedEnsemble

UPDATES = ("stochastic", "deterministic")
_SUM = 1e-6  # largest difference between 1 and the sum of the inverse coefficients


@register_method
class ESMDA(WindowedEnsemble):
    """ES-MDA: the members at the start of a window assimilate the observations at its end in several steps.

    Step i assimilates the newest observations with the error covariance alpha_i R, where sum_i 1 / alpha_i = 1. Between
    two steps the members run through the window again, so that each step has sensitivities along a better trajectory.
    In a linear-Gaussian problem all steps together equal one analysis with R. In a nonlinear problem each step is
    short, and the ensemble follows the model better. Older observations were assimilated in earlier cycles, as in the
    IEnKS. In each cycle the model runs through the window once for each step, besides the forecast.

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.
    lag : int
        Number of intervals L of the window, at least 1.
    steps : int or sequence of float
        Number of steps, with equal alpha_i; or the list of the alpha_i, whose inverses add up to 1.
    update : {"stochastic", "deterministic"}
        "stochastic": perturbed observations, drawn anew in each step. "deterministic": the symmetric square root.
    inflation : float or "tune"
        Factor of the analysis anomalies at the start of the window.
    spin_up : int
        Number of first cycles whose inflation comes from the finite-size prior of the EnKF-N.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a size is below its minimum, the inverse coefficients do not add up to 1, or the update is unknown.

    References
    ----------
    Emerick and Reynolds (2013), doi:10.1016/j.cageo.2012.03.011; in a window that slides: Bocquet and Sakov (2014),
    doi:10.1002/qj.2236.
    """

    name: ClassVar[str] = "es-mda"
    tunable: ClassVar[Mapping[str, Tunable]] = {"inflation": INFLATIONS}

    def __init__(
        self,
        members: int = 40,
        lag: int = 1,
        steps: int | Sequence[float] = 4,
        update: str = "stochastic",
        inflation: float | str = 1.01,
        spin_up: int = 100,
    ) -> None:
        super().__init__(members, lag)
        self.steps, self._alphas = _coefficients(steps)
        self.update = choice("update", update, UPDATES)
        self.inflation, self.spin_up = number_or_tune("inflation", inflation), integer("spin_up", spin_up, least=0)
        self.outputs = (*SPREADS, self._window.output, self._window.spread)

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Make all steps, and run the model a last time through the window."""
        m, x, begin = self.members, state["x"], state["begin"]
        steps, dynamics = sum(self._window.counts(state)), self._window.at_begin(state, self.dynamics)
        if bool((state["cycle"] < self.spin_up).any()):
            zeta = effective_zeta(Precision(*compare(x, observation, observed, observing)), m, capped=True)
            factor = ((m - 1) / zeta).sqrt()[:, None, None]
            x, begin = (mean + factor * anomalies for mean, anomalies in (centre(x), centre(begin)))
        noise: Sequence[Tensor | None] = [None] * len(self._alphas)
        if self.update == "stochastic":
            drawn = self.draw(state, len(self._alphas) * m * observation.shape[1])
            noise = list(drawn.reshape(len(x), len(self._alphas), m, -1).unbind(1))
        for k, alpha in enumerate(self._alphas):
            x = advance(dynamics, begin, steps) if k else x
            begin = self._stepped(begin, x, noise[k], alpha, observation, observed, observing)
        mean, anomalies = centre(begin)
        begin = mean + self.number("inflation") * anomalies
        smoothed = {
            "smoothed": self._window.smoothed(state, mean[:, 0]),
            "smoothed_spread": self._window.smoothed(state, anomalies.std(1)),
        }
        return {**state, "x": advance(dynamics, begin, steps), "begin": begin, **smoothed}

    def _stepped(
        self,
        begin: Tensor,
        x: Tensor,
        noise: Tensor | None,
        alpha: float,
        observation: Tensor,
        observed: Tensor,
        observing: ObservingSystem,
    ) -> Tensor:
        """Members (B, M, N) at the window's start after a step with the error covariance alpha R.

        `x` holds the members at the window's end. `noise`, (B, M, P), are standard normal numbers for perturbed
        observations; None for the square root.
        """
        m, (mean, anomalies) = self.members, centre(begin)
        s, innovation = (part / math.sqrt(alpha) for part in compare(x, observation, observed, observing))
        weights, root = Precision(s, innovation).solve(float(m - 1))
        if noise is None:
            return mean + (weights[:, None] + math.sqrt(m - 1) * root) @ anomalies
        _, errors = centre(observing.errors_from(noise))  # the perturbations have zero mean
        errors = math.sqrt(alpha * m / (m - 1)) * errors
        missed = observing.whiten(observation[:, None] + errors - observing.observe(x), observed) / math.sqrt(alpha)
        moved = root @ (root @ (s @ missed.mT))  # column i holds the weights of member i
        return begin + moved.mT @ anomalies


def _coefficients(steps: Any) -> tuple[int | list[float], list[float]]:
    """The argument `steps` as plain JSON, and the list of the alpha_i."""
    if isinstance(steps, (str, bytes, Mapping)) or not isinstance(steps, Sequence):
        try:
            count = integer("steps", steps, least=1)
        except TypeError:
            raise TypeError(
                f"steps={shown(steps)}: expected an integer, at least 1, or a list of coefficients such as [2.0, 2.0]"
            ) from None
        return count, [float(count)] * count
    alphas = [real("steps", alpha, least=1.0) for alpha in steps]
    total = sum(1 / alpha for alpha in alphas)
    if abs(total - 1) > _SUM:
        raise ValueError(
            f"steps={shown(steps)}: the inverses of the coefficients add up to {total:g}; expected 1, as each step "
            "takes a share 1 / alpha of the observations' information"
        )
    return alphas, alphas
