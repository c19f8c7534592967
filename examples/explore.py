"""Explore the results of the quickstart or of a sweep in a browser.

python examples/explore.py quickstart          # a twin and runs on it
python examples/explore.py sweeps/window.zarr  # the cube of a sweep
python examples/explore.py quickstart --port 5006 --no-show
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import panel as pn
import xarray as xr

import xdan


def view(path: Path) -> Any:
    """The explorer of the results at a path."""
    if path.suffix == ".zarr":
        return xdan.explore(xr.open_zarr(path, consolidated=False))
    test = xr.open_zarr(path / "test.zarr", consolidated=False)
    names = {"run-network": "network", "run-network-with-memory": "network with memory", "3d-var": "3D-Var"}
    names |= {"enkf-n20": "EnKF-N, 20 members", "enkf-n40": "EnKF-N, 40 members"}
    runs = {
        title: xr.open_zarr(path / f"{name}.zarr", consolidated=False)
        for name, title in names.items()
        if (path / f"{name}.zarr").exists()
    }
    few = test.isel(trajectory=slice(0, 8))
    gain = few.dan.gain(xdan.open_network(path / "network.zarr"), every=10, burn_in=200)
    return test.dan.explore(runs, {"every site observed": gain.compute()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="the quickstart's folder, or a sweep's store")
    parser.add_argument("--port", type=int, default=0, help="port of the server; by default any free port")
    parser.add_argument("--no-show", action="store_true", help="serve, but open no browser")
    options = parser.parse_args()
    if not options.path.exists():
        parser.error(f"{options.path} is not there: run examples/quickstart.py or examples/sweeps.py first")
    if options.path.suffix != ".zarr" and not (options.path / "test.zarr").exists():
        parser.error(f"{options.path} holds no test.zarr: expected the quickstart's folder, or a sweep's store")
    pn.serve(view(options.path), port=options.port, show=not options.no_show, title="xdan")


if __name__ == "__main__":
    main()
