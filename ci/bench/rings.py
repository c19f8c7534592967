"""The networks that come with xdan on rings of other sizes than the one they were trained on.

python ci/bench/rings.py [--sites 20 40 80 160 10000]
"""

from __future__ import annotations

import argparse
import time

import xdan

CYCLES, BURN_IN, SEED = 500, 200, 11
SITE_RUNS = 2560  # sites times trajectories, so that each size costs about the same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[20, 40, 80, 160, 10_000])
    options = parser.parse_args()
    for name in ("lorenz96", "lorenz96-memory"):
        net = xdan.open_network(name)
        for sites in options.sites:
            trajectories = max(1, min(64, SITE_RUNS // sites))
            model = xdan.Lorenz96(sites=sites)
            ds = xdan.twin(model, cycles=CYCLES, trajectories=trajectories, seed=SEED).compute()
            begin = time.perf_counter()
            run = ds.dan.cycle(net)
            each = (time.perf_counter() - begin) / (CYCLES * trajectories)
            score = ds.dan.score(run, burn_in=BURN_IN).compute()
            error = f" +- {float(score.rmse_standard_error):.4f}" if trajectories > 1 else ""
            print(
                f"{name:16s} {sites:6d} sites, {trajectories:2d} trajectories: RMSE {float(score.rmse):.4f}{error}, "
                f"{int(score.diverged)} lost, {1e3 * each:.2f} ms a cycle",
                flush=True,
            )


if __name__ == "__main__":
    main()
