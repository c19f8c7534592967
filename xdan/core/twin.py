"""The twin experiment: everything that a truth and its observations are made from, as one noun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from .checks import shown
from .dynamics import Dynamics
from .observing import Sites


class TwinSetting(TypedDict, total=False):
    """Parameters of a `TwinExperiment` beside its dynamics, for verbs that take them by keyword."""

    interval: float | Sequence[float]
    observe: Sites | None
    operator: Any
    error_std: Any
    error_covariance: Any


@dataclass(frozen=True, eq=False)
class TwinExperiment:
    """A dynamics, and how its truth is observed.

    Parameters
    ----------
    dynamics : Dynamics
        The truth's, and that of every forecast.
    interval : float or sequence of float
        Model time between analyses; a sequence gives the intervals of a record one by one.
    observe : Sites, optional
        The observing network; every site by default. With an operator, which of its observations are made.
    operator : array, shape (P, *state), or callable, optional
        H, by default the state itself; a matrix, or a torch function of states (..., N).
    error_std : float or array
        Standard deviation of the observation errors.
    error_covariance : array, shape (P, P), optional
        Full R, instead of `error_std`.

    Raises
    ------
    TypeError
        If the dynamics is no Dynamics, or `observe` no Sites.
    ValueError
        If `error_std` and `error_covariance` are both given.
    """

    dynamics: Dynamics
    interval: float | Sequence[float] = 0.05
    observe: Sites | None = field(default_factory=Sites.all)
    operator: Any = None
    error_std: Any = 1.0
    error_covariance: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.dynamics, Dynamics):
            raise TypeError(f"dynamics={shown(self.dynamics)}: expected an xdan Dynamics such as xdan.Lorenz96()")
        if self.observe is None:
            object.__setattr__(self, "observe", Sites.all())
        if not isinstance(self.observe, Sites):
            raise TypeError(
                f"observe={shown(self.observe)}: expected Sites, such as xdan.Sites.all() or xdan.Sites.every(2)"
            )

    @classmethod
    def of(cls, experiment: TwinExperiment | Dynamics, setting: Mapping[str, Any]) -> TwinExperiment:
        """Take an experiment as it is, or make one from a dynamics and its setting.

        Raises
        ------
        TypeError
            For what is neither, or an experiment with a setting beside it.
        """
        if isinstance(experiment, TwinExperiment):
            if setting:
                raise TypeError(
                    f"{sorted(setting)} beside a TwinExperiment, which has them already: expected none; "
                    "dataclasses.replace(experiment, ...) changes them"
                )
            return experiment
        return cls(experiment, **setting)
