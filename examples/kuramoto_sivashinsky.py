"""Kuramoto-Sivashinsky on a ring of 128 points, all of them observed: an ensemble, 3D-Var and a network.

    python examples/kuramoto_sivashinsky.py [--minutes 10] [--out kuramoto-sivashinsky]

The model conserves the mean of u, which is zero in the truth. If an analysis changes this mean, the change stays for
ever, so the page shows the mean for every method. The network removes the mean from its increments, because the model's
field has `conserved=True`.

The program prints a table: for each method the analysis RMSE, its standard error, the spread, the tuned parameters and
the time in seconds. The table, a page and its picture are written into the folder --out. Training takes --minutes; 0
leaves the network out. The ensemble takes some minutes, as its inflation is tuned on another record.
"""

from __future__ import annotations

import hvplot.xarray  # noqa: F401
import xarray as xr

import xdan

from common import arguments, compare, save_pictures

METHODS = {
    "3D-Var, trained B": ("3d-var", {"background": "trained"}),
    "ETKF, 20 members": ("etkf", {"members": 20, "inflation": "tune", "rotate": True}),
}
SHOWN = ("ETKF, 20 members", "network")


def main() -> None:
    options = arguments(__doc__, "kuramoto-sivashinsky", cycles=300, burn_in=100)
    experiment = xdan.TwinExperiment(xdan.KuramotoSivashinsky(), interval=1.0)
    network = xdan.ResidualCNN(space=experiment.dynamics.space, filters=24, blocks=5, kernel=5, memory=8)
    runs = compare(experiment, METHODS, options, network)
    test = runs.pop("truth")
    means = [run.analysis.isel(trajectory=0, drop=True).mean("x") for run in runs.values()]
    mean = xr.concat(means, "method").assign_coords(method=list(runs)).rename("mean of u").drop_attrs()
    lines = mean.hvplot.line("time", by="method", xlabel="model time", title="u of the analysis, mean over the ring")
    shown = [label for label in SHOWN if label in runs]
    pages = {f"A trajectory, {label}": test.dan.hovmoller(runs[label], title=label) for label in shown}
    pages["All methods"] = test.dan.rmse_in_time(runs, log=True)
    pages["What is conserved"] = lines.opts(width=970)
    save_pictures(options.out / "kuramoto-sivashinsky", pages, title="Kuramoto-Sivashinsky")


if __name__ == "__main__":
    main()
