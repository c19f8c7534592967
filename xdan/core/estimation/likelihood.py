"""Likelihood of the observations from an ensemble filter, and its gradient with respect to the model's parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..methods import EnsembleMethod, Record, State, run
from ..methods.ensemble import compare
from ..observing import ObservingSystem, split_observation
from ..roots import cholesky_or_nan
from .priors import Priors

_BETAS = (0.9, 0.99)  # of Adam, for few windows and large first gradients
_DIFFERENCE = 0.02  # step between two gradients whose difference gives the curvature, in deviations of the prior


def innovation_cost(members: Tensor, observation: Tensor, observing: ObservingSystem) -> Tensor:
    """Negative log-likelihood of observations for a Gaussian forecast, without the part that depends on R alone.

    -log N(y; H m, H P H^T + R) - log det(2 pi R)^{1/2} = (|d|^2 - c^T A^{-1} c + log det(A / (M - 1))) / 2. Here S are
    the whitened anomalies, d is the whitened innovation, c = S d and A = (M - 1) I + S S^T. These are M x M numbers,
    whatever the number of observations.

    Parameters
    ----------
    members : Tensor, shape (B, M, N)
        Members of the forecast.
    observation : Tensor, shape (B, P)
        NaN where nothing is observed.
    observing : ObservingSystem
        H and R of this time.

    Returns
    -------
    Tensor, shape (B,)

    References
    ----------
    Chen, Sanz-Alonso and Willett (2022), doi:10.1137/21M1434477, Eq. 3.8.

    Examples
    --------
    >>> observing = ObservingSystem(std=torch.tensor(1.0))
    >>> innovation_cost(torch.tensor([[[-1.0], [1.0]]]), torch.tensor([[0.0]]), observing)  # P = 2, so log(3) / 2
    tensor([0.5493])
    """
    values, observed = split_observation(observation)
    anomalies, innovation = compare(members, values, observed, observing)
    count = members.shape[1]
    identity = torch.eye(count, dtype=members.dtype, device=members.device)
    factor = cholesky_or_nan((count - 1) * identity + anomalies @ anomalies.mT)
    half = torch.linalg.solve_triangular(factor, anomalies @ innovation[..., None], upper=False)[..., 0]
    determinant = (factor.diagonal(dim1=-2, dim2=-1).square() / (count - 1)).log().sum(-1)
    cost: Tensor = 0.5 * (innovation.square().sum(-1) - half.square().sum(-1) + determinant)
    return cost


@dataclass(frozen=True)
class FilterLikelihood:
    """The sum of `innovation_cost` over a record, for an ensemble filter whose analyses depend on the parameters too.

    Attributes
    ----------
    method : EnsembleMethod
        A prepared method.
    record : Record
    dynamics : Dynamics
    priors : Priors
    start : dict of Tensor
        The filter's state after the first analysis, from one draw of the climatology. Every pass starts from it.
    window : int
        Number of cycles through which gradients go back. The state at the start of a window counts as constant.
    """

    method: EnsembleMethod
    record: Record
    dynamics: Dynamics
    priors: Priors
    start: State
    window: int

    @classmethod
    def of(
        cls, method: EnsembleMethod, record: Record, dynamics: Dynamics, priors: Priors, window: int
    ) -> FilterLikelihood:
        """Draw the members from the climatology with the prior's mean, and make the first analysis."""
        with torch.no_grad():
            _, start = run(method, replace(record.during(slice(0, 1)), dynamics=dynamics))
        return cls(method, record, dynamics, priors, start, window)

    @property
    def windows(self) -> list[slice]:
        """Cycles of each window, without the first cycle."""
        stop = self.record.observation.shape[1]
        return [slice(k, min(k + self.window, stop)) for k in range(1, stop, self.window)]

    def cost(self, standard: Tensor, state: State, cycles: slice) -> tuple[Tensor, State, Tensor]:
        """Mean cost of a window over trajectories and cycles.

        Parameters
        ----------
        standard : Tensor, shape (p,)
            Parameters as differences from the prior's mean, in its standard deviations.
        state : dict of Tensor
            State of the filter before the window.
        cycles : slice

        Returns
        -------
        cost : Tensor, shape ()
            Cost over the trajectories that the window does not lose; NaN if it loses all.
        state : dict of Tensor
            State after the window, without gradient.
        lost : Tensor of bool, shape (B,)
        """
        values = self.priors.split(self.priors.scaled(standard))
        record = replace(self.record.during(cycles), dynamics=self.dynamics.computing_with(values))
        outputs, after = run(self.method, record, state, members=True)
        lost = outputs["diverged"].any(1)
        kept = ~lost
        members, observation, observing = outputs["forecast_members"][kept], record.observation[kept], record.observing
        if not bool(kept.any()):
            cost = standard.sum() * torch.nan
        elif observing.in_time:
            pairs = zip(members.unbind(1), observation.unbind(1), strict=True)
            cost = torch.stack([innovation_cost(*pair, observing.at(k)) for k, pair in enumerate(pairs)]).mean()
        else:
            cost = innovation_cost(members.flatten(0, 1), observation.flatten(0, 1), observing).mean()
        return cost, {name: value.detach() for name, value in after.items()}, lost

    def gradients(self, standard: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        """For each window in turn: cost, gradient (p,), lost trajectories (B,) and number of cycles.

        The caller may change `standard` between two windows.
        """
        state = self.start
        for cycles in self.windows:
            leaf = standard.detach().clone().requires_grad_()
            with torch.enable_grad():
                cost, state, lost = self.cost(leaf, state, cycles)
                (gradient,) = torch.autograd.grad(cost, leaf, allow_unused=True, materialize_grads=True)
            yield cost.detach(), gradient, lost, cycles.stop - cycles.start

    def total(self, standard: Tensor) -> tuple[Tensor, Tensor]:
        """Cost of the whole record, summed over trajectories and cycles, and its gradient (p,), at fixed parameters."""
        cost, gradient = standard.new_zeros(()), torch.zeros_like(standard)
        for mean, slope, lost, cycles in self.gradients(standard):
            count = cycles * int((~lost).sum())
            if count:
                cost, gradient = cost + count * mean, gradient + count * slope
        return cost, gradient

    def curvature(self, standard: Tensor, middle: Tensor) -> Tensor:
        """Second derivative (p, p) of the whole cost: the observed Fisher information.

        Parameters
        ----------
        standard : Tensor, shape (p,)
        middle : Tensor, shape (p,)
            Gradient of the whole cost at `standard`. p further gradients are taken; their differences from it are used.
        """
        rows = []
        for unit in torch.eye(len(standard), dtype=standard.dtype, device=standard.device):
            rows.append((self.total(standard + _DIFFERENCE * unit)[1] - middle) / _DIFFERENCE)
        matrix = torch.stack(rows)
        return 0.5 * (matrix + matrix.T)


class Descent:
    """Adam on a filter's likelihood, with one step for each window. Step sizes are rate (1 - t)^2, t from 0 to 1.

    Parameters
    ----------
    likelihood : FilterLikelihood
    iterations : int
        Number of passes over the record.
    rate : float
        Size of the first step, in standard deviations of the prior.
    """

    def __init__(self, likelihood: FilterLikelihood, iterations: int, rate: float) -> None:
        self.likelihood, self.iterations, self.rate = likelihood, iterations, rate
        self.done = 0
        self.standard = torch.zeros_like(likelihood.priors.mean).to(likelihood.record.observation)
        self._optimiser = torch.optim.Adam([self.standard], lr=rate, betas=_BETAS)

    def iterate(self) -> tuple[float, Tensor]:
        """Make one pass over the record: mean cost of its windows, and the trajectories that some window lost."""
        windows = len(self.likelihood.windows)
        total, lost_ever, count = self.standard.new_zeros(()), None, 0
        for number, (cost, gradient, lost, _) in enumerate(self.likelihood.gradients(self.standard)):
            lost_ever = lost if lost_ever is None else lost_ever | lost
            if not bool(gradient.isfinite().all()):
                continue
            part = (self.done + number / windows) / self.iterations
            self._optimiser.param_groups[0]["lr"] = self.rate * (1.0 - part) ** 2
            self.standard.grad = gradient
            self._optimiser.step()
            total, count = total + cost, count + 1
        self.done += 1
        assert lost_ever is not None
        return float(total / count) if count else math.nan, lost_ever

    @property
    def parameters(self) -> Tensor:
        """Latest estimate, float64 of shape (p,)."""
        return self.likelihood.priors.scaled(self.standard.double())

    def finish(self) -> tuple[Tensor, Tensor, bool]:
        """Maximum of the likelihood by one Newton step from here, its standard errors, both (p,), and convergence.

        Standard errors follow from the observed Fisher information. If the curvature is not positive definite, or
        Newton's step is longer than one standard deviation of the prior, the estimate is the last one of Adam, and has
        not converged. If the curvature has no inverse, standard errors are NaN, and the estimate has not converged.
        """
        likelihood, priors = self.likelihood, self.likelihood.priors
        _, gradient = likelihood.total(self.standard)
        curvature = likelihood.curvature(self.standard, gradient).double().cpu()
        unknown = torch.full_like(priors.mean, torch.nan)
        if not bool(curvature.isfinite().all()):
            return self.parameters, unknown, False
        factor, failed = torch.linalg.cholesky_ex(curvature)
        if bool(failed):
            return self.parameters, unknown, False
        covariance = torch.cholesky_inverse(factor)
        step = -covariance @ gradient.double().cpu()
        fits = bool((step.abs() < 1.0).all())
        standard = self.standard.double().cpu() + (step if fits else 0.0)
        return priors.scaled(standard), priors.deviation * covariance.diagonal().sqrt(), fits

    def saved(self) -> dict[str, Tensor]:
        """What a later process needs to go on."""
        state: dict[str, Any] = dict(self._optimiser.state[self.standard])
        return {"standard": self.standard, **{f"adam_{name}": torch.as_tensor(value) for name, value in state.items()}}

    def restore(self, saved: dict[str, Tensor], done: int) -> None:
        """Resume from `saved`, after some iterations."""
        self.done = done
        self.standard.copy_(saved["standard"])
        moments = {name.removeprefix("adam_"): value for name, value in saved.items() if name.startswith("adam_")}
        if moments:
            self._optimiser.state[self.standard] = {
                name: value.cpu() if name == "step" else value.clone() for name, value in moments.items()
            }
