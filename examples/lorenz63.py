"""Lorenz-63: three components without neighbours, at long intervals. Which methods cope with strong nonlinearity?

    python examples/lorenz63.py [--minutes 10] [--out lorenz63]

In an interval of 0.25, errors grow far beyond the linear range. Here iterations within an analysis help most.

The program prints a table: for each method the analysis RMSE, its standard error, the spread, the tuned parameters and
the time in seconds. The table, a page and its picture are written into the folder --out. Training takes --minutes; 0
leaves the network out. All other methods together take two to five minutes.
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
