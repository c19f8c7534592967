"""Speed of ensemble methods on two cores, for 64 trajectories and for one, against DAPPER on each core.

    python ci/bench/ensembles.py [--only etkf ...]

Both have equal settings, and the iterative filter stops at equal steps of the weights. `--profile` also prints the
operations that take most of the time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import dask
import peer
import torch
import xarray as xr

import xdan

TRAJECTORIES, CYCLES, PEER_CYCLES = 64, 120, 600
# Our name and parameters, and the ratios to reach over 64 trajectories and over one.
METHODS: dict[str, tuple[Mapping[str, Any], float, float]] = {
    "enkf-n": ({"members": 40}, 6.0, 1.0),
    "etkf": ({"members": 40, "inflation": 1.01, "spin_up": 0}, 6.0, 1.0),
    "ienkf-n": ({"members": 40, "tolerance": 1e-3}, 6.0, 1.0),
    "letkf": ({"members": 10, "radius": 7.3, "inflation": 1.02, "spin_up": 0}, 10.0, 1.0),
}


def seconds(ds: xr.Dataset, name: str) -> float:
    """Wall time of one run on two of dask's threads."""
    begin = time.perf_counter()
    with dask.config.set(scheduler="threads", num_workers=2):
        xdan.baseline(ds, name, **METHODS[name][0])["analysis"].compute()
    return time.perf_counter() - begin


def rate(ds: xr.Dataset, name: str) -> float:
    """Cycles per second, without the work before the first cycle."""
    short = ds.isel(time=slice(0, CYCLES // 4))
    cycles = ds.sizes["trajectory"] * (CYCLES - CYCLES // 4)
    return cycles / (seconds(ds, name) - seconds(short, name))


def profile(ds: xr.Dataset, name: str) -> str:
    """Operations that take most of the time, on one thread."""
    with (
        dask.config.set(scheduler="synchronous"),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler,
    ):
        xdan.baseline(ds, name, **METHODS[name][0])["analysis"].compute()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    shares = (f"{event.key.removeprefix('aten::')} {event.self_cpu_time_total / total:.0%}" for event in events[:6])
    return ", ".join(shares)


def main() -> None:
    parser = peer.arguments(__doc__)
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    record = xdan.twin(xdan.Lorenz96(), cycles=CYCLES, trajectories=TRAJECTORIES, seed=0).compute()
    # Two blocks of trajectories: dask's threads run one on each core.
    many = record.chunk(trajectory=TRAJECTORIES // 2, time=CYCLES)
    one = record.isel(trajectory=slice(0, 1)).chunk(time=CYCLES)
    for name in options.only:
        parameters, *targets = METHODS[name]
        seconds(one, name)
        for ds, processes, target in ((many, 2, targets[0]), (one, 1, targets[1])):
            pairs = [
                (rate(ds, name), sum(peer.rates(name, parameters["members"], PEER_CYCLES, processes=processes)))
                for _ in range(options.repeats)
            ]
            label = f"{name}, {parameters['members']} members, {ds.sizes['trajectory']} trajectories"
            peer.report(label, [a for a, _ in pairs], [b for _, b in pairs], "cycles / s", target)
        if options.profile:
            print(f"  {profile(many, name)}")


if __name__ == "__main__":
    main()
