"""Whether a truth follows the dynamics that a record names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from torch import Tensor

from ..core.checks import warn
from ..core.user_functions import finest
from .blocks import Setup, block
from .fields import split_values
from .schema import TIME, TRAJECTORY
from .values import LEADING_CYCLES, LEADING_TRAJECTORIES

if TYPE_CHECKING:
    from .record import LabelledRecord

_ROUNDING = 1e-6  # relative rounding of values in single precision, with room to spare
_DEVIATIONS = 5  # standard deviations of the model's errors: a truth that is farther away follows another model
_FOLLOWED = 8  # trajectories of the truth that the model follows over an interval


def check_follows(labelled: LabelledRecord) -> None:
    """Warn if the truth does not follow the named dynamics. Some of the truth is read."""
    truth = labelled.truth
    if truth is not None and (text := astray(labelled.setup, followed(labelled.setup, truth).to_numpy())):
        warn(text)


def shortest_interval(setup: Setup) -> slice:
    """Positions of the two ends of the (first) shortest leading interval: over a long interval errors grow."""
    steps = setup.steps[1:LEADING_CYCLES]
    first = int(np.argmin(steps)) if len(steps) else 0
    return slice(first, first + 2)


def followed(setup: Setup, truth: xr.DataArray) -> xr.DataArray:
    """The truth that `astray` takes: some trajectories, at both ends of the shortest interval."""
    step = max(1, min(truth.sizes[TRAJECTORY], LEADING_TRAJECTORIES) // _FOLLOWED)
    return truth.isel({TRAJECTORY: slice(0, LEADING_TRAJECTORIES, step), TIME: shortest_interval(setup)})


def astray(setup: Setup, truth: np.ndarray[Any, Any]) -> str:
    """Say how far a truth is from the named dynamics after an interval; "" if the truth follows the dynamics.

    Parameters
    ----------
    setup : Setup
    truth : array, shape (R, 2, *state)
        The truth at both ends of `shortest_interval`.
    """
    if truth.shape[1] < 2 or setup.other_truth:
        return ""
    some = truth.astype(np.float64)
    some = some[np.isfinite(some).reshape(len(some), -1).all(1)]
    if not len(some):
        return ""
    model = setup.dynamics
    states = (_forecast(some[:, 0], setup), some[:, 1], some[:, 0])
    after, later, before = (split_values(values, model, "truth") for values in states)
    known = _known_errors(setup)
    for name in after:
        # One field may stand still while another moves: then the error of the first is rounding.
        least = 0.0 if model.space.single else _ROUNDING * _size(later[name])
        error, size = _size(after[name] - later[name]), _size(later[name] - before[name])
        bound = np.maximum(1e-2 * size, least) + known[name]
        worst = int(np.argmax(np.where(np.isfinite(error), error - bound, np.inf)))
        if not error[worst] <= bound[worst]:
            what = "it" if model.space.single else f"{name!r}"
            return (
                f"the truth does not follow {model!r}: over one interval {what} is off by {error[worst]:.3g} where it "
                f"moves by {size[worst]:.3g}. Check dynamics= and the time units. If the model is known to err so "
                "much, pass model_error=. If the model is wrong on purpose, go on"
            )
    return ""


def _known_errors(setup: Setup) -> dict[str, float]:
    """Largest size of the model's errors that Q allows, for each field."""
    error = setup.dynamics.model_error
    deviations = np.zeros((1, *setup.dynamics.shape)) if error is None else error.std.numpy()
    fields = split_values(deviations.reshape(1, *setup.dynamics.shape), setup.dynamics, "truth")
    return {name: _DEVIATIONS * float(_size(values)[0]) for name, values in fields.items()}


def _size(values: np.ndarray[Any, Any]) -> Any:
    """Root of the mean square of each state, shape (R,)."""
    return np.sqrt(np.mean(values**2, axis=tuple(range(1, values.ndim))))


@block
def _forecast(start: Tensor, setup: Setup) -> Tensor:
    """States after the shortest interval, from states (R, *state), in float64."""
    pair = shortest_interval(setup)
    dynamics = setup.dynamics_at(pair.start)
    return dynamics.advance(finest(dynamics.one_step, start), int(setup.steps[pair][1])).double()
