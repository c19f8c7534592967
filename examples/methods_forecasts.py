"""Figures of forecasts from analyses: "doubling", "methods" and "observations" of examples/methods.py forecasts.

Records and runs are kept in Zarr stores in the folder of the topic, as all three figures use them: a second call makes
what is missing. docs/forecasts.md shows the results.
"""

from __future__ import annotations

import argparse
from typing import Any

import xarray as xr

import xdan

from common import kept, slug

BURN_IN, AHEAD = 200, 160  # cycles before the first start, and after the last one: forecasts reach so far
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "3D-Var": ("3d-var", {}),
    "EnKF-N, 40 members": ("enkf-n", {"members": 40, "keep_members": True}),
    "second-order Kalman filter": ("second-order-kalman", {"c2": 8.0, "keep_members": True}),
    "network with memory": ("lorenz96-memory", {}),
    "network with a window": ("lorenz96-window", {"members": True}),
}
_LEFT_OUT = ("forecast", "forecast_members", "forecast_spread", "memory")  # what no figure reads


def _sizes(options: argparse.Namespace) -> dict[str, int]:
    """Of the record: cycles with starts, trajectories and seed."""
    wanted = {"cycles": 300, "trajectories": 32, "seed": 1}
    return {name: getattr(options, name) or number for name, number in wanted.items()}


def _record(options: argparse.Namespace) -> xr.Dataset:
    """Lorenz-96, 40 sites, all of them observed at intervals of 0.05 with R = I."""
    sizes = _sizes(options)
    cycles = BURN_IN + sizes["cycles"] + AHEAD
    setting = {"trajectories": sizes["trajectories"], "seed": sizes["seed"]}
    twin = {"interval": 0.05, "error_std": 1.0, "cycles": cycles, **setting}
    return kept(options.out.parent / "record.zarr", lambda: xdan.twin(xdan.Lorenz96(), **twin).compute(), **sizes)


def _run(options: argparse.Namespace, name: str) -> xr.Dataset:
    """Analyses of a method, up to the last start of a forecast."""
    sizes = _sizes(options)
    record = _record(options).isel(time=slice(0, BURN_IN + sizes["cycles"]))
    method, parameters = METHODS[name]

    def make() -> xr.Dataset:
        if method.startswith("lorenz96"):
            run = record.dan.cycle(xdan.open_network(method), progress=False, **parameters)
        else:
            run = record.dan.baseline(method, progress=False, **parameters)
        return run.drop_vars([variable for variable in _LEFT_OUT if variable in run])

    return kept(options.out.parent / f"{slug(name)}.zarr", make, **sizes)
