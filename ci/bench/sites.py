"""Time of a cycle against the number of sites, up to 10,000: LETKF and 3D-Var.

python ci/bench/sites.py [--out sites]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import hvplot.pandas  # noqa: F401
import pandas as pd
import torch

import xdan
from xdan.core.methods import Record, method_by_name, run
from xdan.records.blocks import make_record
from xdan.records.record import read

SIZES = (40, 160, 640, 2500, 10_000)
METHODS = {
    "letkf": {"members": 10, "radius": 7.3, "inflation": 1.02, "spin_up": 0},
    "3d-var": {"scale": 0.02},
}


def seconds_per_cycle(name: str, sites: int, cycles: int) -> float:
    """Time of a cycle of one trajectory, without preparation and first analysis; the best of three."""
    ds = xdan.twin(xdan.Lorenz96(sites=sites), cycles=cycles + 1, trajectories=1, seed=0).compute()
    setup = read(ds).setup

    def part(first: int, stop: int) -> Record:
        columns = slice(first, stop)
        return make_record(setup, ds.observation[:, columns].values, rows=slice(0, 1), columns=columns, seed=0)

    with torch.no_grad():
        method = method_by_name(name, **METHODS[name]).prepare(part(0, cycles + 1))
        _, state = run(method, part(0, 1))
        rest, times = part(1, cycles + 1), []
        for _ in range(3):
            begin = time.perf_counter()
            run(method, rest, state)
            times.append(time.perf_counter() - begin)
    return min(times) / cycles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("sites"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in METHODS:
        for sites in SIZES:
            each = seconds_per_cycle(name, sites, cycles=max(10, min(200, 100_000 // sites)))
            rows.append({"method": name, "sites": sites, "ms": 1e3 * each})
            print(f"{name:8s} {sites:6d} sites: {1e3 * each:9.2f} ms a cycle", flush=True)
    frame = pd.DataFrame(rows)
    plot = frame.hvplot.line(
        "sites", "ms", by="method", logx=True, logy=True, ylabel="ms a cycle, one trajectory", xlabel="sites"
    )
    xdan.save_page(options.out / "sites.html", {"Time of a cycle": plot}, title="Cost against sites")


if __name__ == "__main__":
    main()
