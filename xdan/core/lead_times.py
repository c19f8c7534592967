"""Forecasts by lead time: states start at several times of a record, and are advanced together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .dynamics import Dynamics, ModelError
from .methods.advancing import advance
from .random import Purpose, normal

MOST = 2**16 - 1  # largest number of members, and of errors of a forecast: both share a word of the key of draws


@dataclass(frozen=True)
class ErrorDraws:
    """Draws of a model's errors in forecasts. Each draw is independent of all others.

    The draws depend on the seed, the trajectory, the start, the member and the number of the error alone. They are
    therefore the same for any division into blocks.

    Attributes
    ----------
    error : ModelError
        Covariance Q of one error.
    interval : int
        Number of model steps from one error to the next.
    seed : int
    trajectory : Tensor of int64, shape (B,)
        Labels of the trajectories.
    start : Tensor of int64, shape (T,)
        Positions of the starts in the record.
    """

    error: ModelError
    interval: int
    seed: int
    trajectory: Tensor
    start: Tensor

    def added(self, x: Tensor, number: int) -> Tensor:
        """Members (B, T, M, N) with error number `number` of each forecast."""
        draws = [
            normal(
                self.seed,
                Purpose.FORECAST_NOISE,
                self.trajectory,
                self.start,
                x.shape[-1],
                stream=number * (MOST + 1) + member,
            )
            for member in range(x.shape[2])
        ]
        return x + self.error.from_noise(torch.stack(draws, 2).to(x))


def states_by_lead(
    model: Dynamics, x: Tensor, clocks: Sequence[int], leads: Sequence[int], draws: ErrorDraws | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Forecasts at each lead time, one lead after another.

    If a component of a forecast is not finite, all components of this forecast and of its members are NaN from this
    lead on. Other forecasts go on.

    Parameters
    ----------
    model : Dynamics
    x : Tensor, shape (B, T, N), or (B, T, M, N) of members
        Starts of B trajectories at T times, with N components.
    clocks : sequence of int, length T
        Model steps from the record's first analysis to each start. They are not used if the model does not depend on
        time.
    leads : sequence of int
        Model steps in ascending order; 0 is the start.
    draws : ErrorDraws, optional
        Errors of the model, one after each interval, for members only. By default there are none.

    Yields
    ------
    x : Tensor, in the shape of the starts
    alive : Tensor of bool, shape (B, T)
        Which forecasts are finite.
    """
    alive = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    every = 0 if draws is None else draws.interval
    errors = set(range(every, leads[-1] + 1, every)) if every else set()
    now, number = 0, 0
    for stop in sorted({*leads, *errors}):
        x = _advanced(model, x, [clock + now for clock in clocks], stop - now)
        now = stop
        if draws is not None and stop in errors:
            x, number = draws.added(x, number), number + 1
        alive = alive & x.isfinite().flatten(2).all(2)
        whole = bool(alive.all())
        kept = alive.reshape(*alive.shape, *(1 for _ in x.shape[2:]))
        x = x if whole else torch.where(kept, x, 0.0)  # a model need not work with NaN
        if stop in leads:
            yield (x if whole else torch.where(kept, x, torch.nan)), alive


def _advanced(model: Dynamics, x: Tensor, clocks: Sequence[int], steps: int) -> Tensor:
    """States (B, T, ..., N) some steps later. A call of a model that depends on time has one time for all states."""
    if model.autonomous or steps == 0:
        return advance(model, x, steps)
    columns = x.split(1, 1)
    return torch.cat([advance(model.from_step(c), part, steps) for c, part in zip(clocks, columns, strict=True)], 1)
