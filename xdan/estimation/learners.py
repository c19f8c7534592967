"""How a correction is learned from increments: by least squares, or by gradient steps on forecasts."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..core.dynamics import CorrectedDynamics, Dynamics, dynamics_to_json
from ..core.learning.model_fit import ModelFit
from ..core.spaces import StateSpace
from ..core.tendencies import LocalPolynomial, TendencyNetwork
from ..records.blocks import block
from ..records.record import LabelledRecord
from ..records.schema import TIME, TRAJECTORY
from .increments import Increments, Moments
from .model_training import FitSettings, fit_model
from .stretches import Stretches

_MOST = 4.0  # largest factor of a pass's result
_MEMORY = 3  # number of passes that the secant uses
_TINY = 1e-9  # share of a term's mean square that is added if terms depend on one another


@dataclass(frozen=True)
class Rules:
    """How a correction is learned.

    Attributes
    ----------
    penalty : float or None
        Penalty of least squares; None if left-out parts of the data choose it.
    relaxation : float or None
        Factor of each pass's result; None for the secant.
    validation : float
        Share of the data that is held back from gradient steps.
    fitting : FitSettings
        Settings of gradient steps.
    """

    penalty: float | None
    relaxation: float | None
    validation: float
    fitting: FitSettings

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**vars(self), "fitting": self.fitting.to_json()}


class Learner(ABC):
    """Learns a correction pass by pass.

    Attributes
    ----------
    network : TendencyNetwork
        The correction so far.
    """

    def __init__(self, network: TendencyNetwork, rules: Rules, fresh: bool) -> None:
        self.network, self.rules, self._fresh = network, rules, fresh
        self._before = copy.deepcopy(network)

    def learn(
        self, increments: Increments, perfect: Increments | None, moments: Moments, checkpoint: Path | None
    ) -> dict[str, Any]:
        """Learn from a pass, and from its control if there is one; return a row of JSON with its numbers."""
        self._before = copy.deepcopy(self.network)
        if self._fresh:
            moments.normalise(self.network)
            self._fresh = False
        return self._learned(increments, perfect, checkpoint)

    def undo(self) -> None:
        """Go back to the correction before the last pass."""
        self.network = self._before

    @abstractmethod
    def _learned(self, increments: Increments, perfect: Increments | None, checkpoint: Path | None) -> dict[str, Any]:
        """Change the network, and return the numbers of the pass."""


class LeastSquares(Learner):
    """Least squares for the coefficients of a polynomial.

    A pass estimates r = A (w* - w), where w is the correction so far, w* the best correction and A an unknown gain. For
    some combinations of terms the increments show nearly all of the missing tendency; for others they show a small
    part. The secant estimates A from the passes before (Anderson's mixing; with a single earlier pass it is the secant
    method). Each coefficient of r is multiplied by 1 - (e / r)^2, where e is its standard error, or by 0 if e is larger
    than r. Otherwise errors would add up from pass to pass.
    """

    network: LocalPolynomial

    def __init__(self, network: LocalPolynomial, rules: Rules, fresh: bool) -> None:
        super().__init__(network, rules, fresh)
        self._passes: list[tuple[Tensor, Tensor]] = []  # coefficients before each pass, and its result r

    def _learned(self, increments: Increments, perfect: Increments | None, checkpoint: Path | None) -> dict[str, Any]:
        equations = increments.normal_equations(copy.deepcopy(self.network))
        learned, penalty = equations.coefficients(self.rules.penalty)
        noise = equations.standard_errors(penalty)
        if perfect is not None:
            of_control = perfect.normal_equations(copy.deepcopy(self.network))
            learned = learned - of_control.coefficients(penalty)[0]
            noise = (noise.square() + of_control.standard_errors(penalty).square()).sqrt()
        kept, before = shrunk(learned, noise), self.network.coefficients.detach().double()
        # The root mean square of a polynomial over the states is |root w|.
        mean = equations.gram.sum(0) / equations.count.sum()
        root = torch.linalg.cholesky(mean + _TINY * mean.diagonal().mean() * torch.eye(len(mean), dtype=mean.dtype)).mT
        size, error = (float((root @ one.T).norm()) for one in (learned, noise))
        self._passes.append((before, kept))
        step = self._mixed(root, error) if self.rules.relaxation is None else self.rules.relaxation * kept
        with torch.no_grad():
            self.network.coefficients.add_(step.to(self.network.coefficients))
        unit = self._unit(increments) / math.sqrt(len(learned))
        factor = float((root @ step.T).norm()) / max(float((root @ kept.T).norm()), 1e-300)
        return {
            "learned": unit * size,
            "learned_standard_error": unit * error,
            "factor": factor if bool(kept.any()) else 0.0,
            "penalty": penalty,
        }

    def _mixed(self, root: Tensor, error: float) -> Tensor:
        """The step from all passes so far: Anderson's mixing, made shorter if errors of r are large."""
        w, r = self._passes[-1]
        if len(self._passes) == 1 or not bool(r.any()):
            return r
        earlier = self._passes[-1 - _MEMORY : -1]
        moves, changes = (torch.stack([(one - p[k]).reshape(-1) for p in earlier], 1) for k, one in ((0, w), (1, r)))
        weighed = torch.stack([(root @ one.reshape(r.shape).T).reshape(-1) for one in changes.T], 1)
        gram = weighed.T @ weighed + 2 * error**2 * torch.eye(len(earlier), dtype=r.dtype)
        share = torch.linalg.solve(gram, weighed.T @ (root @ r.T).reshape(-1))
        step = r - ((moves + changes) @ share).reshape(r.shape)
        longest = _MOST * float((root @ r.T).norm())
        shorter: Tensor = step * min(1.0, longest / max(float((root @ step.T).norm()), 1e-300))
        return shorter

    def _unit(self, increments: Increments) -> float:
        """Size of a normalised tendency over an interval, in the state's units; root mean square of several fields."""
        std = self.network.tendency_std.double()
        return float(std.square().mean().sqrt()) * float(np.mean(increments.interval))


def shrunk(values: Tensor, errors: Tensor) -> Tensor:
    """Multiply each value by 1 - (error / value)^2, or by 0 if this is negative (James and Stein)."""
    return values * (1 - errors.square() / values.square().clamp_min(1e-300)).clamp_min(0.0)


class GradientSteps(Learner):
    """Gradient steps that fit forecasts of the corrected model over one interval to the analyses."""

    def __init__(
        self, network: TendencyNetwork, rules: Rules, fresh: bool, model: Dynamics, device: str, progress: bool
    ) -> None:
        super().__init__(network, rules, fresh)
        self._model, self._device, self._progress = model, device, progress

    def _learned(self, increments: Increments, perfect: Increments | None, checkpoint: Path | None) -> dict[str, Any]:
        factor = 1.0 if self.rules.relaxation is None else self.rules.relaxation
        target = increments.forecast + factor * (increments.analysis - increments.forecast)
        if perfect is not None:
            target = target - factor * _of_control(increments, perfect)
        network = self.network.to(self._device)
        live = CorrectedDynamics.trained_with(self._model.on(torch.device(self._device)), network)
        scale = network.per_component(network.tendency_std) * float(np.mean(increments.interval))
        steps = round(float(increments.interval[0]) / self._model.timestep)
        fit = ModelFit(live, steps, scale, self.rules.fitting.learning_rate)
        arrays = [increments.start, target]
        training, held_back = split(arrays, self.rules.validation, self.rules.fitting.seed, self._device)
        identity = {
            "verb": "learn_correction",
            "model": dynamics_to_json(self._model),
            "weights": self._before.digest(),
            "intervals": [steps, factor],
        }
        words: dict[str, Any] = {"checkpoint": checkpoint, "identity": identity, "progress": self._progress}
        history = fit_model(fit, training, held_back, self.rules.fitting, **words)
        self.network = network.cpu()
        return {"factor": factor, "history": history}


def _of_control(increments: Increments, perfect: Increments) -> xr.DataArray:
    """Increments that a control would have at the states of a run, by a linear form of five points; lazily."""
    space = increments.labelled.setup.dynamics.space
    form = LocalPolynomial(kernel=5, degree=1).made_for(space)
    assert isinstance(form, LocalPolynomial)
    perfect.moments().normalise(form)
    with torch.no_grad():
        form.coefficients.copy_(perfect.normal_equations(copy.deepcopy(form)).coefficients()[0])
    dims = increments.labelled.setup.dynamics.dims
    expected: xr.DataArray = xr.apply_ufunc(
        _mean_of_ends,
        increments.start,
        increments.forecast.drop_vars(TIME, errors="ignore"),
        kwargs={"form": form, "interval": float(np.mean(increments.interval))},
        input_core_dims=[dims, dims],
        output_core_dims=[dims],
        dask="parallelized",
        output_dtypes=[increments.start.dtype],
    )
    return expected


@block
def _mean_of_ends(start: Tensor, end: Tensor, form: TendencyNetwork, interval: float) -> Tensor:
    """Mean of a form at both ends of an interval, times the interval, for states (trajectory, time, *state)."""
    shape = start.shape
    like = form.to(start.dtype)
    ends = [like(one.flatten(2).flatten(0, 1)) for one in (start, end)]
    mean: Tensor = (interval * (ends[0] + ends[1]) / 2).reshape(shape)
    return mean


def learner_of(
    network: TendencyNetwork, model: Dynamics, rules: Rules, *, fresh: bool, device: str, progress: bool
) -> Learner:
    """Make a learner: least squares for a polynomial, gradient steps for other networks."""
    if isinstance(network, LocalPolynomial):
        return LeastSquares(network, rules, fresh)
    return GradientSteps(network, rules, fresh, model, device, progress)


def made_for(network: TendencyNetwork, space: StateSpace, seed: int) -> TendencyNetwork:
    """Make a network for a space, with first weights from a seed. The state of torch's generator does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = network.made_for(space)
        return type(made)(**made.config())  # a copy would have the first weights of the caller's


def check_gradient(labelled: LabelledRecord) -> None:
    """Refuse a record on which gradient steps cannot work: its intervals are uneven, or its model has no derivatives.

    Raises
    ------
    ValueError
    """
    check_even(labelled)
    model = labelled.setup.dynamics
    model.require_derivatives("a correction that is fitted by gradient steps", "Take kind='linear' or 'quadratic'")
    if not model.autonomous:
        raise ValueError(
            f"the dynamics {model.label!r} depends on time, and forecasts from many times are fitted together: "
            "expected a model that does not; take kind='linear' or 'quadratic'"
        )


def check_even(labelled: LabelledRecord) -> int:
    """Model steps in the intervals of a record, which must be equal.

    Raises
    ------
    ValueError
        If intervals differ.
    """
    steps = np.unique(labelled.setup.steps[1:])
    if len(steps) != 1:
        raise ValueError(
            f"the record's intervals are {steps[:4].tolist()} steps: expected even intervals, as forecasts from all "
            "times are fitted together; select a part of the record"
        )
    return int(steps[0])


def split(arrays: list[Any], share: float, seed: int, device: str) -> tuple[Stretches, Stretches]:
    """Stretches for training, and for validation: the last trajectories, or the last times of a single one."""
    dim = TRAJECTORY if arrays[0].sizes[TRAJECTORY] > 1 else TIME
    size = arrays[0].sizes[dim]
    cut = size - min(size - 1, max(1, round(share * size)))
    parts = ([one.isel({dim: part}) for one in arrays] for part in (slice(0, cut), slice(cut, None)))
    first, second = (Stretches(part, seed, device) for part in parts)
    return first, second
