"""Weak-constraint 4D-Var: it fits the state at the window's start and the model's errors in the window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..observing import ObservingSystem
from .advancing import advance, advance_along
from .four_d_var import FourDVar
from .minimisers import MINIMISERS, Window
from .record import Record, State
from .registry import register_method
from .windowed import pushed


@dataclass(frozen=True)
class _WeakWindow(Window):
    """A window whose control vector is the state at its start and the model's error in each interval, (B, N + W N)."""

    def misfits(self, x: Tensor) -> Tensor:
        """Whitened y - H(x_j) at every time, x_j = M(x_{j-1}) + e_j, shape (B, W, P)."""
        return torch.stack([self._misfit(at, j) for j, at in enumerate(self.states(x))], 1)

    def states(self, control: Tensor) -> list[Tensor]:
        """The state at every time of the window, (B, N) each."""
        x, *errors = control.chunk(1 + len(self.steps), 1)
        states = []
        for (dynamics, steps), error in zip(self._legs(), errors, strict=True):
            x = advance(dynamics, x, steps) + (error if steps else 0.0)
            states.append(x)
        return states

    def linearised(self, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Misfits, (B, W P), and whitened derivatives along directions of the control vector, (B, M, W P)."""
        at, *errors = x.chunk(1 + len(self.steps), 1)
        along, *changes = directions.chunk(1 + len(self.steps), 2)
        misfits, slopes = [], []
        for j, (dynamics, steps) in enumerate(self._legs()):
            at, along = advance_along(dynamics, at, along.contiguous(), steps)
            if steps:
                at, along = at + errors[j], along + changes[j]
            misfits.append(self._misfit(at, j))
            observed, observing = ~self.observation[:, j].isnan(), self._observing_at(j)
            slopes.append(observing.whiten(observing.tangent(at, along), observed))
        return torch.cat(misfits, 1), torch.cat(slopes, 2)


@register_method
class WeakFourDVar(FourDVar):
    """Weak-constraint 4D-Var: like "4d-var", and the model has an error e_j ~ N(0, Q) in each interval of the window.

    It minimises |x_0 - x_b|^2_B / 2 + sum_j |e_j|^2_Q / 2 + sum_j |y_j - H(x_j)|^2_R / 2, where x_j = M(x_{j-1}) + e_j
    and |v|^2_C = v^T C^-1 v. Q is the model's `model_error`. With a perfect model the method equals "4d-var". The
    background of the next window is the fitted state after the first interval.

    Parameters
    ----------
    window, background, scale, solver, tolerance, iterations
        See "4d-var". With "gauss-newton", a minimisation runs the tangent linear model along N (1 + window) directions.

    Raises
    ------
    TypeError, ValueError
        See "4d-var".

    References
    ----------
    Tremolet (2006), doi:10.1256/qj.05.224, Eq. 3.
    """

    name: ClassVar[str] = "weak-4d-var"
    perfect_model = False

    def window_state(self, x: Tensor, record: Record) -> State:
        """State of "4d-var", with the model's errors, which are zero at first."""
        state = super().window_state(x, record)
        if record.dynamics.model_error is None:
            return state
        return {**state, "errors": self._sliding.buffer(torch.zeros_like(x))}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state. If the window is full, advance its start, with the error of its first interval."""
        after = super().forecast(state, dynamics, steps)
        if "errors" not in state:
            return after
        full = self._sliding.counts(state)[0] > 0
        begin = after["begin"] + state["errors"][:, 0] if full else after["begin"]
        errors = pushed(state["errors"], torch.zeros_like(state["x"]))
        return {**after, "begin": begin, "errors": errors}

    def _fit(
        self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem, scale: float
    ) -> State:
        error = self.dynamics.model_error
        if error is None:
            return super()._fit(state, observation, observed, observing, scale)
        assert self._root is not None
        x, steps = state["x"], self._sliding.counts(state)
        problem, entries = self._problem(state, observation, observed, observing, _WeakWindow)
        factor = torch.block_diag(math.sqrt(scale) * self._root, *[error.root(x)] * len(steps))
        background = torch.cat([state["begin"], x.new_zeros(len(x), len(steps) * x.shape[1])], 1)
        least = MINIMISERS[self.solver](problem, background, factor, self.tolerance, self.iterations)
        begin, *errors = least.x.chunk(1 + len(steps), 1)
        return {
            **state,
            **entries,
            "x": problem.states(least.x)[-1],
            "begin": begin,
            "errors": torch.stack(errors, 1),
            "smoothed": self._sliding.smoothed(state, begin),
            "iterations": least.iterations,
            "unconverged": least.unconverged.to(least.iterations.dtype),
        }
