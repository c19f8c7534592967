"""RMSE against interval and forcing: networks that come with xdan, their filters alone, and ensembles.

    python ci/bench/intervals.py [--intervals 0.05 0.1 0.2 0.4 0.6] [--forcings 6 10] [--only NAME ...]
        [--out intervals] [--trajectories 16] [--cycles 200]

Lorenz-96, 40 sites, R = I, every site observed. The networks were trained at an interval of 0.05 and F = 8 and are not
trained again. The scores of each run are saved under --out: a second call computes only what is missing. A table of the
RMSE and its standard error is printed, and drawn into intervals.html.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import xarray as xr

import xdan

SEED, BURN_IN = 2, 60
METHODS = {
    "EnKF-N, 40 members": ("enkf-n", {"members": 40}),
    "IEnKF-N, 40 members": ("ienkf-n", {"members": 40}),
    "IEnKS-N, 40 members, lag 2": ("ienks-n", {"members": 40, "lag": 2}),
    "second-order Kalman filter": ("second-order-kalman", {}),
    "iterated Kalman smoother, lag 1": ("iterated-kalman-smoother", {"lag": 1, "iterations": 12}),
}
FACTORS = ((0.05, 8.0), (0.1, 4.0), (0.3, 2.0), (np.inf, 5.0))  # c2 up to each interval
NETWORKS = ("lorenz96", "lorenz96-wide-memory", "lorenz96-kalman", "lorenz96-window")


def run(name: str, ds: xr.Dataset, interval: float) -> xr.Dataset:
    """The run of a method or network."""
    if name in METHODS:
        method, parameters = METHODS[name]
        if "kalman" in method:
            parameters = {"c2": next(factor for most, factor in FACTORS if interval <= most), **parameters}
        return ds.dan.baseline(method, **parameters, progress=False)
    return ds.dan.cycle(xdan.open_network(name), progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--intervals", type=float, nargs="*", default=[0.05, 0.1, 0.2, 0.4, 0.6])
    parser.add_argument("--forcings", type=float, nargs="*", default=[6.0, 10.0])
    parser.add_argument("--only", nargs="*", default=[*METHODS, *NETWORKS])
    parser.add_argument("--out", type=Path, default=Path("intervals"))
    parser.add_argument("--trajectories", type=int, default=16)
    parser.add_argument("--cycles", type=int, default=200)
    options = parser.parse_args()
    settings = [(8.0, interval) for interval in options.intervals] + [(forcing, 0.05) for forcing in options.forcings]
    print("| scheme | " + " | ".join(f"F = {f:g}, {i:g}" for f, i in settings) + " |", flush=True)
    print("|---" * (len(settings) + 1) + "|", flush=True)
    errors = np.full((len(options.only), len(options.intervals)), np.nan)
    for row, name in enumerate(options.only):
        cells = []
        for column, (forcing, interval) in enumerate(settings):
            size = {"cycles": options.cycles, "trajectories": options.trajectories}
            words = (name.replace(" ", "-").replace(",", ""), forcing, interval, *size.values())
            store = options.out / f"{'-'.join(f'{word}' for word in words)}.zarr"
            if store.exists():
                scores = xr.open_zarr(store, consolidated=False).load()
            else:
                experiment = xdan.TwinExperiment(xdan.Lorenz96(forcing=forcing), interval=interval)
                ds = xdan.twin(experiment, **size, seed=SEED).compute()
                scores = ds.dan.score(run(name, ds, interval), burn_in=BURN_IN).compute()
                scores.to_zarr(store, mode="w", consolidated=False)
            rmse, lost = float(scores.rmse), int(scores.diverged)
            cells.append(f"{lost} lost" if lost else f"{rmse:.3f} +- {float(scores.rmse_standard_error):.3f}")
            if column < len(options.intervals):
                errors[row, column] = rmse
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    table = xr.DataArray(errors, {"scheme": options.only, "interval": options.intervals}, name="RMSE")
    import holoviews as hv
    import hvplot.xarray  # noqa: F401

    hv.save(table.hvplot.line(x="interval", by="scheme", logy=True, width=700), options.out / "intervals.html")


if __name__ == "__main__":
    main()
