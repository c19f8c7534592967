"""The time at which a model that depends on time stands."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, Self

from ..checks import real

_SNAPPED = 1e-3  # in steps: a start that is closer than this to a whole number of steps is moved to it


class InTime:
    """A model that stands at a time, which is a number of its steps after the first analysis of a record.

    Attributes
    ----------
    timestep : float
    autonomous : bool
        Whether the model does not depend on time. Such a model has no clock, and is the same from every step.
    time_origin : numpy.datetime64 or cftime.datetime, optional
        Date at which model time is 0.
    """

    timestep: float
    autonomous: bool = True
    time_origin: Any = None
    _model_step: int = 0
    _first: tuple[float, int] = (0.0, 0)  # model time of the first analysis: an offset, plus a number of steps

    @abstractmethod
    def vet(self) -> None:
        """Refuse a model whose methods are wrong."""

    @property
    def model_step(self) -> int:
        """Steps from the first analysis to the time of this object; 0 for an autonomous model."""
        return self._model_step

    @property
    def model_time(self) -> float:
        """Model time of this object; 0 for an autonomous model."""
        return self._time_at(self._model_step)

    def from_step(self, step: int) -> Self:
        """The model some steps after the first analysis, or before it if `step` is negative.

        Parameters
        ----------
        step : int
            Number of steps from the first analysis, whatever the time of this object.

        Returns
        -------
        Dynamics
            Its `advance`, `advance_along` and `climatology` begin at this time, and `retreat` goes back from it. An
            autonomous model is returned unchanged.

        Raises
        ------
        ValueError
            If `vet` refuses the dynamics.
        """
        if self.autonomous or step == self._model_step:
            return self
        self.vet()  # here once, instead of once in each step
        return self._copied(_model_step=int(step))

    def starting_at(self, time: float) -> Self:
        """The model with its first analysis at another model time.

        Parameters
        ----------
        time : float
            In model time units. A time within a thousandth of a step of a whole number of steps is moved to it. Part
            of a record then has exactly the times of the whole record.

        Returns
        -------
        Dynamics
            An autonomous model is returned unchanged.

        Examples
        --------
        >>> from xdan import CustomDynamics
        >>> forced = CustomDynamics(lambda x, t: t - x, state={"x": 1}, timestep=0.1)
        >>> forced.starting_at(90.0).from_step(5).model_time
        90.5
        """
        if self.autonomous:
            return self
        time = real("time", time)
        whole = round(time / self.timestep)
        near = abs(time - whole * self.timestep) <= _SNAPPED * self.timestep
        first = (0.0, whole) if near else (time, 0)
        return self if (self._first, self._model_step) == (first, 0) else self._copied(_first=first, _model_step=0)

    @property
    def _time(self) -> float | None:
        """The time that the tendency gets; None if it takes no time."""
        return None if self.autonomous else self.model_time

    def _time_at(self, step: int) -> float:
        """Model time, a number of steps after the first analysis. It is a product, so that no errors add up."""
        offset, whole = self._first
        return offset + (whole + step) * self.timestep

    def _copied(self, **changed: Any) -> Self:
        other = copy.copy(self)
        for name, value in changed.items():
            object.__setattr__(other, name, value)  # classes may be frozen
        return other
