"""Forecasts by lead time: states that start at several times of a record, advanced together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .dynamics import Dynamics, ModelError
from .methods.advancing import advance
from .random import Purpose, normal

MOST = 2**16 - 1  # members, and errors of one forecast: the two share a word of the key of their draws


@dataclass(frozen=True)
class ErrorDraws:
    """Draws of a model's errors in forecasts, each independent of all others.

    The draws follow from the seed, the trajectory, the start, the member and the number of the error: they are the same
    for any blocks.

    Attributes
    ----------
    error : ModelError
        Q, the covariance of one error.
    interval : int
        Model steps from one error to the next.
    seed : int
    trajectory : Tensor of int64, shape (B,)
        Labels.
    start : Tensor of int64, shape (T,)
        Positions of the starts in the record.
    """

    error: ModelError
    interval: int
    seed: int
    trajectory: Tensor
    start: Tensor

    def added(self, x: Tensor, number: int) -> Tensor:
        """Members (B, T, M, N) with their errors, the `number`-th of each forecast."""
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

    A forecast with a component that is not finite has NaN in all components from that lead on, those of all its members
    too; the others go on.

    Parameters
    ----------
    model : Dynamics
    x : Tensor, shape (B, T, N), or (B, T, M, N) of members
        Starts of B trajectories at T times; N components.
    clocks : sequence of int, length T
        Model steps from the record's first analysis to each start. A model that does not depend on time does not read
        them.
    leads : sequence of int
        Model steps, in ascending order; 0 is the start.
    draws : ErrorDraws, optional
        Errors of the model, one after every interval; of members only.

    Yields
    ------
    x : Tensor, of the shape of the starts
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
        x = x if whole else torch.where(kept, x, 0.0)  # a model need not bear NaN
        if stop in leads:
            yield (x if whole else torch.where(kept, x, torch.nan)), alive


def _advanced(model: Dynamics, x: Tensor, clocks: Sequence[int], steps: int) -> Tensor:
    """States (B, T, ..., N) some steps later; a model that depends on time is called with one time for all states."""
    if model.autonomous or steps == 0:
        return advance(model, x, steps)
    columns = x.split(1, 1)
    return torch.cat([advance(model.from_step(c), part, steps) for c, part in zip(clocks, columns, strict=True)], 1)
