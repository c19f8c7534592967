"""Lorenz-63: three components without neighbours, at long intervals; the order in which methods fall behind.

    python examples/lorenz63.py [--minutes 10] [--out lorenz63]

An interval of 0.25 lets errors grow far beyond what is linear: iterations within an analysis are worth most here.

It prints a table: the analysis RMSE of each method, its standard error, its spread, what was tuned and the seconds that
the method took. The table, a page and its picture are kept in the folder --out. Training takes --minutes, and 0 leaves
the network out. All other methods together take two to five minutes.
"""

from __future__ import annotations

import math

import xdan

from common import arguments, compare, save_pictures

METHODS = {
    "3D-Var": ("3d-var", {}),
    "EnKF-N, 3 members": ("enkf-n", {"members": 3}),
    "ETKF, 10 members": ("etkf", {"members": 10, "inflation": "tune", "rotate": True}),
    "IEnKS, 10 members, lag 1": ("ienks", {"members": 10, "lag": 1, "inflation": 1.02}),
}
SHOWN = ("IEnKS, 10 members, lag 1", "network")


def main() -> None:
    options = arguments(__doc__, "lorenz63", cycles=400, burn_in=100)
    experiment = xdan.TwinExperiment(xdan.Lorenz63(), interval=0.25, error_std=math.sqrt(2.0))
    network = xdan.ResidualCNN(space=experiment.dynamics.space, filters=48, blocks=4, kernel=1, memory=12)
    runs = compare(experiment, METHODS, options, network)
    test = runs.pop("truth")
    shown = [label for label in SHOWN if label in runs]
    pages = {f"A trajectory, {label}": test.dan.component_curves(runs[label], title=label) for label in shown}
    pages["All methods"] = test.dan.rmse_in_time(runs, log=True)
    save_pictures(options.out / "lorenz63", pages, title="Lorenz-63")


if __name__ == "__main__":
    main()
