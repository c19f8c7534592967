"""What a sweep asks for: schemes, axes and seeds as cells, and their results as a labelled cube."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import Delayed

from ..core.checks import integer, shown
from ..core.dynamics import Dynamics, dynamics_from_json, dynamics_to_json
from ..network import Network
from ..records.schema import Array
from .cells import SCORES, TEST_SEEDS, TWIN, Cell, Scheme, check_plain, known_by, plain

SCHEME, SEED = "scheme", "seed"
_LENGTHS = frozenset(("steps", "epochs", "minutes"))  # each says how long to train
_AXES = {
    "interval": ("interval between analyses", "model time"),
    "error_std": ("standard deviation of observation errors", ""),
    "observe": ("observed sites", ""),
    "forcing": ("forcing F", ""),
    "sites": ("sites of the ring", ""),
    "window": ("window", "cycles"),
    "lag": ("lag", "cycles"),
    "batch": ("batch S_b", "trajectories"),
    "trajectories": ("training trajectories N_r", ""),
    "filters": ("filters N_f", ""),
    "members": ("members N_e", ""),
    "memory": ("latent channels", ""),
    "minutes": ("training time", "min"),
    "steps": ("training steps", ""),
}
MOST_SEED = 2**32 - 1 - TEST_SEEDS  # test records add so much
_UNITS = {"seconds": "s", "training_seconds": "s", "failed": "1", "diverged": "1"}


@dataclass(frozen=True)
class Grid:
    """What a sweep computes: a cell for every scheme, every combination of the axes' values, and every seed.

    Attributes
    ----------
    schemes : mapping of str to Scheme
    trained : mapping of str to Network
        The trained networks among the schemes, by digest.
    axes : mapping of str to mapping
        Each axis' labels and their values.
    seeds : sequence of int
    dynamics : Dynamics
    twin : mapping
        `interval`, `observe` and `error_std` of every twin that no axis changes.
    test : mapping of str to int
        `cycles`, `trajectories` and `burn_in` of the test records.
    """

    schemes: Mapping[str, Scheme]
    trained: Mapping[str, Network]
    axes: Mapping[str, Mapping[Any, Any]]
    seeds: Sequence[int]
    dynamics: Dynamics
    twin: Mapping[str, Any]
    test: Mapping[str, int]

    def check(self) -> None:
        """Refuse axes, seeds and sizes that cannot be; `check_cells` looks at what they make.

        Raises
        ------
        ValueError
        """
        if self.test["burn_in"] >= self.test["cycles"]:
            raise ValueError(
                f"burn_in={self.test['burn_in']} of cycles={self.test['cycles']}: expected a burn-in shorter than the "
                "cycles"
            )
        own = set(self._of_dynamics())
        known = own.union(TWIN, *(scheme.accepts for scheme in self.schemes.values()))
        if unknown := sorted(set(self.axes) - known):
            raise ValueError(f"axes {unknown} are no parameters of any scheme: expected some of {sorted(known)}")
        for label, scheme in self.schemes.items():
            if wrong := sorted(set(scheme.trained_on) - own - set(TWIN)):
                raise ValueError(
                    f"scheme {label!r}: trained_on takes {sorted(own | set(TWIN))}, expected none of {wrong}"
                )
        for name in {"interval", "error_std"} & set(self.axes):
            values = self.axes[name].values()
            if others := [value for value in values if isinstance(value, bool) or not isinstance(value, Real)]:
                raise ValueError(f"axis {name!r} has the values {others}: expected numbers")
        if len(several := sorted(_LENGTHS & set(self.axes))) > 1:
            raise ValueError(f"the axes {several} all say how long to train: expected one of them")

    def check_cells(self, cells: Iterable[Cell]) -> None:
        """Refuse experiments that cannot be; those that differ in nothing but their seed are looked at once.

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

    @property
    def size(self) -> int:
        """How many cells the cube has, counted without listing them."""
        return len(self.schemes) * math.prod(len(axis) for axis in self.axes.values()) * len(self.seeds)

    def _of_dynamics(self) -> Mapping[str, Any]:
        return dynamics_to_json(self.dynamics)["parameters"] if self._registered() else {}

    def _registered(self) -> bool:
        """Whether the dynamics is what its description makes: then its parameters may be axes."""
        try:
            return dynamics_from_json(dynamics_to_json(self.dynamics)) == self.dynamics
        except (TypeError, ValueError):
            return False

    def cells(self) -> Iterator[Cell]:
        """All of them, the seeds fastest."""
        for scheme in self.schemes.values():
            for values in itertools.product(*(axis.values() for axis in self.axes.values())):
                chosen = dict(zip(self.axes, values, strict=True))
                for seed in self.seeds:
                    yield self._cell(scheme, chosen, seed)

    def _cell(self, scheme: Scheme, chosen: Mapping[str, Any], seed: int) -> Cell:
        own = {name: value for name, value in chosen.items() if name in scheme.accepts}
        dynamics, twin = self._world(chosen)
        trained_dynamics, trained_twin = self._world({**chosen, **scheme.trained_on})
        parameters = {**scheme.parameters, **own}
        if chosen_length := _LENGTHS & set(own):
            parameters = {n: value for n, value in parameters.items() if n not in _LENGTHS - chosen_length}
        return Cell(
            replace(scheme, parameters=parameters), dynamics, trained_dynamics, twin, trained_twin, self.test, seed
        )

    def _world(self, chosen: Mapping[str, Any]) -> tuple[Dynamics, dict[str, Any]]:
        """Dynamics and twin with some of their parameters set."""
        mine = {name: value for name, value in chosen.items() if name in self._of_dynamics()}
        dynamics = self.dynamics
        if mine:
            description = dynamics_to_json(dynamics)
            dynamics = dynamics_from_json({**description, "parameters": {**description["parameters"], **mine}})
        twin = {name: chosen.get(name, self.twin[name]) for name in TWIN}
        return dynamics, {name: float(v) if isinstance(v, Real) else v for name, v in twin.items()}

    def about(self) -> dict[str, Any]:
        """JSON that tells this sweep from another; schemes, values and seeds may be added."""
        return {
            "dynamics": known_by(self.dynamics),
            "axes": sorted(self.axes),
            **{name: plain(value) for name, value in self._world({})[1].items()},
            **self.test,
            "schemes": {
                label: {**scheme.about(), "trained_on": plain(scheme.trained_on)}
                for label, scheme in self.schemes.items()
            },
        }

    def cube(self, results: Mapping[str, Any]) -> xr.Dataset:
        """Arrange the cells' results, which may be Delayed, as a labelled cube."""
        dims = (SCHEME, *self.axes, SEED)
        labels: dict[Hashable, list[Any]] = {SCHEME: list(self.schemes), **{n: list(a) for n, a in self.axes.items()}}
        labels[SEED] = list(self.seeds)
        shape = tuple(len(values) for values in labels.values())
        of_cells = [results[cell.key] for cell in self.cells()]
        variables = {}
        for name, long_name in SCORES.items():
            if any(isinstance(result, Delayed) for result in of_cells):
                values = [da.from_delayed(_pick(result, name), (), np.float64) for result in of_cells]
                array: Any = da.stack(values).reshape(shape)
            else:
                array = np.array([result.get(name, np.nan) for result in of_cells]).reshape(shape)
            units = _UNITS.get(name, self.dynamics.units)
            units = units if name != "innovation_variance" or units == "1" else f"({units})2"
            variables[name] = (dims, array, {"long_name": long_name, "units": units})
        errors = sorted({result["error"] for result in of_cells if isinstance(result, dict) and "error" in result})
        attributes = {"title": "sweep", "errors": json.dumps(errors), **_text(self.test), "source": "xdan"}
        # Strings as objects: Zarr has a specification for those of any length only.
        coordinates = {
            dim: np.array(values, dtype=object if any(isinstance(v, str) for v in values) else None)
            for dim, values in labels.items()
        }
        cube = xr.Dataset(variables, coordinates, attributes)
        if crps_of := self._crps_of(of_cells):
            label = {"long_name": "what the CRPS is of"}
            cube = cube.assign_coords(crps_of=(SCHEME, np.array(crps_of, dtype=object), label))
        for name, (long_name, units) in _AXES.items():
            if name in self.axes:
                cube[name].attrs = {"long_name": long_name, **({"units": units} if units else {})}
        if "error_std" in self.axes:
            cube["error_std"].attrs["units"] = self.dynamics.units
        return cube

    def _crps_of(self, results: Sequence[Any]) -> list[str]:
        """What the CRPS of each scheme is of, where the results are at hand and say so."""
        if not all(isinstance(result, dict) for result in results):
            return []
        each = np.array([result.get("crps_of", "") for result in results], dtype=object).reshape(len(self.schemes), -1)
        words = [", ".join(sorted({word for word in row if word})) for row in each]
        return words if any(words) else []


def count(label: str, values: Any) -> int:
    """Count the values of an axis, or the seeds, without listing them.

    Raises
    ------
    TypeError
        For what is no sequence and no mapping.
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
    """Seeds from their number or a sequence; a range stays one.

    Raises
    ------
    TypeError
        For what is no integer.
    ValueError
        For a seed that is no 32-bit word, or stands twice.
    """
    if isinstance(seeds, range):
        for end in (seeds[0], seeds[-1]):
            integer("seeds", end, least=0, most=MOST_SEED)
        return seeds
    distinct = [integer("seeds", seed, least=0, most=MOST_SEED) for seed in seeds]
    if len(set(distinct)) < len(distinct):
        raise ValueError(f"seeds={shown(distinct)}: expected distinct ones")
    return distinct


def labelled(name: str, values: Sequence[Any] | Mapping[str, Any]) -> dict[Any, Any]:
    """Label every value of an axis.

    Raises
    ------
    TypeError
        For labels or values that have no plain form.
    ValueError
        If a value stands twice.
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
    if any(isinstance(label, str) for label in labels):  # numbers beside names are names too
        labels = [str(label) for label in labels]
    if len(set(labels)) < len(labels):
        raise ValueError(f"axis {name!r} has a value twice: {shown(labels)}; expected distinct ones")
    return dict(zip(labels, items, strict=True))


def _text(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, (int, float, str)) else json.dumps(value) for name, value in values.items()
    }


@dask.delayed(pure=True)  # type: ignore[untyped-decorator]
def _pick(result: Mapping[str, Any], name: str) -> Array:
    return np.asarray(result.get(name, np.nan))
