"""The contents of the latent channels of a network with memory, by linear regressions on states that were not fitted.

    python examples/memory.py [--network lorenz96-memory] [--out memory]

A network with memory and an EnKF-N with 40 members assimilate one record. Ridge regressions predict quantities of the
ensemble and of the network at a site from the channels around this site and, for comparison, from the forecast around
it. The table shows the share of variance that they explain on trajectories to which they were not fitted.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import hvplot.pandas  # noqa: F401
import numpy as np
import pandas as pd
import xarray as xr

import xdan

from common import markdown

TRAJECTORIES, CYCLES, BURN_IN, EVERY = 48, 400, 100, 5
Array = np.ndarray[Any, np.dtype[Any]]


def around(field: xr.DataArray, reach: int) -> Array:
    """Values of every channel at a site and at `reach` sites on each side: shape (trajectory, samples, features)."""
    turned = xr.concat([field.roll(x=k, roll_coords=False) for k in range(-reach, reach + 1)], "place")
    more = [dim for dim in ("channel", "place") if dim in turned.dims]
    return turned.transpose("trajectory", "time", "x", *more).values.reshape(
        field.sizes["trajectory"], -1, int(np.prod([turned.sizes[d] for d in more]))
    )


def with_products(values: Array) -> Array:
    """Values and all their products of two."""
    i, j = np.triu_indices(values.shape[-1])
    return np.concatenate([values, values[..., i] * values[..., j]], -1)


def explained(features: Array, target: Array, ridge: float = 1e-3) -> float:
    """Share of the target's variance that a ridge regression explains on the last third of the trajectories."""
    cut = 2 * len(features) // 3
    x, y = features[:cut].reshape(-1, features.shape[-1]).astype(np.float64), target[:cut].ravel().astype(np.float64)
    mean, deviation, middle = x.mean(0), x.std(0) + 1e-12, y.mean()
    z = (x - mean) / deviation
    weights = np.linalg.solve(z.T @ z / len(z) + ridge * np.eye(z.shape[1]), z.T @ (y - middle) / len(z))
    test = (features[cut:].reshape(-1, features.shape[-1]) - mean) / deviation @ weights + middle
    truth = target[cut:].ravel()
    return float(1.0 - np.mean((test - truth) ** 2) / np.var(truth))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--network", default="lorenz96-memory", help="name of a network that comes with xdan, or a path"
    )
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("memory"))
    options = parser.parse_args()
    net = xdan.open_network(options.network)
    if not net.memory:
        parser.error(f"{options.network} has no memory")
    options.out.mkdir(parents=True, exist_ok=True)
    record = xdan.twin(xdan.Lorenz96(), cycles=CYCLES, trajectories=TRAJECTORIES, seed=options.seed).compute()
    run = record.dan.cycle(net, members=True)
    ensemble = record.dan.baseline("enkf-n", members=40)
    taken = {"time": slice(BURN_IN, None, EVERY)}
    covariance = record.dan.gain(net, kind="covariance", run=run, burn_in=BURN_IN, every=EVERY).compute()
    variance = xr.DataArray(np.diagonal(covariance.values, axis1=2, axis2=3), dims=("trajectory", "time", "x"))
    thin, theirs = run.isel(taken), ensemble.isel(taken)
    targets = {
        "log of the EnKF-N's forecast spread": np.log(theirs.forecast_spread),
        "log of the EnKF-N's analysis spread": np.log(theirs.spread),
        "log of the network's own P_a on the diagonal": np.log(variance.clip(1e-4)),
        "error of the network's forecast": record.truth.isel(taken) - thin.forecast,
        "EnKF-N's forecast minus the network's": theirs.forecast - thin.forecast,
        "size of the forecast's error": np.log(abs(record.truth.isel(taken) - thin.forecast) + 1e-2),
    }
    forecast = around(thin.forecast, 4)
    readings = {
        "forecast, 9 sites, quadratic": with_products(forecast),
        "channels of the site": around(thin.memory, 0),
        "channels of 5 sites": around(thin.memory, 2),
        "both": np.concatenate([with_products(forecast), around(thin.memory, 2)], -1),
    }
    rows = [
        {"what is read": name, **{label: explained(x, around(target, 0)[..., 0]) for label, x in readings.items()}}
        for name, target in targets.items()
    ]
    table = pd.DataFrame(rows)
    decoding = xr.Dataset({label: ("target", table[label]) for label in readings}, attrs={"targets": list(targets)})
    decoding.to_zarr(options.out / "decoding.zarr", mode="w", consolidated=False)
    scores = {
        name: float(record.dan.score(one, burn_in=BURN_IN).rmse)
        for name, one in (("network", run), ("EnKF-N", ensemble))
    }
    notes = f"{markdown(table)}\nanalysis RMSE: {', '.join(f'{k} {v:.4f}' for k, v in scores.items())}\n"
    (options.out / "memory.md").write_text(notes)
    bars = table.melt("what is read", list(readings), "from", "explained").hvplot.barh(
        "what is read",
        "explained",
        by="from",
        width=900,
        height=520,
        ylabel="explained variance",
        xlabel="",
        ylim=(0, 1),
    )
    xdan.save_page(options.out / "memory.html", {"Explained variance": bars}, title="What memory holds", notes=notes)
    print(notes)


if __name__ == "__main__":
    main()
