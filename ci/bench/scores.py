"""Memory and time that the score of a run with members needs beyond its input, in memory and in chunks.

    python ci/bench/scores.py [--members 40]

Each row is a process of its own, on Linux: the record and the run are made there, then scored. Memory is the largest
resident size while scoring, less that before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

import xdan

TRAJECTORIES, CYCLES, SITES = 64, 400, 40
CHUNKS = {"trajectory": 16, "time": 100}


def record_and_run(members: int) -> tuple[xr.Dataset, xr.Dataset]:
    """A twin of noise and an ensemble about its truth, in single precision."""
    rng = np.random.default_rng(0)
    dims, shape = ("trajectory", "time", "x"), (TRAJECTORIES, CYCLES, SITES)

    def noise(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    truth = noise(*shape)
    ds = xr.Dataset(
        {"truth": (dims, truth), "observation": (dims, truth + noise(*shape)), "observation_error": 1.0},
        {"trajectory": np.arange(TRAJECTORIES), "time": 0.05 * np.arange(CYCLES), "x": np.arange(SITES)},
        xdan.twin(xdan.Lorenz96(sites=SITES), cycles=1).attrs,
    )
    ensemble = noise(TRAJECTORIES, CYCLES, members, SITES)
    ensemble += truth[:, :, None]
    mean = ensemble.mean(2)
    run = xr.Dataset(
        {
            "forecast": (dims, mean),
            "analysis": (dims, mean),
            "members": (("trajectory", "time", "member", "x"), ensemble),
        }
    )
    return ds, run.assign_coords(ds.coords)


def resident(what: str) -> float:
    """MiB of this process: VmRSS is what is resident now, VmHWM the most since `/proc/self/clear_refs` was written."""
    return (
        int(next(line for line in Path("/proc/self/status").read_text().splitlines() if what in line).split()[1])
        / 2**10
    )


def measure(members: int, where: str, what: str) -> dict[str, float]:
    """Peak memory and time of one score."""
    ds, run = record_and_run(members)
    folder = Path(tempfile.mkdtemp())
    if where != "memory":
        ds.chunk(CHUNKS).to_zarr(folder / "ds.zarr", consolidated=False)
        run.chunk(CHUNKS).to_zarr(folder / "run.zarr", consolidated=False)
        ds, run = (xr.open_zarr(folder / name, consolidated=False) for name in ("ds.zarr", "run.zarr"))
    Path("/proc/self/clear_refs").write_text("5")
    before, begin = resident("VmRSS"), time.perf_counter()
    result = xdan.score(ds, run) if what == "score" else xdan.rank_histogram(ds, run)
    result.load()
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "MiB beyond the input": resident("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=40)
    parser.add_argument("--only", nargs=2, metavar=("WHERE", "WHAT"), help="one row, in this process, as JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.members, *options.only)))
        return
    size = 4 * TRAJECTORIES * CYCLES * SITES * options.members / 2**20
    print(f"{TRAJECTORIES} x {CYCLES} cycles, {SITES} sites, {options.members} members in float32: {size:.0f} MiB")
    rows = {}
    for what in ("score", "rank_histogram"):
        for where in ("memory", "chunks"):
            command = [sys.executable, __file__, "--members", str(options.members), "--only", where, what]
            rows[f"{what}, in {where}"] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    print(pd.DataFrame(rows).T.round(2).to_string())


if __name__ == "__main__":
    main()
