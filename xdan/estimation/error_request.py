"""The arguments of `estimate_errors`, checked before the record is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..assimilation.schemes import Scheme, scheme_of
from ..core.checks import choice, integer, real, shown, switch
from ..core.estimation.structures import KINDS, Structure, structure_of
from ..core.methods import Method, method_by_name
from ..core.methods.base import METHODS as METHODS_BY_NAME
from ..core.methods.gaussian_forecast import check_size
from ..network import Network
from ..records.record import LabelledRecord
from ..records.schema import TIME
from .error_labels import sizes_of_parts

METHODS = ("desroziers", "em", "lag-innovations")
_ITERATIONS = {"desroziers": 5, "em": 100}
_TOLERANCE = {"desroziers": 1e-2, "em": 1e-3}
_BURN_IN = {
    "desroziers": 100,
    "em": 20,
    "lag-innovations": 20,
}  # most cycles of a default burn-in


@dataclass(frozen=True)
class Request:
    """The checked arguments of a call.

    Attributes
    ----------
    method : str
    kinds : dict of str to str
        Structures of "model" (Q) and of "observation" (R).
    scheme : Scheme or None
    iterations : int
    tolerance : float
    smoothing : float or None
    burn_in : int or None
    accelerate : bool
    """

    method: str
    kinds: Mapping[str, str]
    scheme: Scheme | None
    iterations: int
    tolerance: float
    smoothing: float | None
    burn_in: int | None
    accelerate: bool

    @classmethod
    def of(
        cls,
        method: Any,
        structure: Any,
        scheme: Any,
        iterations: Any,
        tolerance: Any,
        smoothing: Any,
        burn_in: Any,
        accelerate: Any,
    ) -> Request:
        """Check the arguments together.

        Raises
        ------
        TypeError, ValueError
            If an argument is wrong, or arguments do not fit one another.
        """
        method = choice("method", method, METHODS)
        words = {"scheme": scheme, "iterations": iterations, "tolerance": tolerance}
        words |= {"smoothing": smoothing, "accelerate": accelerate}
        taken = {
            "desroziers": {"scheme", "iterations", "tolerance"},
            "em": {"iterations", "tolerance", "accelerate"},
            "lag-innovations": {"smoothing"},
        }[method]
        if other := [name for name, value in words.items() if value is not None and name not in taken]:
            raise TypeError(
                f"{other[0]}={shown(words[other[0]])}: method={method!r} has no use for it; expected some of "
                f"{sorted(taken)}"
            )
        kinds = _kinds(structure)
        if method == "desroziers":
            if isinstance(structure, Mapping) and kinds["model"] not in ("fixed", "scalar"):
                raise ValueError(
                    f"structure={dict(structure)}: Desroziers' statistics tell nothing of Q; expected a structure of "
                    "'observation_error' alone, or method='em'"
                )
            kinds["model"] = "fixed"
        if set(kinds.values()) == {"fixed"}:
            raise ValueError(
                f"structure={shown(structure)}: nothing is left to estimate; expected one that is not fixed"
            )
        return cls(
            method,
            kinds,
            _scheme("enkf-n" if scheme is None else scheme) if method == "desroziers" else None,
            _ITERATIONS.get(method, 1) if iterations is None else integer("iterations", iterations, least=1),
            _TOLERANCE.get(method, 0.0) if tolerance is None else real("tolerance", tolerance, above=0.0),
            None if smoothing is None else real("smoothing", smoothing, least=1.0),
            None if burn_in is None else integer("burn_in", burn_in, least=0),
            True if accelerate is None else switch("accelerate", accelerate),
        )

    def structures(self, labelled: LabelledRecord) -> tuple[Structure, Structure]:
        """Structures of Q and of R."""
        q, r = (structure_of(self.kinds[name], sizes_of_parts(name, labelled)) for name in ("model", "observation"))
        return q, r

    def first(self, labelled: LabelledRecord) -> int:
        """Number of cycles at the beginning that are in no sum."""
        cycles = labelled.observation.sizes[TIME]
        return min(_BURN_IN[self.method], cycles // 10) if self.burn_in is None else self.burn_in

    def check(self, labelled: LabelledRecord, perfect: bool) -> None:
        """Refuse a record that is too short for the numbers to estimate, or on which the method cannot work.

        Parameters
        ----------
        labelled : LabelledRecord
        perfect : bool
            Whether the caller or the record says that Q is zero.

        Raises
        ------
        ValueError
        """
        setup, observing = labelled.setup, labelled.setup.observing
        rows, cycles = labelled.observation.shape[:2]
        if perfect and self.kinds["model"] != "fixed":
            raise ValueError(
                f"model_error is 0, and the structure of Q is {self.kinds['model']!r}: an estimate by {self.method!r} "
                "leaves zero as it is. Expected positive standard deviations, such as a tenth of the state's; or "
                "structure={'model_error': 'fixed'}, so that Q stays zero"
            )
        if observing.error_in_time:
            raise ValueError(
                "the record's observation errors change in time: expected one R for all times; name where the estimate "
                "starts with observation_error="
            )
        first = self.first(labelled)
        if not first < cycles - 1:
            raise ValueError(
                f"burn_in={first} of {cycles} cycles: expected at least two cycles after it, or a longer record"
            )
        numbers = sum(structure.count for structure in self.structures(labelled))
        if rows * (cycles - first) < numbers:
            raise ValueError(
                f"{rows} trajectories of {cycles - first} cycles after the burn-in, and {numbers} numbers to estimate: "
                f"expected at least {numbers} cycles in all; take structure='scalar', or a longer record"
            )
        if self.scheme is not None:
            self.scheme.check(labelled)
            return
        steps = setup.steps[1:]
        if len(np.unique(steps)) > 1:
            intervals = setup.dynamics.timestep * np.array([steps.min(), steps.max()])
            raise ValueError(
                f"the intervals of the record last {intervals[0]:g} to {intervals[1]:g}: expected one length, as Q is "
                "that of an interval; put NaN where a time is missing, for example by ds.reindex(time=...), or take a "
                "part of the record"
            )
        check_size(setup.dynamics.space.size, f"method={self.method!r}", "take method='desroziers', which tells R")
        matrices = {name for name, kind in self.kinds.items() if kind in ("diagonal", "full")}
        if self.method == "lag-innovations" and not observing.direct and "model" in matrices:
            raise ValueError(
                f"structure={self.kinds['model']!r} of 'model_error' and observations by an operator: lag innovations "
                "see one Q through it; expected structure={'model_error': 'scalar'}, or method='em'"
            )


def _kinds(structure: Any) -> dict[str, str]:
    """Structures of Q and R, by the names in `Passes`."""
    if not isinstance(structure, Mapping):
        return dict.fromkeys(("model", "observation"), choice("structure", structure, KINDS))
    known = {"model_error": "model", "observation_error": "observation"}
    if unknown := [name for name in structure if name not in known]:
        raise ValueError(f"structure= names {shown(unknown)}: expected some of {list(known)}")
    return {
        inside: choice(f"structure[{name!r}]", structure.get(name, "scalar"), KINDS) for name, inside in known.items()
    }


def _scheme(scheme: Any) -> Scheme:
    """The scheme of Desroziers' passes."""
    if isinstance(scheme, str):
        return scheme_of(method_by_name(choice("scheme", scheme, METHODS_BY_NAME)))
    if not isinstance(scheme, (Method, Network)):
        raise TypeError(f"scheme={shown(scheme)}: expected a method's name or object, such as 'etkf', or a Network")
    return scheme_of(scheme)
