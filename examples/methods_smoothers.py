"""Figures of smoothers, for examples/methods.py: a closed form, the IEnKS, the EnKS and backward passes, inflation.

docs/smoothing.md shows the results.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

import xdan
from xdan.core.methods import ETKF, BackwardPass, EnsembleBackward

from common import kept, markdown, save_pictures, slug

BURN_IN, SITES = 200, 8
MEMBERS = (20, 40, 80, 160, 320)
LAGS, LAG = (1, 5, 10, 20, 40), 20
WINDOWS = (1, 5, 10, 20)
END = 40  # cycles at the end of a record that are in no score, as few later observations exist there
Scored = Mapping[str, tuple[Any, Mapping[str, Any]]]


def closed_form(options: argparse.Namespace) -> None:
    """Backward passes and the EnKS on a linear model, compared with one solution for the states of all times."""
    cycles, trajectories, seed = _sizes(options, 10, 16, 1)
    known = {"cycles": cycles, "trajectories": trajectories, "seed": seed}
    model = linear_model()
    record = kept(
        options.out / "record.zarr",
        lambda: xdan.twin(model, interval=1.0, cycles=cycles, trajectories=trajectories, seed=seed, dtype="float64"),
        **known,
    )
    assert model.given_climate is not None
    climate = model.given_climate.states.numpy()
    exact = posterior(record.observation.values, matrix().numpy(), climate.mean(0), np.cov(climate.T))
    rows, curves = [], []
    run = record.dan.reanalysis("kalman", dynamics=model)
    rows.append({"method": "kalman, backward", "RMS difference from the solution": _rms(run.smoothed - exact)})
    lag = cycles - 1
    ways: Scored = {
        "etkf, backward": ("etkf", {"inflation": 1.0, "spin_up": 0}),
        "enks": ("etkf", {"inflation": 1.0, "spin_up": 0, "lag": lag}),
        "enkf, backward": ("enkf", {"inflation": 1.0, "spin_up": 0}),
    }
    for name, (method, parameters) in ways.items():
        errors = []
        for members in MEMBERS:
            run = record.dan.reanalysis(method, members=members, dynamics=model, seed=seed, **parameters)
            errors.append(_rms((run.smoothed - exact).isel(time=slice(0, 1))))
        slope = np.polyfit(np.log(MEMBERS), np.log(errors), 1)[0]
        for members, error in zip(MEMBERS, errors, strict=True):
            rows.append({"method": f"{name}, {members} members", "RMS difference from the solution": error})
        rows.append({"method": f"{name}: slope against members", "RMS difference from the solution": float(slope)})
        curves.append(xr.DataArray(errors, {"members": list(MEMBERS)}, name="error").expand_dims(method=[name]))
    _told(options, rows, f"{trajectories} trajectories, {cycles} cycles, seed {seed}; ensembles at the first time")
    import hvplot.xarray  # noqa: F401 - registers hvplot

    drawn = xr.concat(curves, "method").rename("RMS difference from the closed form")
    picture = drawn.hvplot.line(
        x="members", by="method", loglog=True, width=700, line_dash=["solid", "dashed", "dotted"]
    )
    save_pictures(options.out / "closed-form", {"First time, all later observations": picture}, title="A linear model")


def ienks(options: argparse.Namespace) -> None:
    """IEnKS-N of 40 members: the error of the smoothed state against the lag."""
    words = {"members": 40, "progress": False}
    ways: Scored = {f"ienks-n, lag {lag}": ("ienks-n", {**words, "lag": lag}) for lag in WINDOWS}
    _compared(options, ways)


def enks(options: argparse.Namespace) -> None:
    """EnKS with several lags, and backward passes over the whole record."""
    words = {"members": 40, "progress": False}
    ways: dict[str, tuple[Any, Mapping[str, Any]]] = {
        f"enks, lag {lag}, inflation 1.005": ("enks", {**words, "lag": lag, "inflation": 1.005}) for lag in LAGS
    }
    ways[f"enks, lag {LAG}, inflation 1.01"] = ("enks", {**words, "lag": LAG, "inflation": 1.01})
    ways[f"enks, lag {LAG}, finite size"] = ("enks", {**words, "lag": LAG, "finite_size": True})
    ways["etkf, inflation 1.005, backward"] = ("etkf", {**words, "inflation": 1.005})
    ways["etkf, inflation 1.01, backward"] = ("etkf", {**words, "inflation": 1.01})
    ways["enkf-n, backward"] = ("enkf-n", words)
    ways["second-order-kalman, backward"] = ("second-order-kalman", {"c2": 8.0, "progress": False})
    ways["network lorenz96-kalman, backward"] = ("lorenz96-kalman", {"progress": False})
    table = _compared(options, ways)
    import hvplot.pandas  # noqa: F401 - registers hvplot

    by_lag = table[table.method.str.contains("inflation 1.005") & table.method.str.startswith("enks")]
    curve = by_lag.assign(lag=list(LAGS)).rename(columns={"smoothed RMSE": "RMSE of the smoothed state"})
    picture = curve.hvplot.line(x="lag", y=["RMSE of the smoothed state", "smoothed spread"], ylabel="state", width=700)
    save_pictures(options.out / "enks", {"EnKS, 40 members, inflation 1.005": picture}, title="EnKS by its lag")


def inflation(options: argparse.Namespace) -> None:
    """Backward passes of an ETKF, with the analysis before inflation and with the inflated analysis."""
    ways: dict[str, tuple[Any, Mapping[str, Any]]] = {}
    for factor in (1.01, 1.03):
        settings = {"members": 40, "inflation": factor}
        ways[f"etkf, inflation {factor}"] = ("etkf", {**settings, "progress": False})
        ways[f"etkf, inflation {factor}, inflated P_a"] = (InflatedBackward(**settings), {"progress": False})
    _compared(options, ways)


class InflatedBackward(ETKF):
    """An ETKF whose backward pass uses the inflated analysis as the filter's distribution."""

    def backward_pass(self, dynamics: xdan.Dynamics) -> BackwardPass:
        return EnsembleBackward(1.0)


def linear_model() -> xdan.Dynamics:
    """A linear map of some sites, with an error in every interval and a Gaussian climatology."""

    def step(x: torch.Tensor) -> torch.Tensor:
        return x @ matrix().to(x).mT

    start = np.random.default_rng(0).normal(size=(20_000, SITES))
    model = xdan.CustomDynamics(step=step, state={"x": SITES}, timestep=1.0, spin_up_time=0.0)
    return model.with_climatology(torch.from_numpy(start))


def matrix() -> torch.Tensor:
    """A matrix: each site depends mostly on itself, and partly on its neighbours; errors grow in some directions."""
    unit = torch.eye(SITES, dtype=torch.float64)
    return 0.9 * unit + 0.3 * unit.roll(1, 0) - 0.1 * unit.roll(-1, 0)


def posterior(y: np.ndarray, m: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Mean of all states given all observations of unit error (R, K, N): one solution of a K N x K N system."""
    rows, times, size = y.shape
    source = np.concatenate([np.linalg.matrix_power(m, k) for k in range(times)])  # all states, from the first one
    p = source @ covariance @ source.T
    gain = np.linalg.solve(p + np.eye(times * size), p).T
    first = source @ mean
    answer: np.ndarray = (first + (y.reshape(rows, -1) - first) @ gain.T).reshape(y.shape)
    return answer


def _compared(options: argparse.Namespace, ways: Scored) -> pd.DataFrame:
    """Smooth Lorenz-96 by several methods, and save the scores of each; print and save their table."""
    cycles, trajectories, seed = _sizes(options, 300, 16, 1)
    known = {"cycles": cycles, "trajectories": trajectories, "seed": seed}
    setting = {"cycles": BURN_IN + cycles + END, "trajectories": trajectories, "interval": 0.05}
    record = kept(
        options.out.parent / "record.zarr", lambda: xdan.twin(xdan.Lorenz96(), seed=seed, **setting).compute(), **known
    )
    rows = []
    for name, (method, parameters) in ways.items():
        score = kept(
            options.out / f"{slug(name)}.zarr",
            lambda method=method, parameters=parameters: _scored(record, method, parameters),
            **known,
        )
        row: dict[str, Any] = {"method": name}
        row |= {label.replace("_", " "): float(score[label]) for label in ("smoothed_RMSE", "standard_error")}
        row |= {label.replace("_", " "): float(score[label]) for label in ("smoothed_spread", "analysis_RMSE")}
        rows.append({**row, "lost": int(score.lost), "seconds": round(float(score.seconds))})
        print(rows[-1], flush=True)
    _told(options, rows, f"{trajectories} trajectories, {cycles} cycles after {BURN_IN}, seed {seed}")
    return pd.DataFrame(rows)


def _scored(record: xr.Dataset, method: Any, parameters: Mapping[str, Any]) -> xr.Dataset:
    """Scores of a reanalysis after the burn-in; the standard error is over trajectories."""
    import time

    begin = time.perf_counter()
    made = xdan.open_network(method) if method == "lorenz96-kalman" else method
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xdan.XdanWarning)  # the table says which trajectories are lost
        run = record.dan.reanalysis(made, **parameters).compute()
    seconds = time.perf_counter() - begin
    part = {"time": slice(BURN_IN, record.sizes["time"] - END)}
    error = np.sqrt(((run[["analysis", "smoothed"]] - record.truth) ** 2).mean("x")).isel(part).mean("time")
    spread = np.sqrt((run.smoothed_spread**2).mean("x")).isel(part).mean()
    return xr.Dataset(
        {
            "smoothed_RMSE": error.smoothed.mean(),
            "standard_error": error.smoothed.std(ddof=1) / math.sqrt(record.sizes["trajectory"]),
            "smoothed_spread": spread,
            "analysis_RMSE": error.analysis.mean(),
            "lost": run.diverged[:, -1].sum(),
            "seconds": seconds,
        }
    ).drop_encoding()


def _rms(error: xr.DataArray) -> float:
    return float(np.sqrt((error**2).mean()))


def _sizes(options: argparse.Namespace, *defaults: int) -> list[int]:
    """Cycles, trajectories and the seed, or their defaults."""
    asked = options.cycles, options.trajectories, options.seed
    return [default if one is None else one for one, default in zip(asked, defaults, strict=True)]


def _told(options: argparse.Namespace, rows: list[dict[str, Any]], heading: str) -> None:
    """Print a table, and save it."""
    text = f"{heading}\n\n{markdown(pd.DataFrame(rows))}"
    (options.out / "table.md").write_text(text)
    print(f"\n{text}")


FIGURES: dict[str, Callable[[argparse.Namespace], None]] = {
    "closed-form": closed_form,
    "ienks": ienks,
    "enks": enks,
    "inflation": inflation,
}
