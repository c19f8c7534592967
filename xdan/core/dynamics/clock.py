"""Where a model that depends on time stands in it."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, Self

from ..checks import real

_SNAPPED = 1e-3  # of a step: a start nearer than this to a whole number of steps is taken for it


class InTime:
    """A model that stands at a time: a number of its steps after the first analysis of a record.

    Attributes
    ----------
    timestep : float
    autonomous : bool
        Whether time plays no part. Such a model stands at no time, and is the same from every step.
    time_origin : numpy.datetime64 or cftime.datetime, optional
        Date at which model time is 0.
    """

    timestep: float
    autonomous: bool = True
    time_origin: Any = None
    _model_step: int = 0
    _first: tuple[float, int] = (0.0, 0)  # the first analysis, in model time: an offset, and steps beside it

    @abstractmethod
    def vet(self) -> None:
        """Refuse a model that is none."""

    @property
    def model_step(self) -> int:
        """Steps from the first analysis to where this object stands; 0 for an autonomous model."""
        return self._model_step

    @property
    def model_time(self) -> float:
        """Time at which this object stands; 0 for an autonomous model."""
        return self._time_at(self._model_step)

    def from_step(self, step: int) -> Self:
        """The same model some steps after the first analysis, or before it where negative.

        Parameters
        ----------
        step : int
            Counted from the first analysis, wherever this object stands.

        Returns
        -------
        Dynamics
            Its `advance`, `advance_along` and `climatology` begin there, and `retreat` goes back from there. An
            autonomous model is returned as it is.

        Raises
        ------
        ValueError
            If the dynamics is refused by `vet`.
        """
        if self.autonomous or step == self._model_step:
            return self
        self.vet()  # once, instead of once for each step
        return self._copied(_model_step=int(step))

    def starting_at(self, time: float) -> Self:
        """The same model with its first analysis at another model time.

        Parameters
        ----------
        time : float
            In model time units. Within a thousandth of a step of a whole number of steps it is taken for that, so that
            a part of a record is at the times of the whole, bit for bit.

        Returns
        -------
        Dynamics
            An autonomous model is returned as it is.

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
        """What the tendency gets as its time; None for nothing."""
        return None if self.autonomous else self.model_time

    def _time_at(self, step: int) -> float:
        """Model time a number of steps after the first analysis: a product, so that no error adds up."""
        offset, whole = self._first
        return offset + (whole + step) * self.timestep

    def _copied(self, **changed: Any) -> Self:
        other = copy.copy(self)
        for name, value in changed.items():
            object.__setattr__(other, name, value)  # classes may be frozen
        return other
