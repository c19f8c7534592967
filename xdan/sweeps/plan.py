"""The plan of a sweep: schemes, axes and seeds, checked and laid out as cells."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import xarray as xr

from ..core.checks import integer, shown
from ..core.dynamics import Dynamics, dynamics_from_json, dynamics_to_json
from ..core.twin import TwinExperiment
from ..network import Network
from ..training.arguments import LENGTHS
from .cells import TEST_SEEDS, Cell, describe_dynamics, describe_observing
from .cube import SCHEME, SEED, arranged
from .schemes import Scheme, check_plain, plain, scheme_from

# Parameters of a twin experiment that may be axes.
_OF_EXPERIMENT = ("interval", "observe", "error_std", "model_error_std")
_MOST_SEED = 2**32 - 1 - TEST_SEEDS  # test records add TEST_SEEDS
_MOST_CELLS, _MOST_CELLS_WITH_YES = 10_000, 1_000_000  # most cells of a cube, without yes=True and with it


@dataclass(frozen=True)
class SweepPlan:
    """A cell for every scheme, every combination of the axes' values, and every seed.

    Attributes
    ----------
    schemes : mapping of str to Scheme
    trained : mapping of str to Network
        The trained networks among the schemes, by digest.
    axes : mapping of str to mapping
        Each axis' labels and their values.
    seeds : sequence of int
    experiment : TwinExperiment
        The experiment before axes change its parameters.
    test : mapping of str to int
        `cycles`, `trajectories` and `burn_in` of the test records.
    """

    schemes: Mapping[str, Scheme]
    trained: Mapping[str, Network]
    axes: Mapping[str, Mapping[Any, Any]]
    seeds: Sequence[int]
    experiment: TwinExperiment
    test: Mapping[str, int]

    @classmethod
    def of(
        cls,
        experiment: TwinExperiment | Dynamics,
        schemes: Any,
        axes: Any,
        seeds: Any,
        test: Mapping[str, Any],
        yes: bool,
    ) -> SweepPlan:
        """Check a caller's arguments. Cells are counted before they are listed.

        Parameters
        ----------
        experiment : TwinExperiment or Dynamics
        schemes, axes, seeds
            Arguments of `sweep`, unchecked.
        test : mapping
            `cycles`, `trajectories` and `burn_in`.
        yes : bool
            Whether the cube may have more than 10,000 cells.

        Raises
        ------
        TypeError, ValueError
            If an argument is wrong, or there are too many cells.
        """
        experiment = TwinExperiment.of(experiment, {})
        least = {"cycles": 1, "trajectories": 1, "burn_in": 0}
        test = {label: integer(label, value, least=least[label]) for label, value in test.items()}
        axes = {} if axes is None else axes
        for label, value in (("schemes", schemes), ("axes", axes)):
            if not isinstance(value, Mapping):
                raise TypeError(f"{label}={shown(value)}: expected a mapping of names")
            if wrong := [name for name in value if not isinstance(name, str)]:
                raise TypeError(f"{label} has the names {shown(wrong)}: expected strings")
        if not schemes:
            raise ValueError("no schemes: expected at least one, such as {'EnKF-N': {'baseline': 'enkf-n'}}")
        if isinstance(seeds, (int, np.integer)):
            seeds = range(integer("seeds", seeds, least=1))
        sizes = [count(f"axis {name!r}", values) for name, values in axes.items()]
        total = len(schemes) * math.prod(sizes) * count("seeds", seeds)
        if total > (most := _MOST_CELLS_WITH_YES if yes else _MOST_CELLS):
            raise ValueError(
                f"a cube of {total} cells: expected at most {most}; take fewer schemes, values or seeds"
                + ("" if yes else f", or pass yes=True, with which {_MOST_CELLS_WITH_YES} may be")
            )
        plan = cls(
            {label: scheme_from(label, description) for label, description in schemes.items()},
            {net.digest: net for one in schemes.values() if isinstance(net := one.get("network"), Network)},
            {name: labelled(name, values) for name, values in axes.items()},
            seeds_from(seeds),
            experiment,
            test,
        )
        plan.check()
        return plan

    def check(self) -> None:
        """Refuse axes and sizes that do not fit one another. `check_cells` checks the experiments.

        Raises
        ------
        ValueError
        """
        if self.test["burn_in"] >= self.test["cycles"]:
            raise ValueError(
                f"burn_in={self.test['burn_in']} of cycles={self.test['cycles']}: expected a burn-in shorter than the "
                "cycles"
            )
        if not isinstance(self.experiment.interval, float):
            raise ValueError(
                f"interval={shown(self.experiment.interval)}: expected one interval, as networks are trained on an "
                "endless twin"
            )
        of_experiment = {*self._of_dynamics(), *_OF_EXPERIMENT}
        known = of_experiment.union(*(scheme.accepts for scheme in self.schemes.values()))
        if unknown := sorted(set(self.axes) - known):
            replaced = self.experiment.dynamics.given_climate is not None
            why = (
                "; with climatology= the dynamics' own are none, as the states are those of one model"
                if replaced
                else ""
            )
            raise ValueError(f"axes {unknown} are no parameters of any scheme: expected some of {sorted(known)}{why}")
        for label, scheme in self.schemes.items():
            if wrong := sorted(set(scheme.trained_on) - of_experiment):
                raise ValueError(
                    f"scheme {label!r}: trained_on takes {sorted(of_experiment)}, expected none of {wrong}"
                )
        for name in {"interval", "error_std"} & set(self.axes):
            values = self.axes[name].values()
            if others := [value for value in values if isinstance(value, bool) or not isinstance(value, Real)]:
                raise ValueError(f"axis {name!r} has the values {others}: expected numbers")
        if len(several := sorted(set(LENGTHS) & set(self.axes))) > 1:
            raise ValueError(f"the axes {several} all say how long to train: expected one of them")

    def check_cells(self, cells: Iterable[Cell]) -> None:
        """Refuse experiments that cannot run. Of experiments that differ only in their seed, one is checked.

        Raises
        ------
        TypeError, ValueError
        """
        seen = set()
        for cell in cells:
            alike = replace(cell, seed=0).key
            if alike not in seen:
                seen.add(alike)
                cell.check()

    def cells(self) -> Iterator[Cell]:
        """All cells; the seeds change fastest."""
        for label, scheme in self.schemes.items():
            accepts = scheme.accepts
            for values in itertools.product(*(axis.items() for axis in self.axes.values())):
                chosen = {name: value for name, (_, value) in zip(self.axes, values, strict=True)}
                where = [label, *(f"{name}={one}" for name, (one, _) in zip(self.axes, values, strict=True))]
                parameters = {**scheme.parameters, **{n: value for n, value in chosen.items() if n in accepts}}
                if length := set(LENGTHS) & accepts & set(chosen):  # this length replaces that of the scheme
                    parameters = {n: value for n, value in parameters.items() if n in length or n not in LENGTHS}
                experiment = self._experiment(chosen)
                trained_on = self._experiment({**chosen, **scheme.trained_on}) if scheme.trained_on else experiment
                for seed in self.seeds:
                    title = ", ".join([*where, f"seed={seed}"])
                    made = replace(scheme, parameters=parameters)
                    yield Cell(made, experiment, trained_on, self.test, seed, title)

    def describe(self) -> dict[str, Any]:
        """JSON that identifies this sweep. Later calls may add schemes, values and seeds."""
        return {
            "dynamics": describe_dynamics(self.experiment.dynamics),
            "axes": sorted(self.axes),
            **describe_observing(self.experiment),
            **self.test,
            "schemes": {
                label: {**scheme.describe(), "trained_on": plain(scheme.trained_on)}
                for label, scheme in self.schemes.items()
            },
        }

    def cube(self, scores: Mapping[str, Any]) -> xr.Dataset:
        """Arrange scores, by the keys of their cells, as a cube with dims (scheme, *axes, seed)."""
        labels = {
            SCHEME: list(self.schemes),
            **{n: list(axis) for n, axis in self.axes.items()},
            SEED: list(self.seeds),
        }
        of_cells = [scores[cell.key] for cell in self.cells()]
        return arranged(labels, of_cells, self.experiment.dynamics.units, self.test)

    def _of_dynamics(self) -> Mapping[str, Any]:
        """Parameters of the dynamics that may be axes: all of them if its description makes the dynamics again."""
        dynamics = self.experiment.dynamics
        try:
            registered = dynamics_from_json(dynamics_to_json(dynamics)).with_error_of(dynamics) == dynamics
        except (TypeError, ValueError):
            return {}
        return dynamics.config() if registered else {}

    def _experiment(self, chosen: Mapping[str, Any]) -> TwinExperiment:
        """The twin experiment with some of its parameters, or parameters of its dynamics, replaced."""
        changed = {name: chosen[name] for name in _OF_EXPERIMENT if name in chosen}
        parameters = self._of_dynamics()
        if set(chosen) & set(parameters):
            described = dynamics_to_json(self.experiment.dynamics)
            new = {name: chosen.get(name, value) for name, value in parameters.items()}
            made = dynamics_from_json({**described, "parameters": new})
            before = self.experiment.dynamics
            changed["dynamics"] = made.with_error_of(before).starting_at(before.model_time)
        return replace(self.experiment, **changed)


def count(label: str, values: Any) -> int:
    """Count the values of an axis, or the seeds, without listing them.

    Raises
    ------
    TypeError
        If `values` is neither a sequence nor a mapping.
    ValueError
        If there are none.
    """
    listed = isinstance(values, (Sequence, Mapping)) and not isinstance(values, (str, bytes))
    if not listed and not (isinstance(values, np.ndarray) and values.ndim):
        raise TypeError(f"{label} is {shown(values)}: expected a sequence of values, or a mapping of labels to values")
    # A range may be longer than len() can say.
    size = -((values.start - values.stop) // values.step) if isinstance(values, range) else len(values)
    if size < 1:
        raise ValueError(f"{label} has no values: expected at least one")
    return size


def seeds_from(seeds: Any) -> Sequence[int]:
    """Seeds from their number or a sequence. A range stays a range.

    Raises
    ------
    TypeError
        If a seed is no integer.
    ValueError
        If a seed does not fit into 32 bits, or occurs twice.
    """
    if isinstance(seeds, range):
        for end in (seeds[0], seeds[-1]):
            integer("seeds", end, least=0, most=_MOST_SEED)
        return seeds
    distinct = [integer("seeds", seed, least=0, most=_MOST_SEED) for seed in seeds]
    if len(set(distinct)) < len(distinct):
        raise ValueError(f"seeds={shown(distinct)}: expected distinct ones")
    return distinct


def labelled(name: str, values: Sequence[Any] | Mapping[str, Any]) -> dict[Any, Any]:
    """Label every value of an axis.

    Raises
    ------
    TypeError
        If a label or a value has no plain form.
    ValueError
        If a value occurs twice.
    """
    labels: list[Any]
    if isinstance(values, Mapping):
        labels, items = list(values), list(values.values())
        if wrong := [label for label in labels if not isinstance(label, (int, float, str))]:
            raise TypeError(f"axis {name!r} has the labels {wrong}: expected numbers or names")
    else:
        items = [v.item() if isinstance(v, np.generic) else v for v in values]
        labels = []
    for value in items:
        check_plain(f"axis {name!r}: value", value)
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"axis {name!r} has the value {value}: expected numbers")
    labels = labels or [v if isinstance(v, (int, float, str)) else json.dumps(plain(v)) for v in items]
    if any(isinstance(label, str) for label in labels):  # beside names, numbers become names too
        labels = [str(label) for label in labels]
    if len(set(labels)) < len(labels):
        raise ValueError(f"axis {name!r} has a value twice: {shown(labels)}; expected distinct ones")
    return dict(zip(labels, items, strict=True))
