"""Expectation maximisation of a model's parameters: an ensemble smoother, then least squares over its members."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..derivative_checks import climate_states
from ..dynamics import Dynamics, ModelError
from ..methods import EnsembleMethod, Record, run
from ..methods.advancing import advance
from .priors import Priors
from .smoother import smooth_ensemble
from .uncertainty import errors_by_samples

_STEPS = 2  # of Gauss and Newton in an M step: a model is nearly linear in its parameters over one interval
_DIFFERENCE = 1e-3  # deviations of the prior, between two forecasts whose difference gives a derivative
_LEAST = 1e-12  # of the climate's mean square: Q is never smaller
_BLOCKS, _SLOWEST = 8, 0.9  # samples of a single trajectory, and the largest rate that the end counts with
_SMALL = 0.01  # of the largest change of the parameters
_SURE = 0.5  # of the extrapolation, by which it may be wrong
_FARTHEST = 1.0  # deviations of the prior that the extrapolation may go
_UNRESOLVED = 0.5  # standard errors that may be left of the way: together with one they are 1.12
_PAIRS = 1 << 14  # members whose intervals are computed at once


@dataclass
class ExpectationMaximisation:
    """Estimates of parameters, and of Q where it is not known.

    E step: an ensemble filter with the newest parameters and Q, and a smoother over its kept members. M step: the
    expected log-likelihood of the model's errors grows with smaller

        sum_k E |x_{k+1} - M_theta(x_k)|^2_{Q^-1},

    a mean over the smoothed members, which Gauss and Newton's steps minimise. Derivatives of M by theta are central
    differences, so that any model will do. Q = q I then has q as the mean square of what is left.

    Attributes
    ----------
    method : EnsembleMethod
        Prepared.
    record : Record
    dynamics : Dynamics
    priors : Priors
    error : ModelError or None
        Q, where it is known.
    burn_in : int
        First cycles that the M step leaves out.
    parameters : Tensor, shape (p,)
        Newest estimate.
    variance : float
        q, the newest estimate of Q = q I; not read where Q is known.

    References
    ----------
    Dempster, Laird and Rubin (1977), doi:10.1111/j.2517-6161.1977.tb01600.x; Shumway and Stoffer (1982),
    doi:10.1111/j.1467-9892.1982.tb00349.x; Bocquet et al. (2020), doi:10.3934/fods.2020004.
    """

    method: EnsembleMethod
    record: Record
    dynamics: Dynamics
    priors: Priors
    error: ModelError | None
    burn_in: int
    parameters: Tensor
    variance: float
    _past: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(
        cls, method: EnsembleMethod, record: Record, dynamics: Dynamics, priors: Priors, burn_in: int
    ) -> ExpectationMaximisation:
        """Begin with the prior's mean, and with the q that an error of one deviation of the parameters makes."""
        states = climate_states(dynamics, record.seed, record.observation)
        steps = max(record.steps)
        shifted = [_forecast(dynamics, priors, value, states, steps) for value in _both(priors)]
        jump = float((shifted[1] - shifted[0]).square().mean())
        least = _LEAST * float(states.square().mean())
        begin, variance = priors.mean.clone(), max(jump, least)
        return cls(method, record, dynamics, priors, dynamics.model_error, burn_in, begin, variance, [begin])

    def iterate(self) -> tuple[float, Tensor]:
        """One E step and one M step: root of q that the M step leaves, and the trajectories that the filter lost."""
        with torch.no_grad():
            smoothed, lost = self._smoothed()
            if smoothed is None:
                self.parameters = torch.full_like(self.parameters, torch.nan)
                return math.nan, lost
            for _ in range(_STEPS):
                self.parameters = self._improved(smoothed)
            self._past.append(self.parameters)
            if self.error is None:
                total, count = 0.0, 0
                for before, after, dynamics, steps in self._intervals(smoothed):
                    left = after - _forecast(dynamics, self.priors, self.parameters, before, steps)
                    total, count = total + float(left.double().square().sum()), count + left.numel()
                self.variance = max(total / count, _LEAST * float(smoothed.square().mean()))
        return self.variance**0.5, lost

    def _smoothed(self) -> tuple[Tensor | None, Tensor]:
        """Smoothed members (B, K, M, N) of the trajectories that the filter keeps, and which it loses, (B,)."""
        record = replace(self.record, dynamics=self.current(), truth=None)
        outputs, _ = run(self.method, record, members=True)
        lost = outputs["diverged"].any(1)
        if bool(lost.all()):
            return None, lost
        return smooth_ensemble(outputs["forecast_members"][~lost], outputs["members"][~lost]), lost

    def finish(self) -> tuple[Tensor, Tensor, bool]:
        """The estimate, its standard errors, both (p,), and whether the iteration has converged.

        Near its end the iteration converges geometrically, and slowly where Q is small: changes d shrink by a rate r,
        and r / (1 - r) d is left of the way. The estimate is there, Aitken's extrapolation, if the last three changes
        say so: both of their ratios are below 1, and the ratios r and s differ so little that what this makes of the
        way left, |r - s| / (1 - r)^2 d, is at most half of it; and if the way left is at most one deviation of the
        prior. Otherwise the estimate is the last iteration's. It has converged if what is not sure, of the
        extrapolation or of the whole way left, is at most half a standard error. Where a ratio is not below 1, because
        the members' noise is as large as the changes or because these grow, the mean of the last three changes counts
        as one of a rate of 0.9. Fewer than three iterations have not converged.

        Standard errors are from what each trajectory by itself would make of the estimate. A single trajectory is cut
        into blocks of time. An error of one M step moves the fixed point of the iteration by 1 / (1 - r) of it.
        """
        with torch.no_grad():
            smoothed, _ = self._smoothed()
            if smoothed is None:
                return self.parameters, torch.full_like(self.parameters, torch.nan), False
            first, stop = max(1, self.burn_in), smoothed.shape[1]
            if len(smoothed) > 1:
                samples = [self._improved(smoothed[b : b + 1]) for b in range(len(smoothed))]
            else:
                edges = torch.linspace(first, stop, min(_BLOCKS, stop - first) + 1).round().int().tolist()
                samples = [self._improved(smoothed, *pair) for pair in itertools.pairwise(edges)]
            weights = torch.ones(len(samples), dtype=torch.float64)
            errors = errors_by_samples(torch.stack(samples), weights, self._rate())
            jump, unsure = self._way_left()
            allowed = torch.where(errors.isfinite(), _UNRESOLVED * errors, _SMALL * self.priors.deviation)
            return self.parameters + jump, errors, bool((unsure <= allowed).all())

    def _way_left(self) -> tuple[Tensor, Tensor]:
        """From the last iteration to where Aitken's extrapolation leads, and how much may be wrong with it, both (p,).

        The first is zero where the extrapolation is not sure enough; the second is then all that may be left.
        """
        nothing, unknown = torch.zeros_like(self.parameters), torch.full_like(self.parameters, torch.inf)
        if len(self._past) < 4:
            return nothing, unknown
        last = torch.stack(self._past[-4:]).diff(dim=0)
        sizes = (last / self.priors.deviation).square().mean(1).sqrt()
        largest = (torch.stack(self._past).diff(dim=0) / self.priors.deviation).square().mean(1).sqrt().max()
        rate = self._rate()
        jump = rate / (1 - rate) * last[-1]
        if not bool(sizes[-1] > _SMALL * largest):  # at its end: rounding, and the slow change of q
            return jump, last[1:].abs().amax(0)
        before, now = float(sizes[1] / sizes[0]), float(sizes[2] / sizes[1])
        if not (before < 1.0 and now < 1.0):
            return nothing, _SLOWEST / (1 - _SLOWEST) * last.mean(0).abs()
        left = now / (1 - now) * last[-1]
        unsure = abs(now - before) / (1 - now) ** 2 * last[-1].abs() + (left - jump).abs()
        sure = abs(now - before) <= _SURE * now * (1 - now)
        if sure and bool((jump.abs() <= _FARTHEST * self.priors.deviation).all()):
            return jump, unsure
        return nothing, unsure + left.abs()

    def _rate(self) -> float:
        """By which changes shrink from one iteration to the next.

        Of the last two, or, where those are below a hundredth of the largest, on the way from the largest to there:
        later changes are rounding, and the slow change of q.
        """
        changes = (torch.stack(self._past).diff(dim=0) / self.priors.deviation).square().mean(1).sqrt()
        if len(changes) < 2 or not bool(changes.max() > 0):
            return 0.0
        along = changes[int(changes.argmax()) :]
        along = along[along > _SMALL * changes.max()]
        if len(along) == len(changes) - int(changes.argmax()):  # not at its end yet: the last two say how it goes on
            along = along[-2:]
        if len(along) < 2:
            return 0.0
        rate = float((along[-1] / along[0]) ** (1 / (len(along) - 1)))
        return min(rate, _SLOWEST)

    def saved(self) -> dict[str, Tensor]:
        """What a later process goes on from."""
        return {"past": torch.stack(self._past), "variance": torch.tensor(self.variance, dtype=torch.float64)}

    def restore(self, saved: dict[str, Tensor], done: int) -> None:
        """Go on from what `saved` gave after some iterations."""
        del done
        self._past = list(saved["past"].cpu().clone())
        self.parameters, self.variance = self._past[-1], float(saved["variance"])

    def current(self) -> Dynamics:
        """The model with the newest parameters and Q."""
        values = {name: value.to(self.record.observation) for name, value in self._split().items()}
        model = self.dynamics.computing_with(values)
        return model if self.error is not None else model.with_model_error(self.variance**0.5)

    def _split(self) -> dict[str, Tensor]:
        return self.priors.split(self.parameters)

    def _intervals(
        self, smoothed: Tensor, first: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Dynamics, int]]:
        """Smoothed members (n, N) at the begin and at the end of intervals, the model there and its steps."""
        clock = int(self.record.clocks[0])
        first, stop = max(1, self.burn_in, first), smoothed.shape[1] if stop is None else stop
        together: dict[int, list[int]] = {}
        for k, steps in enumerate(self.record.steps):
            if first <= k < stop:
                if self.dynamics.autonomous:
                    together.setdefault(steps, []).append(k)
                else:
                    yield (
                        smoothed[:, k - 1].flatten(0, 1),
                        smoothed[:, k].flatten(0, 1),
                        self.dynamics.from_step(clock),
                        steps,
                    )
            clock += steps
        for steps, cycles in together.items():
            ends = torch.tensor(cycles)
            both = (smoothed[:, at].flatten(0, 2).split(_PAIRS) for at in (ends - 1, ends))
            for before, after in zip(*both, strict=True):
                yield before, after, self.dynamics, steps

    def _improved(self, smoothed: Tensor, first: int = 0, stop: int | None = None) -> Tensor:
        """Parameters after one step of Gauss and Newton, over some of the cycles."""
        size = len(self.parameters)
        normal, right = self.parameters.new_zeros(size, size), self.parameters.new_zeros(size)
        for before, after, dynamics, steps in self._intervals(smoothed, first, stop):
            left = self._weighed(after - _forecast(dynamics, self.priors, self.parameters, before, steps))
            columns = []
            for unit in torch.eye(size, dtype=torch.float64):
                shift = _DIFFERENCE * self.priors.deviation * unit
                high, low = (
                    _forecast(dynamics, self.priors, self.parameters + sign * shift, before, steps) for sign in (1, -1)
                )
                columns.append(self._weighed(high - low).flatten() / (2 * _DIFFERENCE))
            slopes = torch.stack(columns, 1).double()
            normal += (slopes.mT @ slopes).to(normal)
            right += (slopes.mT @ left.flatten().double()).to(right)
        change: Tensor = torch.linalg.pinv(normal, hermitian=True) @ right
        return self.parameters + self.priors.deviation * change

    def _weighed(self, errors: Tensor) -> Tensor:
        """Q^{-1/2} e of errors (n, N), for a known Q; errors as they are where Q = q I."""
        if self.error is None:
            return errors
        if self.error.independent:
            return errors / self.error.deviations(errors)
        factor = torch.linalg.cholesky(self.error.matrix(errors))
        whitened: Tensor = torch.linalg.solve_triangular(factor, errors.mT, upper=False).mT
        return whitened


def _both(priors: Priors) -> tuple[Tensor, Tensor]:
    """The prior's mean, and one deviation beside it."""
    return priors.mean, priors.mean + priors.deviation


def _forecast(dynamics: Dynamics, priors: Priors, parameters: Tensor, x: Tensor, steps: int) -> Tensor:
    """States (n, N) after an interval, with parameters (p,)."""
    values = {name: value.to(x) for name, value in priors.split(parameters).items()}
    return advance(dynamics.computing_with(values), x, steps)
