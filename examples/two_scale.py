"""Two-scale Lorenz-96, with 8 observed slow sites and 256 unobserved fast sites: an ensemble, 3D-Var and a network.

    python examples/two_scale.py [--minutes 10] [--out two-scale]

The slow field U has an amplitude of some 5, the fast field V one of 0.3. The 256 sites of V outweigh the 8 sites of U
in a root mean square over all components, so each field has its score. Observations of U correct V through covariances
between the fields.

The program prints a table: for each method the analysis RMSE of U and V, its standard error, the spread, the tuned
parameters and the time in seconds. The table, a page and its picture are written into the folder --out. Training takes
--minutes; 0 leaves the network out. The ensemble takes some minutes, as its inflation is tuned on another record.
"""

from __future__ import annotations

import math

import xdan

from common import arguments, compare, save_pictures

METHODS = {
    "3D-Var, trained B": ("3d-var", {"background": "trained"}),
    "ETKF, 20 members": ("etkf", {"members": 20, "inflation": "tune", "rotate": True}),
    "EnKF-N, 20 members": ("enkf-n", {"members": 20}),
}
SHOWN = ("EnKF-N, 20 members", "network")


def main() -> None:
    options = arguments(__doc__, "two-scale", cycles=300, burn_in=200, archive=2048)
    experiment = xdan.TwinExperiment(
        xdan.TwoScaleLorenz96(), interval=0.05, observe={"U": xdan.Sites.all()}, error_std=math.sqrt(0.1)
    )
    network = xdan.ResidualCNN(space=experiment.dynamics.space, filters=32, blocks=4, kernel=3, memory=8)
    runs = compare(experiment, METHODS, options, network)
    test = runs.pop("truth")
    shown = [label for label in SHOWN if label in runs]
    pages = {f"A trajectory, {label}": test.dan.hovmoller(runs[label], title=label) for label in shown}
    pages["All methods"] = test.dan.rmse_in_time(runs, log=True)
    save_pictures(options.out / "two-scale", pages, title="Two-scale Lorenz-96")


if __name__ == "__main__":
    main()
