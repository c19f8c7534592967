"""What a sweep asks for: schemes, axes and seeds as cells, and their results as a labelled cube."""

from __future__ import annotations

import itertools
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import Delayed

from .blocks import Array
from .cells import SCORES, TWIN, Cell, Scheme, known_by, plain
from .core.dynamics import Dynamics, dynamics_from_json, dynamics_to_json
from .network import Network

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
_UNITS = {"seconds": "s", "training_seconds": "s", "failed": "1", "diverged": "1"}


@dataclass(frozen=True)
class Grid:
    """Schemes, the trained networks among them by digest, axes and seeds, and what all cells share."""

    schemes: Mapping[str, Scheme]
    trained: Mapping[str, Network]
    axes: Mapping[str, Mapping[Any, Any]]
    seeds: Sequence[int]
    dynamics: Dynamics
    twin: Mapping[str, Any]
    test: Mapping[str, int]

    def check(self) -> None:
        """Refuse what cannot be, before anything is computed.

        Raises
        ------
        ValueError
        """
        if not 0 <= self.test["burn_in"] < self.test["cycles"] or self.test["trajectories"] < 1:
            raise ValueError(f"{dict(self.test)}: expected trajectories, and a burn-in shorter than the cycles")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: expected distinct ones, at least one")
        own = set(self._of_dynamics())
        known = own.union(TWIN, *(scheme.accepts for scheme in self.schemes.values()))
        if unknown := sorted(set(self.axes) - known):
            raise ValueError(f"axes {unknown} are no parameters of any scheme; known are {sorted(known)}")
        for label, scheme in self.schemes.items():
            if wrong := sorted(set(scheme.trained_on) - own - set(TWIN)):
                raise ValueError(f"scheme {label!r}: trained_on takes {sorted(own | set(TWIN))}, not {wrong}")
        for name in {"interval", "error_std"} & set(self.axes):
            if wrong := [value for value in self.axes[name].values() if not isinstance(value, Real)]:
                raise ValueError(f"axis {name!r} has the values {wrong}: expected numbers")
        if len(several := sorted(_LENGTHS & set(self.axes))) > 1:
            raise ValueError(f"the axes {several} all say how long to train: expected one of them")
        for cell in self.cells():
            cell.check()

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
        """Arrange results, at hand or to come."""
        dims = (SCHEME, *self.axes, SEED)
        labels: dict[Hashable, list[Any]] = {SCHEME: list(self.schemes), **{n: list(a) for n, a in self.axes.items()}}
        labels[SEED] = list(self.seeds)
        shape = tuple(len(values) for values in labels.values())
        found = [results[cell.key] for cell in self.cells()]
        variables = {}
        for name, long_name in SCORES.items():
            if any(isinstance(result, Delayed) for result in found):
                values = [da.from_delayed(_pick(result, name), (), np.float64) for result in found]
                array: Any = da.stack(values).reshape(shape)
            else:
                array = np.array([result.get(name, np.nan) for result in found]).reshape(shape)
            units = _UNITS.get(name, self.dynamics.units)
            units = units if name != "innovation_variance" or units == "1" else f"({units})2"
            variables[name] = (dims, array, {"long_name": long_name, "units": units})
        errors = sorted({result["error"] for result in found if isinstance(result, dict) and "error" in result})
        attributes = {"title": "sweep", "errors": json.dumps(errors), **_text(self.test), "source": "xdan"}
        # Strings as objects: Zarr has a specification for those of any length only.
        coordinates = {
            dim: np.array(values, dtype=object if any(isinstance(v, str) for v in values) else None)
            for dim, values in labels.items()
        }
        cube = xr.Dataset(variables, coordinates, attributes)
        for name, (long_name, units) in _AXES.items():
            if name in self.axes:
                cube[name].attrs = {"long_name": long_name, **({"units": units} if units else {})}
        if "error_std" in self.axes:
            cube["error_std"].attrs["units"] = self.dynamics.units
        return cube


def labelled(name: str, values: Sequence[Any] | Mapping[str, Any]) -> dict[Any, Any]:
    """Label every value of an axis."""
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, Mapping, np.ndarray)):
        raise TypeError(f"axis {name!r} is {values!r}: expected a sequence of values, or a mapping of labels to values")
    if not len(values):
        raise ValueError(f"axis {name!r} has no values")
    labels: list[Any]
    if isinstance(values, Mapping):
        labels, items = list(values), list(values.values())
        if wrong := [label for label in labels if not isinstance(label, (int, float, str))]:
            raise TypeError(f"axis {name!r} has the labels {wrong}: expected numbers or names")
    else:
        items = [v.item() if isinstance(v, np.generic) else v for v in values]
        labels = [v if isinstance(v, (int, float, str)) else json.dumps(plain(v)) for v in items]
    if any(isinstance(label, str) for label in labels):  # numbers beside names are names too
        labels = [str(label) for label in labels]
    if len(set(labels)) < len(labels):
        raise ValueError(f"axis {name!r} has a value twice: {labels}")
    return dict(zip(labels, items, strict=True))


def _text(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, (int, float, str)) else json.dumps(value) for name, value in values.items()
    }


@dask.delayed(pure=True)  # type: ignore[untyped-decorator]
def _pick(result: Mapping[str, Any], name: str) -> Array:
    return np.asarray(result.get(name, np.nan))
