"""The truth of a twin experiment: a model, its errors, and the part of its state that the forecast model has."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .checks import shown
from .dynamics import Dynamics
from .methods.advancing import advance
from .random import Purpose, normal


@dataclass(frozen=True)
class TruthModel:
    """A model of the truth, and the places of the forecast model's state in the truth's state.

    Attributes
    ----------
    dynamics : Dynamics
        Model of the truth. With a `model_error`, an error with the covariance Q is added to the truth in each interval.
    places : tuple of slice, or None
        Place of each field of the forecast model in the truth's flat state; None if both have one state.
    """

    dynamics: Dynamics
    places: tuple[slice, ...] | None = None

    @classmethod
    def of(cls, dynamics: Dynamics | None, forecast: Dynamics) -> TruthModel:
        """The truth's model, for a forecast model. None stands for the forecast model itself.

        A field of the forecast model corresponds to the truth's field with its name. Without such a name, it
        corresponds to the only field with its geometry.

        Raises
        ------
        ValueError
            If the truth's model lacks a field of the forecast model, or their time units differ.
        """
        if dynamics is None or dynamics is forecast:
            return cls(forecast)
        if dynamics.time_unit != forecast.time_unit:
            raise ValueError(
                f"truth_dynamics has time_unit={dynamics.time_unit}, the forecast model {forecast.time_unit}: expected "
                "one unit of time, as the two run side by side"
            )
        if dynamics.space.names == forecast.space.names and all(
            _same_places(one.geometry, other.geometry)
            for one, other in zip(dynamics.space, forecast.space, strict=True)
        ):
            return cls(dynamics)
        return cls(dynamics, tuple(_place(name, dynamics, forecast) for name in forecast.space.names))

    def start(self, labels: Tensor, seed: int, like: Tensor) -> Tensor:
        """States of the truth's climate, shape (R, N of the truth)."""
        return self.dynamics.climatology(labels, seed, like=like).flatten(1)

    def advanced(self, x: Tensor, steps: int, clock: int, labels: Tensor, time: int, seed: int) -> Tensor:
        """The truth after one interval.

        Parameters
        ----------
        x : Tensor, shape (R, N of the truth)
        steps : int
            Number of steps of the truth's model in the interval; 0 before the first time, without an error.
        clock : int
            Number of steps from the first analysis to the beginning of the interval.
        labels : Tensor of int64, shape (R,)
            Labels of the trajectories, keys of the model's errors.
        time : int
            Index of the time at the end of the interval, another key.
        seed : int
        """
        if not steps:
            return x
        x = advance(self.dynamics.from_step(clock), x, steps)
        error = self.dynamics.model_error
        if error is None:
            return x
        labels = labels.to(x.device)
        noise = normal(seed, Purpose.TRUTH_NOISE, labels, torch.full_like(labels[:1], time), x.shape[-1])
        return x + error.from_noise(noise[:, 0].to(x))

    def forecast_part(self, x: Tensor) -> Tensor:
        """The part of states (..., N of the truth) that the forecast model has, shape (..., N)."""
        return x if self.places is None else torch.cat([x[..., place] for place in self.places], -1)

    def starting_at(self, time: float) -> TruthModel:
        """The model with its first analysis at another model time."""
        return replace(self, dynamics=self.dynamics.starting_at(time))

    def on(self, device: torch.device) -> TruthModel:
        """The model with its tensors on a device."""
        return replace(self, dynamics=self.dynamics.on(device))


def _place(name: str, truth: Dynamics, forecast: Dynamics) -> slice:
    """Place of a field of the forecast model in the truth's state."""
    geometry = {field.name: field.geometry for field in forecast.space}[name]
    alike = [field.name for field in truth.space if _same_places(field.geometry, geometry)]
    if name in alike:
        return truth.space.slices[name]
    if name not in truth.space.names and len(alike) == 1:
        return truth.space.slices[alike[0]]
    raise ValueError(
        f"truth_dynamics has the fields {[f'{f.name} {f.geometry.shape}' for f in truth.space]}, the forecast model's "
        f"field {name!r} has the shape {geometry.shape}: expected {'one of them' if not alike else 'one alone'} on "
        f"its places, with the coordinates {shown(geometry.coordinates)}, or a field of its name"
    )


def _same_places(one: object, other: object) -> bool:
    """Whether two geometries have the same dims and coordinates."""
    dims, coordinates = ([getattr(g, a) for g in (one, other)] for a in ("dims", "coordinates"))
    return dims[0] == dims[1] and all(
        list(coordinates[0][dim].values) == list(coordinates[1][dim].values) for dim in dims[0]
    )
