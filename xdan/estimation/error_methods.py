"""The three ways to estimate Q and R: what each repeats, when it ends, and its result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from dask.delayed import Delayed

from ..assimilation.schemes import Scheme
from ..core.estimation import desroziers
from ..core.estimation import expectation_maximisation as em
from ..core.estimation.structures import Structure
from ..records.blocks import block
from ..records.checkpoint import Checkpoint
from ..records.schema import Array
from .error_passes import Estimate, Passes

_FAR = 1e8  # factor of the variances at the start, up or down, beyond which an estimate has diverged
_RISE = 1e-9  # relative change of a log-likelihood that counts as rounding
_NATS = 5.0  # factor of the tolerance: a log-likelihood that can rise by less has reached its maximum

maximised = block(em.maximised_both)
accelerated = block(em.accelerated)
numbers_of = block(em.numbers_of)
errors_of_scores = block(em.standard_errors)
observation_errors = block(desroziers.observation_errors)
errors_of_statistics = block(desroziers.standard_errors)


@dataclass
class Outcome:
    """The result of an estimation.

    Attributes
    ----------
    model, observation : list of array
        History of Q and of R: variances (n,) or covariances (n, n). The last is the estimate.
    series : dict of str to list of float
        Further numbers of every entry of the history, by the names of their variables.
    errors : dict of str to array
        Standard errors of the estimated variances or covariances.
    spread : dict of str to array
        Standard errors of every entry of the history, if they are known.
    forecast : array, optional
        Variances of the forecast's errors in the space of observations.
    diverged, converged : bool
    passes : int
        Number of passes over the record.
    rate : float
        Factor by which changes shrink from one M step to the next.
    texts : list of str
        Sentences of the warnings.
    """

    model: list[Array] = field(default_factory=list)
    observation: list[Array] = field(default_factory=list)
    series: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, Array] = field(default_factory=dict)
    spread: dict[str, Array] = field(default_factory=dict)
    forecast: Array | None = None
    diverged: bool = False
    converged: bool = True
    passes: int = 0
    rate: float = 0.0
    texts: list[str] = field(default_factory=list)

    def note(self, **numbers: Any) -> None:
        """Add numbers to the series."""
        for name, number in numbers.items():
            self.series.setdefault(name, []).append(float(number))

    @property
    def last(self) -> Estimate:
        """The newest Q and R."""
        return self.model[-1], self.observation[-1]

    def add(self, estimate: Estimate) -> None:
        """A new Q and R."""
        self.model.append(np.asarray(estimate[0]))
        self.observation.append(np.asarray(estimate[1]))

    def save(self, checkpoint: Checkpoint | None, fallback: Estimate | None = None, anchor: int = 0) -> None:
        """Write the result so far, if there is a checkpoint."""
        if checkpoint is None:
            return
        arrays = {"model": np.stack(self.model), "observation": np.stack(self.observation)}
        arrays |= {f"series_{name}": np.array(numbers, np.float64) for name, numbers in self.series.items()}
        if fallback is not None:
            arrays |= {"fallback_model": fallback[0], "fallback_observation": fallback[1]}
        numbers = {"passes": self.passes, "anchor": anchor, "rate": self.rate, "converged": self.converged}
        checkpoint.save(arrays, {**numbers, "texts": self.texts})

    @classmethod
    def resumed(cls, checkpoint: Checkpoint | None, start: Estimate) -> tuple[Outcome, Estimate | None, int]:
        """The result that an earlier call wrote, or the start; with the estimate to fall back to, and the anchor."""
        saved = None if checkpoint is None else checkpoint.load()
        outcome = cls(converged=False)
        if saved is None:
            outcome.add(start)
            return outcome, None, 0
        arrays, scalars = saved
        outcome.model, outcome.observation = list(arrays["model"]), list(arrays["observation"])
        outcome.series = {
            name.removeprefix("series_"): value.tolist() for name, value in arrays.items() if name.startswith("series_")
        }
        outcome.passes, outcome.texts = int(scalars["passes"]), list(scalars["texts"])
        outcome.rate, outcome.converged = float(scalars["rate"]), bool(scalars["converged"])
        fallback = None
        if "fallback_model" in arrays:
            fallback = arrays["fallback_model"], arrays["fallback_observation"]
        return outcome, fallback, int(scalars["anchor"])


def expectation_maximisation(
    passes: Passes,
    start: Estimate,
    prior: Delayed,
    *,
    iterations: int,
    tolerance: float,
    accelerate: bool,
    checkpoint: Checkpoint | None,
    tick: Callable[[], Any],
) -> Outcome:
    """Repeat smoother and M step until the estimate is within `tolerance` of its limit.

    With `accelerate`, every other step extrapolates from three estimates (`extrapolated`). If the likelihood falls
    there, the step goes back to the M step.
    """
    structures = passes.structures
    outcome, fallback, anchor = Outcome.resumed(checkpoint, start)
    while outcome.passes < iterations and not outcome.converged:
        sums = passes.scores(outcome.last, prior)
        outcome.passes += 1
        tick()
        step = maximised(sums, outcome.last, structures)
        likelihood, new = float(step["log_likelihood"]), (step["model"], step["observation"])
        last, lost = (outcome.series.get(name, [-math.inf])[-1] for name in ("log_likelihood", "lost"))
        if fallback is not None and (step["lost"] > lost or not likelihood >= last - _RISE * abs(last)):
            outcome.model.pop(), outcome.observation.pop()
            outcome.add(fallback)
            fallback, anchor = None, len(outcome.model) - 1
            outcome.save(checkpoint, fallback, anchor)
            continue
        fallback = None
        outcome.note(log_likelihood=likelihood, lost=step["lost"])
        if _astray(new, start) or not math.isfinite(likelihood):
            outcome.add(new)
            outcome.diverged = True
            break
        after = new
        if len(outcome.model) - 1 > anchor:
            three = [*zip(outcome.model[-2:], outcome.observation[-2:], strict=True), new]
            togo, outcome.rate = _to_go([numbers_of(point, structures) for point in three])
            # The distance of the likelihood from its maximum shrinks by the square of the rate.
            rise = (likelihood - last) * outcome.rate**2 / (1.0 - outcome.rate**2)
            outcome.converged = togo < tolerance or rise < _NATS * tolerance
            anchor = len(outcome.model) - 1
            if accelerate and not outcome.converged and outcome.passes < iterations:
                fallback, after, anchor = new, tuple(accelerated(three, structures)), len(outcome.model)
        outcome.add(after)
        outcome.save(checkpoint, fallback, anchor)
    if not outcome.diverged:
        sums = passes.scores(outcome.last, prior)
        step = maximised(sums, outcome.last, structures)
        outcome.note(log_likelihood=step["log_likelihood"], lost=step["lost"])
        outcome.errors = errors_of_scores(sums, outcome.last, structures)
    return outcome


def desroziers_passes(
    passes: Passes,
    scheme: Scheme,
    start: Estimate,
    *,
    iterations: int,
    tolerance: float,
    checkpoint: Checkpoint | None,
    tick: Callable[[], Any],
) -> Outcome:
    """Cycle a scheme again and again, each time with the R from the last statistics."""
    structure = passes.structures[1]
    outcome, *_ = Outcome.resumed(checkpoint, start)
    sums = None
    while outcome.passes < iterations and not outcome.converged:
        r = outcome.observation[-1]
        sums = passes.statistics(scheme, r)
        outcome.passes += 1
        tick()
        step = observation_errors(sums, r, structure)
        outcome.note(innovation_ratio=step["innovation"], lost=step["lost"])
        outcome.forecast = step["forecast"]
        outcome.add((outcome.model[-1], step["observation"]))
        if step["raised"] < 0:
            outcome.texts.append(
                f"pass {outcome.passes}: the full R had the eigenvalue {float(step['raised']):.3g}, which is no "
                "variance: it was raised. Take structure='diagonal', or a longer record"
            )
        if _astray((step["observation"],), (start[1],)):
            outcome.diverged = True
            break
        change, _ = _changes(outcome.observation, structure)
        outcome.converged = change < tolerance
        outcome.save(checkpoint)
    if not outcome.diverged:
        if sums is None:  # an earlier call has made the last pass
            sums = passes.statistics(scheme, outcome.observation[-2])
            outcome.forecast = observation_errors(sums, outcome.observation[-2], structure)["forecast"]
        rate = _changes(outcome.observation, structure)[1]
        outcome.errors = {"observation": errors_of_statistics(sums, outcome.observation[-2], structure, rate)}
    for numbers in outcome.series.values():
        numbers.append(math.nan)  # no pass has used the last R yet
    return outcome


def lag_innovations(passes: Passes, start: Estimate, prior: Delayed, *, smoothing: float) -> Outcome:
    """Go through the record once, and adapt Q and R in every cycle."""
    sums = {name: value.sum(0) for name, value in passes.adapted(start, prior, smoothing).items()}
    alive, outcome = sums["alive"], Outcome(passes=1)
    rows = len(passes.setup.trajectory)
    with np.errstate(invalid="ignore", divide="ignore"):
        for name in ("model", "observation"):
            count = alive.reshape(-1, *(1 for _ in sums[name].shape[1:]))
            mean = sums[name] / count
            variance = np.clip(sums[f"{name}_square"] / count - mean**2, 0.0, None)
            scatter = np.where(count > 1, np.sqrt(variance / (count - 1)), np.nan)
            fixed = passes.structures[0 if name == "model" else 1].fixed
            outcome.spread[name] = np.full_like(scatter, np.nan) if fixed else scatter
            outcome.errors[name] = outcome.spread[name][-1]
            setattr(outcome, name, list(mean))
        outcome.series = {
            "innovation_ratio": (sums["innovation"] / sums["seen"]).tolist(),
            "lost": (rows - alive).tolist(),
        }
    outcome.diverged = _astray(outcome.last, start)
    return outcome


def _astray(estimate: tuple[Array, ...], start: tuple[Array, ...]) -> bool:
    """Whether variances are not positive and finite, or differ by a factor of `_FAR` from those at the start."""
    for new, old in zip(estimate, start, strict=True):
        variances = np.linalg.eigvalsh(new) if new.ndim == 2 and np.isfinite(new).all() else new
        typical = float(np.mean(np.diagonal(old) if old.ndim == 2 else old))
        if not np.isfinite(variances).all() or (new.ndim == 1 and typical > 0 and (variances <= 0).any()):
            return True
        if typical > 0 and not typical / _FAR < float(variances.max()) < typical * _FAR:
            return True
    return False


def _to_go(points: list[Array]) -> tuple[float, float]:
    """Distance from the limit, and the rate at which the distance shrinks."""
    if not len(points[-1]):
        return 0.0, 0.0
    before, now = (float(np.abs(b - a).max()) for a, b in pairwise(points[-3:]))
    rate = em.rate_of(before, now)
    return now / (1.0 - rate), rate


def _changes(history: list[Array], structure: Structure) -> tuple[float, float]:
    """The last relative change of R, and its ratio to the change before."""
    if structure.fixed:
        return 0.0, 0.0
    sizes = [float(np.abs(b - a).max() / np.abs(a).max()) for a, b in pairwise(history)]
    return sizes[-1], em.rate_of(sizes[-2], sizes[-1]) if len(sizes) > 1 else 0.0
