"""Accuracy and cost on the test record of the quickstart: schemes with one trajectory, ensembles, and networks.

    python ci/bench/costs.py [--only kalman] [--seed 1] [--sites 40] [--cycles 600] [--trajectories 64]

Lorenz-96, F = 8, every site observed with unit error at an interval of 0.05. A row has the analysis RMSE with its
standard error over trajectories, the number of runs of the model and of its tangent linear model in a cycle, and the
milliseconds of a cycle for each trajectory when all run side by side.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from typing import Any

import xarray as xr

import xdan

BURN_IN = 200


@dataclass(frozen=True)
class Row:
    """A method by its name, or a network that comes with xdan; `runs` counts those of a cycle, for N = 40 sites."""

    title: str
    scheme: str
    parameters: dict[str, Any] = field(default_factory=dict)
    model: int = 1
    tangent: int = 0

    def run(self, record: xr.Dataset) -> xr.Dataset:
        if self.scheme.startswith("lorenz96"):
            net = xdan.open_network(self.scheme)
            return record.dan.cycle(net, progress=False)
        return record.dan.baseline(self.scheme, **self.parameters, progress=False)


def smoother(lag: int, iterations: int) -> Row:
    parameters = {"c2": 8.0, "lag": lag, "iterations": iterations}
    runs = {"model": 2 + lag * iterations, "tangent": 40 * (1 + lag * (iterations + 1))}
    return Row(f"iterated Kalman smoother, lag {lag}", "iterated-kalman-smoother", parameters, **runs)


ROWS = [
    Row("3D-Var", "3d-var"),
    Row("EnKF-N, 20 members", "enkf-n", {"members": 20}, 20),
    Row("EnKF-N, 40 members", "enkf-n", {"members": 40}, 40),
    Row("IEnKS-N, 40 members, lag 5", "ienks-n", {"members": 40, "lag": 5}, 5 * 40),
    Row("second-order Kalman filter", "second-order-kalman", {"c2": 8.0}, 1, 40),
    smoother(5, 1),
    smoother(10, 1),
    Row("network", "lorenz96"),
    Row("network, wide", "lorenz96-wide"),
    Row("latent memory", "lorenz96-memory"),
    Row("latent memory, wide", "lorenz96-wide-memory"),
    Row("latent memory, two networks", "lorenz96-memory-committee"),
    Row("Kalman filter, nothing carried", "lorenz96-single", {}, 1 + 36, 36 * 40),
    Row("Kalman filter", "lorenz96-kalman", {}, 1, 40),
    Row("Kalman filter, put back 10 intervals", "lorenz96-window", {}, 2 + 10, 11 * 40),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="rows whose title or scheme contains one of these words")
    for name, default in (("seed", 1), ("sites", 40), ("cycles", 600), ("trajectories", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    sizes = {"cycles": options.cycles, "trajectories": options.trajectories, "seed": options.seed}
    record = xdan.twin(xdan.Lorenz96(sites=options.sites), interval=0.05, **sizes).compute()
    print("| scheme | RMSE | model runs | tangent runs | ms a cycle | lost |\n|---|---|---|---|---|---|", flush=True)
    for row in ROWS:
        if options.only and not any(word in f"{row.title} {row.scheme}" for word in options.only):
            continue
        begin = time.perf_counter()
        run = row.run(record)
        each = 1e3 * (time.perf_counter() - begin) / (options.cycles * options.trajectories)
        score = record.dan.score(run, burn_in=BURN_IN).compute()
        rmse = f"{float(score.rmse):.4f} +- {float(score.rmse_standard_error):.4f}"
        print(
            f"| {row.title} | {rmse} | {row.model} | {row.tangent} | {each:.3f} | {int(score.diverged)} |", flush=True
        )


if __name__ == "__main__":
    main()
