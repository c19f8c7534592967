"""Figures of forecasts from analyses: "doubling", "methods" and "observations" of examples/methods.py forecasts.

Records and runs are saved in Zarr stores in the folder of the topic, as all three figures use them: a second call
computes only what is missing. docs/forecasts.md shows the results.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import xdan

from common import kept, markdown, save_pictures, slug

BURN_IN, AHEAD, EVERY = 200, 160, 10  # cycles before the first start, after the last one, and from start to start
ENSEMBLES = ("EnKF-N, 40 members", "second-order Kalman filter", "network with a window")  # methods with a spread
MEMBERS = 40
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "3D-Var": ("3d-var", {}),
    "EnKF-N, 40 members": ("enkf-n", {"members": 40, "keep_members": True}),
    "second-order Kalman filter": ("second-order-kalman", {"c2": 8.0, "keep_members": True}),
    "network with memory": ("lorenz96-memory", {}),
    "network with a window": ("lorenz96-window", {}),
}
_LEFT_OUT = ("forecast", "forecast_members", "forecast_spread", "smoothed")  # variables that no figure reads


def doubling(options: argparse.Namespace) -> None:
    """Forecasts from the analyses of EnKF-N: the growth of their error, and its limit."""
    scores = _scores(options, "EnKF-N, 40 members")
    most = np.sqrt(2) * scores.deviation
    for name, label in (("doubling", "the error of a typical forecast"), ("rmse_doubling", "the RMSE")):
        doubles, error, last = (
            float(scores[f"{name}_{word}"]) for word in ("time", "time_standard_error", "fitted_to")
        )
        print(f"{label} doubles in {doubles:.4f} +- {error:.4f}, fitted to lead times from 0 to {last:g}")
    first = kept(options.out / "exponent.zarr", lambda: xdan.lyapunov_spectrum(xdan.Lorenz96(), vectors=1, time=100.0))
    doubles = f"{float(first.doubling_time):.4f} +- {float(first.doubling_time_standard_error):.4f}"
    print(f"an error along the first Lyapunov vector doubles in {doubles}")
    print(f"deviation of the climate {float(scores.deviation):.4f}, sqrt(2) deviations {float(most):.4f}\n")
    rows = []
    for lead in (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0):
        one = scores.sel(lead=lead, method="nearest")
        rmse, error = float(one.rmse), float(one.rmse_standard_error)
        share = {"of sqrt(2) deviations": rmse / float(most), "its standard error": error / float(most)}
        row = {"lead": lead, "RMSE": rmse, "standard error": error, **share}
        row |= {"geometric mean": float(one.geometric_rmse), "anomaly correlation": float(one.acc)}
        rows.append(row)
    _keep(options.out, "table", pd.DataFrame(rows))
    save_pictures(options.out / "doubling", {"error by lead time": xdan.lead_time_curves(scores, log=True)})


def methods(options: argparse.Namespace) -> None:
    """Forecasts from the analyses of five methods, and of the members of three."""
    scores = xr.concat(
        [_scores(options, name) for name in METHODS], pd.Index(list(METHODS), dtype=object, name="method")
    )
    rows = []
    for name in METHODS:
        one = scores.sel({"method": name})
        row: dict[str, Any] = {"method": name}
        row |= {f"RMSE at {lead:g}": _value(one, "rmse", lead) for lead in (0.0, 0.5, 1.0, 2.0, 4.0)}
        named = {"doubling_time": "doubling time", "skill_horizon": "skill horizon", "acc_horizon": "ACC 0.6"}
        rows.append(row | {label: _value(one, variable) for variable, label in named.items()})
    print("\none forecast from each analysis\n")
    _keep(options.out, "table", pd.DataFrame(rows))
    rows = []
    members = {name: _scores(options, name, MEMBERS) for name in ENSEMBLES}
    for name, one in members.items():
        for lead in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0):
            row = {"method": name, "lead": lead, "RMSE of the mean": _value(one, "rmse", lead)}
            row["spread"] = float(one.spread.sel(lead=lead, method="nearest"))
            row["CRPS"] = _value(one, "crps", lead)
            rows.append(row)
    print(f"\n{MEMBERS} members\n")
    _keep(options.out, "members", pd.DataFrame(rows))
    # The members' lead times are fewer: the others are NaN there.
    mean = members["EnKF-N, 40 members"].reindex(lead=scores.lead, method="nearest", tolerance=1e-6)
    names = ["rmse", "rmse_standard_error", "spread", "deviation"]
    both = [scores.drop_vars("spread", errors="ignore")[[*names[:2], "deviation"]], mean[names]]
    both[1] = both[1].expand_dims(method=np.array(["EnKF-N, mean of members"], dtype=object))
    picture = xr.concat(both, "method", data_vars="all").sel(lead=slice(None, 5.01))
    sections = {
        "Forecasts from the analyses of five methods": xdan.lead_time_curves(picture),
        "Short lead times": xdan.lead_time_curves(picture.sel(lead=slice(None, 1.01)), levels=False, log=True),
    }
    save_pictures(options.out / "forecasts", sections, title="Lorenz-96: errors by lead time")


def observations(options: argparse.Namespace) -> None:
    """Forecasts compared with later observations, minus R, and the errors of these forecasts from the truth."""
    rows = []
    for name in METHODS:
        # Scores of each trajectory, so that both scores are compared on equal cases.
        seen, true = (_scores(options, name, against=one, dim="time") for one in ("observations", "truth"))
        for lead in (0.05, 0.5, 1.0, 2.0, 4.0):
            one, other = (scores.sel(lead=lead, method="nearest") for scores in (seen, true))
            departure, theirs = one.departure_rms**2, other.rmse**2
            mine = departure - one.error_variance  # for one trajectory it may be below 0
            root, error = _root(mine)
            both = {"RMSE less R": root, "standard error": error, "RMSE from the truth": _root(theirs)[0]}
            apart = (mine - theirs).to_numpy()
            sigmas = apart.mean() / (apart.std(ddof=1) / np.sqrt(apart.size))
            rows.append(
                {
                    "method": name,
                    "lead": lead,
                    "departure": _root(departure)[0],
                    **both,
                    "difference in its standard errors": sigmas,
                }
            )
    _keep(options.out, "table", pd.DataFrame(rows))


FIGURES = {"doubling": doubling, "methods": methods, "observations": observations}


def _scores(
    options: argparse.Namespace, name: str, members: int | None = None, against: str = "truth", dim: Any = None
) -> xr.Dataset:
    """Scores of forecasts from the analyses of a method, by their lead time up to 8."""
    record = _record(options)
    run = _run(options, name)
    first = record.isel(time=slice(0, run.sizes["time"]))
    dims = ("trajectory", "time") if dim is None else dim

    def make() -> xr.Dataset:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the run has a spread and no covariance", xdan.XdanWarning)
            warnings.filterwarnings("ignore", "scores are not finite", xdan.XdanWarning)  # of single trajectories
            step = None if members is None else 0.25
            forecasts = first.dan.forecast(run, lead=8.0, step=step, every=EVERY, burn_in=BURN_IN, members=members)
            return record.dan.score_forecasts(forecasts, against=against, dim=dims)

    words = [slug(name), against, *([] if members is None else [str(members)]), *([] if dim is None else [dim])]
    return kept(options.out.parent / "scores" / f"{'-'.join(words)}.zarr", make, **_sizes(options), every=EVERY)


def _value(scores: xr.Dataset, name: str, lead: float | None = None) -> str:
    """A score with its standard error."""
    one = scores if lead is None else scores.sel(lead=lead, method="nearest")
    return f"{float(one[name]):.3f} +- {float(one[f'{name}_standard_error']):.3f}"


def _root(squares: xr.DataArray) -> tuple[float, float]:
    """Root of the mean over trajectories, and its standard error."""
    root = float(np.sqrt(squares.mean()))
    return root, float(squares.std(ddof=1)) / np.sqrt(squares.size) / (2 * root)


def _keep(out: Path, name: str, table: pd.DataFrame) -> None:
    """Print a table and save it."""
    text = markdown(table)
    (out / f"{name}.md").write_text(text)
    print(text)


def _sizes(options: argparse.Namespace) -> dict[str, int]:
    """Sizes of the record: cycles with starts, trajectories and seed."""
    wanted = {"cycles": 300, "trajectories": 64, "seed": 1}
    return {name: getattr(options, name) or number for name, number in wanted.items()}


def _record(options: argparse.Namespace) -> xr.Dataset:
    """Lorenz-96, 40 sites, all of them observed at intervals of 0.05 with R = I."""
    sizes = _sizes(options)
    cycles = BURN_IN + sizes["cycles"] + AHEAD
    setting = {"trajectories": sizes["trajectories"], "seed": sizes["seed"]}
    twin = {"interval": 0.05, "error_std": 1.0, "cycles": cycles, **setting}
    return kept(options.out.parent / "record.zarr", lambda: xdan.twin(xdan.Lorenz96(), **twin).compute(), **sizes)


def _run(options: argparse.Namespace, name: str) -> xr.Dataset:
    """Analyses of a method, up to the last start of a forecast."""
    sizes = _sizes(options)
    record = _record(options).isel(time=slice(0, BURN_IN + sizes["cycles"]))
    method, parameters = METHODS[name]

    def make() -> xr.Dataset:
        if method.startswith("lorenz96"):
            run = record.dan.cycle(xdan.open_network(method), progress=False, **parameters)
        else:
            run = record.dan.baseline(method, progress=False, **parameters)
        run.attrs.pop("xdan_whole")  # some variables are left out on purpose
        return run.drop_vars([variable for variable in _LEFT_OUT if variable in run])

    return kept(options.out.parent / f"{slug(name)}.zarr", make, **sizes)
