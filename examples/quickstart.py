"""Lorenz-96 from end to end: a twin in Zarr, three networks trained on it, tuned baselines, one table and one page.

    python examples/quickstart.py [--minutes 2.5] [--out quickstart]

Three networks are trained one after another, for equal times and on all cores: the default network, a network with
memory, and a network that corrects a Kalman filter. These networks, the filter alone, 3D-Var and two EnKF-N then
assimilate a test record that no network has seen.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import xarray as xr

import xdan

BURN_IN = 200  # cycles in which an ensemble forgets its start from the climatology
LONG = 10.0  # minutes of training above which a larger network is better

# Kind, architecture and training settings. With memory, the past comes through latent channels: longer windows pay.
# With more time, a wider network.
NETWORKS: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    "network": (xdan.ResidualCNN, {"filters": 24, "blocks": 6, "kernel": 5}, {}),
    "network with memory": (
        xdan.ResidualCNN,
        {"filters": 32, "blocks": 5, "kernel": 3, "memory": 12},
        {"objective": "mse", "window": 16, "batch": 32},
    ),
    "network and Kalman filter": (
        xdan.KalmanCNN,
        {"filters": 24, "blocks": 4, "kernel": 5, "memory": 8, "c2": 5.0},
        {"objective": "mse", "window": 8, "batch": 24},
    ),
}
WIDER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "network with memory": (
        {"filters": 40, "memory": 16},
        {"batch": 64, "optimiser": xdan.Optimiser(learning_rate=0.012, adam_learning_rate=0.0024, weight_decay=0.1)},
    ),
}


def slug(name: str) -> str:
    return name.replace(" ", "-")


def train_one(out: Path, name: str, minutes: float, seed: int) -> xdan.Network:
    """Train one network, or go on with a killed training."""
    checkpoint = out / f"{slug(name)}-checkpoint.zarr"
    kind, architecture, settings = NETWORKS[name]
    if minutes > LONG and name in WIDER:
        architecture, settings = architecture | WIDER[name][0], settings | WIDER[name][1]
    net = xr.open_zarr(out / "train.zarr", consolidated=False).dan.train(
        kind(**architecture),
        **settings,
        minutes=minutes,
        seed=seed,
        checkpoint=checkpoint,
        progress={"desc": f"{name:<26}"},
    )
    net.to_zarr(out / f"{slug(name)}.zarr", mode="w")
    shutil.rmtree(checkpoint)
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.5, help="training time of each network")
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="folder for stores and page")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begin = time.perf_counter()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)

    def done(what: str) -> None:
        print(f"[{time.perf_counter() - begin:6.1f} s] {what}", flush=True)

    # 1. Truth and observations, every site observed with unit error, in chunked Zarr stores.
    model = xdan.Lorenz96(sites=40, forcing=8.0)
    trajectories = 4096 if options.minutes > LONG else 1024
    for name, count, cycles, seed in (
        ("train", trajectories, 1000, options.seed),
        ("test", 64, BURN_IN + 400, options.seed + 1),
    ):
        twin = xdan.twin(model, interval=0.05, cycles=cycles, trajectories=count, error_std=1.0, seed=seed)
        twin.to_zarr(out / f"{name}.zarr", mode="w", consolidated=False)
    test = xr.open_zarr(out / "test.zarr", consolidated=False)
    done(f"twins of {trajectories} x 1000 and 64 x {BURN_IN + 400} states in {out}/train.zarr and {out}/test.zarr")

    # 2. Three networks, one after the other.
    nets = {name: train_one(out, name, options.minutes, options.seed) for name in NETWORKS}
    done(f"three networks trained, {options.minutes:g} minutes each")

    # 3. Every method cycles the test record. Each run is written into a store.
    runs = {}
    for name, method, settings in (
        ("3D-Var", "3d-var", {}),
        ("EnKF-N, 20 members", "enkf-n", {"members": 20}),
        ("EnKF-N, 40 members", "enkf-n", {"members": 40}),
        ("second-order Kalman filter", "second-order-kalman", {"c2": 8.0}),
    ):
        store = out / f"{method}{settings.get('members', '')}.zarr"
        runs[name] = test.dan.baseline(method, **settings, store=store, mode="w", progress=False)
    for name, net in nets.items():
        store = out / f"run-{slug(name)}.zarr"
        runs[name] = test.dan.cycle(net, store=store, mode="w", progress=False)
    done(f"test record cycled by {len(runs)} methods")

    # 4. Scores after burn-in.
    scores = test.dan.score(runs, burn_in=BURN_IN).compute()
    columns = [
        "rmse",
        "rmse_standard_error",
        "forecast_rmse",
        "spread",
        "crps",
        "crps_of",  # a network without a spread has no CRPS
        "innovation_variance",
        "diverged",
    ]
    table = scores.to_pandas()[columns].replace({"crps_of": {"": "-"}}).rename_axis(None)
    cycles = scores.attrs["cycles"]
    text = table.to_string(float_format=lambda v: f"{v:.4f}", na_rep="-")
    heading = f"analysis scores over {cycles} cycles (64 trajectories, {BURN_IN} cycles of burn-in left out)"
    print(f"\n{heading}\n{text}\n")
    (out / "table.txt").write_text(f"{heading}\n{text}\n")

    # 5. One page. The dashed line is the error of the best linear filter, from the Lyapunov exponents.
    spectrum = xdan.lyapunov_spectrum(model, vectors=18, time=100.0, trajectories=4)
    floor = xdan.lyapunov_floor(spectrum, interval=0.05, components=40)
    best = "network and Kalman filter"
    xdan.save_page(
        out / "quickstart.html",
        {
            f"A single forecast corrected by the {best}": test.dan.hovmoller(runs[best], title=best),
            "All methods, from the start": test.dan.rmse_in_time(
                runs, cycles=slice(0, 400), log=True, levels={"Lyapunov floor": float(floor.rmse)}
            ),
            "Training": xdan.training_history({name: net.history for name, net in nets.items()}),
        },
        title="xdan quickstart",
        notes=f"Lorenz-96, 40 sites, {heading}.\n\n```\n{text}\n```",
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    done(f"page in {out}/quickstart.html; peak memory of this process {peak:.1f} GiB")


if __name__ == "__main__":
    main()
