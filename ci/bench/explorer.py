"""The explorer on a large store: time from `xr.open_zarr` until a browser shows the first picture, and bytes read.

    python ci/bench/explorer.py [--gib 10] [--out explorer-record]

The script needs Chromium and Playwright. The store has a record and a run of noise, which does not compress. A second
call uses an existing store. The start of the browser is not counted; the first opening includes the imports of
`explore`.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import time
from pathlib import Path

import dask.array as da
import panel as pn
import xarray as xr
from dask.diagnostics import ProgressBar
from playwright.sync_api import sync_playwright

import xdan

SITES, TRAJECTORIES, CHUNKS = 40, 100, (10, 1000, 40)


def write(folder: Path, gib: float) -> None:
    """Write a record and a run, together of `gib` GiB."""
    cycles = int(gib * 2**30 / (4 * SITES * TRAJECTORIES) / 4)  # truth, observation, forecast, analysis
    record = xdan.twin(xdan.Lorenz96(), cycles=cycles, trajectories=TRAJECTORIES, seed=0)
    run = record.dan.cycle(xdan.open_network("lorenz96"))
    for name, ds in (("record", record), ("run", run)):
        noise = {
            key: variable.copy(data=da.random.standard_normal(variable.shape, chunks=CHUNKS).astype("float32"))
            for key, variable in ds.data_vars.items()
            if variable.shape == (TRAJECTORIES, cycles, SITES)
        }
        kept = [key for key, variable in ds.data_vars.items() if key in noise or not variable.ndim]
        with ProgressBar():
            ds[kept].assign(noise).to_zarr(folder / f"{name}.zarr", mode="w", consolidated=False)


def size(folder: Path) -> float:
    """GiB on disk."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**30


def bytes_read() -> int:
    """Bytes that this process has asked the system for."""
    return int(next(line for line in Path("/proc/self/io").read_text().splitlines() if "rchar" in line).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("explorer-record"))
    options = parser.parse_args()
    if not (options.out / "run.zarr").exists():
        write(options.out, options.gib)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        parser.error("no Chromium is installed")
    print(f"store of {size(options.out):.1f} GiB")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for repeat in range(options.repeats):
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            before, begin = bytes_read(), time.perf_counter()
            record = xr.open_zarr(options.out / "record.zarr", consolidated=False)
            run = xr.open_zarr(options.out / "run.zarr", consolidated=False)
            app = record.dan.explore({"network": run})
            made = time.perf_counter()
            server = pn.serve(app, port=port, show=False, threaded=True, verbose=False)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            while True:
                try:
                    page.goto(f"http://localhost:{port}")
                    break
                except Exception:  # the server is not up yet
                    page.wait_for_timeout(20)
            page.wait_for_selector("canvas")
            shown = time.perf_counter()
            print(
                f"opening {repeat + 1}: explore() after {made - begin:.2f} s, first picture after "
                f"{shown - begin:.2f} s, {(bytes_read() - before) / 2**20:.0f} MiB read"
            )
            page.close()
            server.stop()
        browser.close()


if __name__ == "__main__":
    main()
