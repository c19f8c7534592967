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

_STEPS = 2  # Gauss-Newton steps in an M step: over one interval a model is nearly linear in its parameters
_DIFFERENCE = 1e-3  # difference of parameters for a derivative, in standard deviations of the prior
_LEAST = 1e-12  # smallest Q, relative to the climate's mean square
_BLOCKS, _SLOWEST = 8, 0.9  # samples of a single trajectory; rate that counts if changes do not shrink
_SMALL = 0.01  # relative to the largest change of the parameters: smaller changes are rounding or follow q
_SURE = 0.5  # largest possible error of the extrapolation, relative to the extrapolation
_FARTHEST = 1.0  # longest extrapolation, in standard deviations of the prior
_UNRESOLVED = 0.5  # remaining distance at convergence, in standard errors: together with one they are 1.12
_PAIRS = 1 << 14  # number of members whose intervals are computed at once


@dataclass
class ExpectationMaximisation:
    """Estimates of parameters, and of Q if it is not known.

    E step: an ensemble filter with the latest parameters and Q, and a smoother over its members. M step: the expected
    log-likelihood of the model's errors is larger if

        sum_k E |x_{k+1} - M_theta(x_k)|^2_{Q^-1}

    is smaller. This is a mean over the smoothed members, and Gauss-Newton steps minimise it. Derivatives of M with
    respect to theta are central differences, so that any model can be used. For Q = q I, q is the mean square of the
    remaining differences.

    Attributes
    ----------
    method : EnsembleMethod
        A prepared method.
    record : Record
    dynamics : Dynamics
    priors : Priors
    error : ModelError or None
        Q, if it is known.
    burn_in : int
        Number of first cycles that the M step leaves out.
    parameters : Tensor, shape (p,)
        Latest estimate.
    variance : float
        Latest estimate q of Q = q I. It is not used if Q is known.

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
        """Begin with the prior's mean, and with the q that an error of one standard deviation of the prior makes."""
        states = climate_states(dynamics, record.seed, record.observation)
        steps = max(record.steps)
        shifted = [_forecast(dynamics, priors, value, states, steps) for value in _both(priors)]
        jump = float((shifted[1] - shifted[0]).square().mean())
        least = _LEAST * float(states.square().mean())
        begin, variance = priors.mean.clone(), max(jump, least)
        return cls(method, record, dynamics, priors, dynamics.model_error, burn_in, begin, variance, [begin])

    def iterate(self) -> tuple[float, Tensor]:
        """Make an E step and an M step: root of the remaining q, and the trajectories that the filter lost."""
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
        """Smoothed members (B, K, M, N) of the trajectories that the filter keeps, and flags of the lost ones, (B,)."""
        record = replace(self.record, dynamics=self.current(), truth=None)
        outputs, _ = run(self.method, record, members=True)
        lost = outputs["diverged"].any(1)
        if bool(lost.all()):
            return None, lost
        return smooth_ensemble(outputs["forecast_members"][~lost], outputs["members"][~lost]), lost

    def finish(self) -> tuple[Tensor, Tensor, bool]:
        """The estimate, its standard errors, both (p,), and whether the iteration has converged.

        Near its end the iteration converges geometrically, and slowly if Q is small. Changes d then shrink by a rate r,
        and the remaining distance is r / (1 - r) d. Aitken's extrapolation adds this distance to the last iterate. The
        estimate is the extrapolation if the last three changes allow it, and otherwise the last iterate. They allow it
        under three conditions. Both ratios of successive changes, r and s, are below 1. Their difference is so small
        that its effect on the remaining distance, |r - s| / (1 - r)^2 d, is at most half of this distance. The
        remaining distance is at most one standard deviation of the prior.

        The iteration has converged if the uncertain distance is at most half a standard error. This is the uncertainty
        of the extrapolation, or without an extrapolation the whole remaining distance. A ratio may be 1 or more,
        because the noise of the members is as large as the changes, or because the changes grow. Then the mean of the
        last three changes counts like a change with the rate 0.9. With fewer than three iterations there is no
        convergence.

        Standard errors follow from the estimates that each trajectory alone would give. A single trajectory is cut into
        blocks of time. An error of one M step moves the fixed point of the iteration by 1 / (1 - r) times the error.
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
        """Distance from the last iterate to Aitken's extrapolation, and its possible error, both (p,).

        If the extrapolation is too uncertain, the first is zero, and the second is the whole remaining distance.
        """
        nothing, unknown = torch.zeros_like(self.parameters), torch.full_like(self.parameters, torch.inf)
        if len(self._past) < 4:
            return nothing, unknown
        last = torch.stack(self._past[-4:]).diff(dim=0)
        sizes = (last / self.priors.deviation).square().mean(1).sqrt()
        largest = (torch.stack(self._past).diff(dim=0) / self.priors.deviation).square().mean(1).sqrt().max()
        rate = self._rate()
        jump = rate / (1 - rate) * last[-1]
        if not bool(sizes[-1] > _SMALL * largest):  # the iteration is at its end: rounding, and slow changes of q
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
        """Factor by which changes shrink from one iteration to the next.

        It comes from the last two changes. If these are below a hundredth of the largest change, it comes from the
        changes between the largest and the first such small one: later changes are rounding and slow changes of q.
        """
        changes = (torch.stack(self._past).diff(dim=0) / self.priors.deviation).square().mean(1).sqrt()
        if len(changes) < 2 or not bool(changes.max() > 0):
            return 0.0
        along = changes[int(changes.argmax()) :]
        along = along[along > _SMALL * changes.max()]
        if len(along) == len(changes) - int(changes.argmax()):  # not at its end yet: use the last two changes
            along = along[-2:]
        if len(along) < 2:
            return 0.0
        rate = float((along[-1] / along[0]) ** (1 / (len(along) - 1)))
        return min(rate, _SLOWEST)

    def saved(self) -> dict[str, Tensor]:
        """What a later process needs to go on."""
        return {"past": torch.stack(self._past), "variance": torch.tensor(self.variance, dtype=torch.float64)}

    def restore(self, saved: dict[str, Tensor], done: int) -> None:
        """Resume from `saved`, after some iterations."""
        del done
        self._past = list(saved["past"].cpu().clone())
        self.parameters, self.variance = self._past[-1], float(saved["variance"])

    def current(self) -> Dynamics:
        """The model with the latest parameters and Q."""
        values = {name: value.to(self.record.observation) for name, value in self._split().items()}
        model = self.dynamics.computing_with(values)
        return model if self.error is not None else model.with_model_error(self.variance**0.5)

    def _split(self) -> dict[str, Tensor]:
        return self.priors.split(self.parameters)

    def _intervals(
        self, smoothed: Tensor, first: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Dynamics, int]]:
        """Smoothed members (n, N) at the start and at the end of intervals, the model at the start, and its steps."""
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
        """Parameters after one Gauss-Newton step, over some of the cycles."""
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
        """Q^{-1/2} e of errors (n, N) for a known Q; the errors themselves if Q = q I."""
        if self.error is None:
            return errors
        if self.error.independent:
            return errors / self.error.deviations(errors)
        factor = torch.linalg.cholesky(self.error.matrix(errors))
        whitened: Tensor = torch.linalg.solve_triangular(factor, errors.mT, upper=False).mT
        return whitened


def _both(priors: Priors) -> tuple[Tensor, Tensor]:
    """The prior's mean, and a vector one standard deviation away from it."""
    return priors.mean, priors.mean + priors.deviation


def _forecast(dynamics: Dynamics, priors: Priors, parameters: Tensor, x: Tensor, steps: int) -> Tensor:
    """States (n, N) after an interval, with parameters (p,)."""
    values = {name: value.to(x) for name, value in priors.split(parameters).items()}
    return advance(dynamics.computing_with(values), x, steps)
