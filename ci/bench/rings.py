"""Networks that come with xdan, on rings whose sizes differ from that of their training.

    python ci/bench/rings.py [--sites 20 40 80 160 10000] [--long 10000 1000000]

For long rings the script prints the time of a cycle for each site, and the peak memory of the process. The record is
one trajectory of `LONG_CYCLES` cycles; it takes 8 bytes for each site and cycle.
"""

from __future__ import annotations

import argparse
import resource
import time

import xdan

CYCLES, BURN_IN, SEED = 500, 200, 11
LONG, LONG_CYCLES = "lorenz96-wide", 8
SITE_RUNS = 2560  # sites times trajectories, so that each size costs about the same


def long_ring(sites: int) -> float:
    """Microseconds of a cycle for each site, the fastest of three runs."""
    net = xdan.open_network(LONG)
    ds = xdan.twin(xdan.Lorenz96(sites=sites), cycles=LONG_CYCLES, trajectories=1, seed=SEED).compute()
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        ds.dan.cycle(net, progress=False)
        seconds.append(time.perf_counter() - begin)
    return 1e6 * min(seconds) / (sites * LONG_CYCLES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="*", default=[20, 40, 80, 160, 10_000])
    parser.add_argument("--long", type=int, nargs="*", default=[10_000, 1_000_000])
    options = parser.parse_args()
    first = 0.0
    for sites in options.long:
        each = long_ring(sites)
        first = first or each
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        ratio = f"{each / first:.2f} times the first"
        print(f"{LONG:16s} {sites:9,d} sites: {each:.2f} us a site and cycle, {ratio}, peak {peak:.2f} GiB", flush=True)
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
