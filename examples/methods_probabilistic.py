"""Figures of networks that give a distribution: "gaussian", "objectives" and "calibrated" of examples/methods.py.

Lorenz-96 with every site observed at intervals of 0.05, R = I. Networks that are not in examples/trained are trained
first, for some minutes each, and saved. docs/probabilistic.md shows the results.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hvplot.xarray  # noqa: F401 - registers hvplot
import numpy as np
import pandas as pd
import xarray as xr

import xdan
from xdan.core.learning import LogScore, Variational
from xdan.network import SHIPPED

from common import kept, markdown, save_pictures

BURN_IN, DRAWS, BINS, TOGETHER = 200, 20, 10, 32
EVERY = 5  # cycles between two cycles whose ranks are counted
TRAINED = Path(__file__).with_name("trained")
TRAINING: dict[str, Any] = {"steps": 250, "window": 6, "batch": 24, "validate_every": 250, "seed": 1}
RECORD = {"cycles": 300, "trajectories": 72, "seed": 5}  # record on which constant spreads are measured
JOINT = LogScore(marginal=False)
# Networks by name: the network inside or before each, and further settings of its training.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "log-score": ("lorenz96", {"objective": JOINT}),
    "crps": ("lorenz96", {"objective": "crps"}),
    "energy": ("lorenz96", {"objective": "energy"}),
    "variational": ("lorenz96", {"objective": Variational(inflation=1.3)}),
    "memory": ("lorenz96-wide-memory", {"objective": JOINT}),
    "log-score-long": ("log-score", {"steps": 600, "validate_every": 600, "seed": 2, "objective": JOINT}),
    "gaussian": ("log-score-long", {"kind": "factor"}),
    "gaussian-memory": ("memory", {"kind": "factor"}),
}
ENSEMBLES = {"EnKF-N, 20 members": "enkf-n-20", "EnKF-N, 40 members": "enkf-n-40"}
Make = Callable[[xr.Dataset], xr.Dataset]


def gaussian(options: argparse.Namespace) -> None:
    """Networks with a spread, without and with memory, and EnKF-N: scores, ranks of the truth, reliability."""
    rows = {'around "lorenz96"': "gaussian", 'around "lorenz96-wide-memory"': "gaussian-memory", **ENSEMBLES}
    scores = _table(options, rows)
    ranked = {name: one.histogram_rank for name, one in scores.items() if "histogram_rank" in one}
    each = [(one / one.mean()).expand_dims(of=[name]) for name, one in ranked.items()]
    frequency = xr.concat(each, "of").drop_attrs().rename("frequency over that of a flat histogram")
    sections = {
        f"Rank of the truth among {DRAWS} draws or members": frequency.hvplot.line(x="rank", by="of", width=700),
        "Error where the spread is so large": _reliability(scores),
    }
    save_pictures(options.out / "gaussian", sections, title="Networks that give a distribution")


def objectives(options: argparse.Namespace) -> None:
    """One network, trained by the log score, by the CRPS, by the energy score, and without the truth."""
    names = ("log-score", "crps", "energy", "variational")
    scores = _table(options, {name: name for name in names})
    sections = {"Error where the spread is so large": _reliability(scores)}
    save_pictures(options.out / "objectives", sections, title="What a spread is trained by")


def calibrated(options: argparse.Namespace) -> None:
    """CRPS of a network without a spread, with a constant spread, with a learned spread, and of ensembles."""
    rows = {
        "analysis alone": "plain",
        "constant spread": "constant",
        "constant spread, without the truth": "constant-without-truth",
        "network spread": "gaussian",
        **ENSEMBLES,
    }
    _table(options, rows)


def scheme(key: str, options: argparse.Namespace) -> Make:
    """A function that makes a run on a record: of an ensemble, a network, or a network with a constant spread."""
    if key.startswith("enkf-n"):
        members = int(key.rpartition("-")[2])
        return lambda ds: ds.dan.baseline("enkf-n", members=members, keep_members=members == DRAWS, progress=False)
    if key not in ("plain", "constant", "constant-without-truth"):
        net = network(key, options)
        return lambda ds: ds.dan.cycle(net, members=True)
    net = xdan.open_network("lorenz96")
    if key != "plain":
        record = xdan.twin(xdan.Lorenz96(), **RECORD).compute()
        source = record if key == "constant" else record.drop_vars("truth")
        net = xdan.calibrate(net, source, kind="constant", validation=0.9)
    return lambda ds: ds.dan.cycle(net)


def network(name: str, options: argparse.Namespace) -> xdan.Network:
    """The network with a name: from the package, from examples/trained, from this folder, or trained now."""
    around, changes = NETWORKS[name]
    if name == "gaussian" and "lorenz96-gaussian" in SHIPPED:
        return xdan.open_network("lorenz96-gaussian")
    shipped, path = TRAINED / f"lorenz96-{name}.zarr", options.out.parent / f"{name}.zarr"
    if shipped.exists():
        return xdan.open_network(shipped)
    if not path.exists():
        if "kind" in changes:
            xdan.calibrate(network(around, options), xdan.Lorenz96(), **changes, seed=1).to_zarr(path)
            return xdan.open_network(path)
        settings = {"objective": "log-score", **TRAINING, **changes, "progress": False}
        settings["checkpoint"] = options.out.parent / f"{name}-checkpoint.zarr"
        if options.minutes:
            settings |= {"minutes": options.minutes, "steps": None}
        start = network(around, options) if around in NETWORKS else xdan.with_spread(xdan.open_network(around), seed=1)
        xdan.train(xdan.Lorenz96(), start, **settings).to_zarr(path)
    return xdan.open_network(path)


def _table(options: argparse.Namespace, rows: Mapping[str, str]) -> dict[str, xr.Dataset]:
    """Compute and print the scores of each row, by its scheme. They are saved, as figures share them."""
    cycles, trajectories, seed = (
        default if value is None else value
        for value, default in ((options.cycles, 300), (options.trajectories, 64), (options.seed, 1))
    )
    setting = {"cycles": BURN_IN + cycles, "trajectories": trajectories, "seed": seed}
    test = kept(options.out.parent / "test.zarr", lambda: xdan.twin(xdan.Lorenz96(), **setting), **setting)
    scores, printed = {}, []
    for name, key in rows.items():
        path = options.out.parent / f"{key}-scores.zarr"
        scores[name] = kept(path, lambda key=key: _measured(test, scheme(key, options)), **setting)
        printed.append(_row(name, scores[name]))
        print(printed[-1], flush=True)
    heading = f"Lorenz-96, {trajectories} trajectories, {cycles} cycles after {BURN_IN}, seed {seed}"
    text = f"{heading}\n\n{markdown(pd.DataFrame(printed))}"
    (options.out / "table.md").write_text(text)
    print(f"\n{text}")
    return scores


def _measured(test: xr.Dataset, make: Make) -> xr.Dataset:
    """Scores of each trajectory of a run on the record. Some trajectories are run at a time."""
    parts = []
    for first in range(0, test.sizes["trajectory"], TOGETHER):
        ds = test.isel(trajectory=slice(first, first + TOGETHER))
        parts.append(_scores(ds, make(ds)))
    summed = ("histogram_rank", "count", "square", "variance")
    merged = {name: xr.concat([one[name] for one in parts], "trajectory") for name in parts[0] if name not in summed}
    merged |= {name: sum(one[name] for one in parts) for name in summed if name in parts[0]}
    return xr.Dataset(merged).drop_encoding()


def _scores(ds: xr.Dataset, run: xr.Dataset) -> xr.Dataset:
    """Means over time and sites for each trajectory; ranks, and errors in bins of the spread, for all trajectories."""
    late = {"time": slice(BURN_IN, None)}
    error = (run.analysis - ds.truth).isel(late).transpose("trajectory", "time", "x").astype("f8")
    mean = ["time", "x"]
    measured = ds.dan.score(run, burn_in=BURN_IN, dim="time")
    crps = "crps" if "crps" in measured else "mean_absolute_error"  # that of a single state
    scores = {
        "rmse": np.sqrt((error**2).mean("x")).mean("time"),
        "mse": (error**2).mean(mean),
        "crps": measured[crps].drop_vars("crps_of", errors="ignore"),
    }
    if "spread" not in run:
        return xr.Dataset(scores).reset_coords(drop=True)
    spread = run.spread.isel(late).transpose(*error.dims).astype("f8")
    scores["mean_variance"] = (spread**2).mean(mean)
    scores["log_score"] = (0.5 * (error / spread) ** 2 + np.log(spread)).mean(mean) + 0.5 * math.log(2 * math.pi)
    edges = np.array([0.0, *np.geomspace(0.06, 0.6, BINS - 1), np.inf])
    place = np.digitize(spread.values.ravel(), edges) - 1
    for name, values in (("count", np.ones(error.size)), ("square", error.values**2), ("variance", spread.values**2)):
        scores[name] = xr.DataArray(np.bincount(place, np.ravel(values), BINS), dims="bin")
    if "analysis_covariance" in run:
        covariance = run.analysis_covariance.isel(late).transpose("trajectory", "time", "x_dual", "x").values
        factor = np.linalg.cholesky(covariance.astype("f8"))
        white = np.linalg.solve(factor, error.values[..., None])[..., 0]
        volume = np.log(np.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)
        whole = (0.5 * (white**2).sum(-1) + volume) / error.sizes["x"] + 0.5 * math.log(2 * math.pi)
        scores["log_score_of_all"] = xr.DataArray(whole.mean(-1), dims="trajectory")
        some = run.isel(time=slice(BURN_IN, None, EVERY))
        scores["histogram_rank"] = _ranks(ds, some.assign(members=xdan.draw_members(some, DRAWS)))
    elif "members" in run:
        scores["histogram_rank"] = _ranks(ds, run.isel(time=slice(BURN_IN, None, EVERY)))
    return xr.Dataset(scores).reset_coords(drop=True)


def _ranks(ds: xr.Dataset, run: xr.Dataset) -> xr.DataArray:
    return xdan.rank_histogram(ds.sel(time=run.time), run)


def _row(name: str, scores: xr.Dataset) -> dict[str, Any]:
    """Means over trajectories with standard errors; those of ratios come from leaving out one trajectory at a time."""

    def shown(of: Callable[[xr.Dataset], Any], digits: int = 4) -> str:
        values = scores[[n for n in scores if scores[n].dims == ("trajectory",)]]
        whole, count = float(of(values.mean("trajectory"))), values.sizes["trajectory"]
        left = np.asarray(of((values.sum("trajectory") - values) / (count - 1)))
        return f"{whole:.{digits}f} +- {math.sqrt((count - 1) / count * ((left - left.mean()) ** 2).sum()):.{digits}f}"

    row = {"scheme": name, "RMSE": shown(lambda s: s.rmse)}
    has_spread = "mean_variance" in scores
    row["spread / RMSE"] = shown(lambda s: np.sqrt(s.mean_variance / s.mse), 3) if has_spread else ""
    row["CRPS"] = shown(lambda s: s.crps)
    row["CRPS / RMSE"] = shown(lambda s: s.crps / np.sqrt(s.mse), 3)
    row["log score, site by site"] = shown(lambda s: s.log_score, 3) if has_spread else ""
    row["log score, all sites"] = shown(lambda s: s.log_score_of_all, 3) if "log_score_of_all" in scores else ""
    return row


def _reliability(scores: Mapping[str, xr.Dataset]) -> Any:
    """Root mean square error in bins of the spread, and the line where both are equal."""
    curves = []
    for name, one in scores.items():
        if "count" in one:
            enough = one["count"].values > 2000
            spread, error = (
                np.sqrt(one[of].values[enough] / one["count"].values[enough]) for of in ("variance", "square")
            )
            curves.append(pd.DataFrame({"spread": spread, "RMSE": error, "of": name}))
    both = pd.concat(curves)
    line = pd.DataFrame({"spread": [0.0, both["spread"].max()], "RMSE": [0.0, both["spread"].max()], "of": "equal"})
    import hvplot.pandas  # noqa: F401 - registers hvplot

    return pd.concat([both, line]).hvplot.line(x="spread", y="RMSE", by="of", width=700)


FIGURES: dict[str, Callable[[argparse.Namespace], None]] = {
    "gaussian": gaussian,
    "objectives": objectives,
    "calibrated": calibrated,
}
