"""Time of a cycle against the number of sites, up to 10,000: LETKF and 3D-Var.

python ci/bench/sites.py [--out sites]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import hvplot.pandas  # noqa: F401
import pandas as pd

import xdan

SIZES = (40, 160, 640, 2500, 10_000)
METHODS = {
    "letkf": {"members": 10, "radius": 7.3, "inflation": 1.02, "spin_up": 0},
    "3d-var": {"scale": 0.02},
}


def seconds_per_cycle(name: str, sites: int, cycles: int) -> float:
    """Time of a cycle of one trajectory, what comes before the first left out."""
    model = xdan.Lorenz96(sites=sites)
    record = xdan.twin(model, cycles=2 * cycles + 1, trajectories=1, seed=0).compute()

    def seconds(count: int) -> float:
        part = record.isel(time=slice(0, count))
        begin = time.perf_counter()
        xdan.baseline(part, name, **METHODS[name])
        return time.perf_counter() - begin

    seconds(2)
    long, short = (min(seconds(count) for _ in range(3)) for count in (2 * cycles + 1, cycles + 1))
    return (long - short) / cycles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("sites"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in METHODS:
        for sites in SIZES:
            each = seconds_per_cycle(name, sites, cycles=max(5, min(200, 100_000 // sites)))
            rows.append({"method": name, "sites": sites, "ms": 1e3 * each})
            print(f"{name:8s} {sites:6d} sites: {1e3 * each:9.2f} ms a cycle", flush=True)
    frame = pd.DataFrame(rows)
    plot = frame.hvplot.line(
        "sites", "ms", by="method", logx=True, logy=True, ylabel="ms a cycle, one trajectory", xlabel="sites"
    )
    xdan.save_page(options.out / "sites.html", {"Time of a cycle": plot}, title="Cost against sites")


if __name__ == "__main__":
    main()
