"""A mean marginal gain over a long record: peak memory, and equal results on threads and on two processes.

python ci/bench/gain_record.py [--states 100000] [--out gain-record]

The network is of the default architecture, trained for a minute.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import dask
import numpy as np
import xarray as xr
from dask.diagnostics import ProgressBar
from distributed import Client, LocalCluster

import xdan

TRAJECTORIES = 100


def peak() -> float:
    """Peak memory of this process, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path("gain-record"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    store = options.out / "record.zarr"
    twin = xdan.twin(xdan.Lorenz96(), cycles=options.states // TRAJECTORIES, trajectories=TRAJECTORIES, seed=7)
    twin.to_zarr(store, mode="w", consolidated=False)
    net = xdan.train(xdan.Lorenz96(), "residual-cnn", minutes=1, seed=0)
    omega = xr.open_zarr(store, consolidated=False).dan.gain(net)
    begin = time.perf_counter()
    with dask.config.set(scheduler="threads"), ProgressBar():
        threads = omega.compute()
    seconds = time.perf_counter() - begin
    print(f"threads: {omega.attrs['states']} states in {seconds:.0f} s, peak memory {peak():.2f} GiB", flush=True)
    begin = time.perf_counter()
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        processes = omega.compute()
        peaks = client.run(peak)
    seconds = time.perf_counter() - begin
    print(f"two processes: {seconds:.0f} s, peak memory {', '.join(f'{p:.2f}' for p in peaks.values())} GiB")
    difference = float(np.abs(threads - processes).max() / np.abs(threads).max())
    print(f"largest difference {difference:.1e} of the largest value {float(np.abs(threads).max()):.5f}")


if __name__ == "__main__":
    main()
