"""The effect of patches on the RMSE, and time and memory for each site of a long ring.

    python ci/bench/patches.py [--sites 240] [--radii 8 12 16] [--cycles 400] [--long 1000 10000 100000]

Lorenz-96, F = 8, R = I, interval 0.05: the second-order Kalman filter (c2 = 8) and the network "lorenz96-kalman", with
one matrix and with patches of each radius, on the same record. Then both with a radius of 12 on one trajectory of long
rings, and this process's peak memory.
"""

from __future__ import annotations

import argparse
import resource
import time

import xarray as xr

import xdan

CYCLES, BURN_IN, TRAJECTORIES, SEED = 400, 100, 6, 11
LONG_CYCLES, LONG_RADIUS = 9, 12.0
NAMES = ("second-order-kalman", "lorenz96-kalman")


def cycled(name: str, ds: xr.Dataset, radius: float | None) -> xr.Dataset:
    """The run of a method or network, with patches of a radius or with one matrix."""
    if name == "second-order-kalman":
        return ds.dan.baseline(name, c2=8.0, radius=radius, progress=False).compute()
    network = xdan.open_network(name).with_parameters(radius=radius)
    return ds.dan.cycle(network, progress=False).compute()


def seconds(name: str, ds: xr.Dataset) -> float:
    """Seconds of a run with patches, the faster of two runs."""
    took = []
    for _ in range(2):
        begin = time.perf_counter()
        cycled(name, ds, LONG_RADIUS)
        took.append(time.perf_counter() - begin)
    return min(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=240)
    parser.add_argument("--radii", type=float, nargs="*", default=[8, 12, 16])
    parser.add_argument("--cycles", type=int, default=CYCLES)
    parser.add_argument("--long", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    options = parser.parse_args()
    ds = xdan.twin(xdan.Lorenz96(options.sites), cycles=options.cycles, trajectories=TRAJECTORIES, seed=SEED).compute()
    for name in NAMES if options.radii else ():
        for radius in (None, *options.radii):
            begin = time.perf_counter()
            run = cycled(name, ds, radius)
            each = (time.perf_counter() - begin) / (options.cycles * TRAJECTORIES)
            score = ds.dan.score(run, burn_in=BURN_IN).compute()
            label = "one matrix" if radius is None else f"radius {radius:g}"
            print(
                f"{name:20s} {options.sites:5d} sites, {label:10s}: RMSE {float(score.rmse):.4f} +- "
                f"{float(score.rmse_standard_error):.4f}, {int(score.diverged)} lost, {1e3 * each:.1f} ms a cycle",
                flush=True,
            )
    for name in NAMES:
        for sites in options.long:
            ds = xdan.twin(xdan.Lorenz96(sites), cycles=LONG_CYCLES, trajectories=1, seed=SEED).compute()
            # The difference of two runs leaves out the start, such as the spin-up of a climate.
            first, all_cycles = (seconds(name, ds.isel(time=slice(count))) for count in (1, LONG_CYCLES))
            each = 1e6 * (all_cycles - first) / (sites * (LONG_CYCLES - 1))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"{name:20s} {sites:9,d} sites: {each:.1f} us a site and cycle, peak {peak:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
