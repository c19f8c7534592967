"""Parameters of a model from observations: the forcing of Lorenz-96, and all coefficients of a quadratic ring model.

FIGURES is what `imperfect.py parameters FIGURE` runs; `docs/parameters.md` shows the results.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import holoviews as hv
import hvplot.xarray  # noqa: F401 - gives Datasets their plots
import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

import xdan

from common import kept, markdown, save_pictures

SITES, INTERVAL, FORCING = 40, 0.05, 8.0
PRIOR = {"forcing": (7.0, 1.0)}
CYCLES, TRAJECTORIES = 200, 16  # size of the record from which the forcing is estimated
TEST_CYCLES, BURN_IN = 500, 100  # size of the record on which filters with the estimates are scored
METHODS: Mapping[str, Mapping[str, Any]] = {
    "augmented": {},
    "likelihood": {"iterations": 15},
    "em": {"iterations": 15},
}
# The ring model: its terms, and the coefficients with which it is Lorenz-96.
TERMS = (
    *("1", "x[i-2]", "x[i-1]", "x[i]", "x[i+1]", "x[i+2]"),
    *("x[i-2]^2", "x[i-1]^2", "x[i]^2", "x[i+1]^2", "x[i+2]^2"),
    *("x[i-2]x[i-1]", "x[i-1]x[i]", "x[i]x[i+1]", "x[i+1]x[i+2]", "x[i-2]x[i]", "x[i-1]x[i+1]", "x[i]x[i+2]"),
)
LORENZ96 = {"1": 8.0, "x[i]": -1.0, "x[i-2]x[i-1]": -1.0, "x[i-1]x[i+1]": 1.0}
# Standard deviations of a constant, a linear and a quadratic term, for a tendency of some tens.
FIRST, SECOND = (4.0, 1.0, 0.3), (0.5, 0.1, 0.02)
# Model errors, passes over the record and cycles of a window: for a rough estimate, then for a nearly right model.
STAGES = {"first": (0.1, 20, 10, FIRST), "second": (0.03, 6, 20, SECOND)}


def forcing(options: argparse.Namespace) -> None:
    """The forcing of Lorenz-96 by three methods, and the RMSE of an ETKF with each estimate."""
    cycles, rows = options.cycles or CYCLES, options.trajectories or TRAJECTORIES
    seed = 1 if options.seed is None else options.seed
    known = xdan.Lorenz96(SITES, FORCING)
    record = xdan.twin(known, interval=INTERVAL, cycles=cycles, trajectories=rows, seed=seed, dtype="float64").compute()
    test = xdan.twin(known, interval=INTERVAL, cycles=TEST_CYCLES, trajectories=rows, seed=seed + 1, dtype="float64")
    test, unknown = test.compute(), xdan.Lorenz96(SITES, PRIOR["forcing"][0])
    settings = {"record_cycles": cycles, "record_seed": seed, "record_trajectories": rows}
    scores = {"known": _score(options, test, known, "known", settings)}
    table, histories = [], {}
    for name, words in METHODS.items():

        def made(name: str = name, words: Mapping[str, Any] = words) -> xr.Dataset:
            return record.dan.estimate_parameters(unknown, PRIOR, method=name, progress=False, **words).compute()

        result = kept(options.out / f"{name}.zarr", made, **settings)
        model = unknown.with_parameters(**xdan.estimate_of(result))
        scores[name] = _score(options, test, model, name, settings)
        histories[name] = result.forcing.mean("trajectory") if "trajectory" in result.dims else result.forcing
        more = scores[name] - scores["known"]  # on one record, so that the difference is more exact than each score
        table.append(
            {
                "method": name,
                "forcing": float(result.forcing_estimate),
                "standard error": float(result.forcing_standard_error),
                "off by": abs(float(result.forcing_estimate) - FORCING),
                "RMSE": float(scores[name].mean()),
                "RMSE beside the known model's, %": 100 * float(more.mean() / scores["known"].mean()),
                "standard error of it, %": 100 * float(more.std(ddof=1) / np.sqrt(rows) / scores["known"].mean()),
            }
        )
    worse = _score(options, test, unknown, "prior", settings)
    text = (
        f"{rows} trajectories of {cycles} cycles, seed {seed}. ETKF with 40 members on {rows} others of {TEST_CYCLES} "
        f"cycles after {BURN_IN}: RMSE {float(scores['known'].mean()):.4f} with the known model, "
        f"{float(worse.mean()):.4f} with the prior's forcing of 7\n\n{markdown(pd.DataFrame(table))}"
    )
    pages = {name: _history(history) for name, history in histories.items()}
    _finish(options, "forcing", text, pages)


def coefficients(options: argparse.Namespace) -> None:
    """All 18 coefficients of a quadratic ring model from zero, by the likelihood of a filter, in two stages."""
    cycles, rows = options.cycles or 150, options.trajectories or 4
    seed = 1 if options.seed is None else options.seed
    truth = xdan.Lorenz96(SITES, FORCING)
    record = xdan.twin(truth, interval=INTERVAL, cycles=cycles, trajectories=rows, seed=seed, dtype="float64").compute()
    settings = {"record_cycles": cycles, "record_seed": seed, "record_trajectories": rows}
    model, mean = ring_model(record), np.zeros(len(TERMS))
    for stage, (error, iterations, window, deviations) in STAGES.items():
        prior = {"coefficients": (mean, np.repeat(deviations, (1, 5, 12)))}
        words = {"iterations": iterations, "window": window, "rate": 0.1, "model_error": error}

        def made(prior: Any = prior, words: Any = words) -> xr.Dataset:
            return record.dan.estimate_parameters(model, prior, method="likelihood", progress=False, **words)

        result = kept(options.out / f"{stage}.zarr", made, **settings)
        mean = result.coefficients_estimate.values
    right = np.array([LORENZ96.get(term, 0.0) for term in TERMS])
    rows_of_table = pd.DataFrame(
        {
            "term": TERMS,
            "Lorenz-96": right,
            "estimate": mean,
            "standard error": result.coefficients_standard_error.values,
        }
    )
    there = right != 0
    relative, largest = np.abs(mean / np.where(there, right, 1) - 1)[there].max(), np.abs(mean[~there]).max()
    text = (
        f"{rows} records of {cycles} observations of all {SITES} sites, every {INTERVAL}, R = I, seed {seed}\n\n"
        f"{markdown(rows_of_table)}\nthe four that are there: off by {100 * relative:.2f} % at most; the others: "
        f"{largest:.4f} at most\n"
    )
    firsts = xr.open_zarr(options.out / "first.zarr", consolidated=False).coefficients.load()
    labels = {"coefficients_component": list(TERMS)}
    pages = {
        "From zero, first stage": firsts.assign_coords(labels).hvplot.line(
            x="iteration", by="coefficients_component", width=800, height=520
        )
    }
    _finish(options, "coefficients", text, pages)


def ring_model(record: xr.Dataset) -> xdan.CustomDynamics:
    """Any quadratic model of five neighbours on a ring, whose starts have the mean and spread of the observations."""
    middle, spread = float(record.observation.mean()), float(record.observation.std())

    def tendency(x: Tensor, coefficients: Tensor) -> Tensor:
        before, behind, ahead, beyond = (x.roll(shift, -1) for shift in (2, 1, -1, -2))
        linear = [before, behind, x, ahead, beyond]
        products = [before * behind, behind * x, x * ahead, ahead * beyond, before * x, behind * ahead, x * beyond]
        terms = [torch.ones_like(x), *linear, *(one * one for one in linear), *products]
        return torch.stack(terms, -1) @ coefficients

    return xdan.CustomDynamics(
        tendency,
        state={"x": SITES},
        timestep=INTERVAL,
        spin_up_time=0.0,
        rest=lambda noise: middle + spread * noise,
        parameters={"coefficients": np.zeros(len(TERMS))},
        name="quadratic-ring",
    )


def _score(
    options: argparse.Namespace, test: xr.Dataset, model: xdan.Dynamics, name: str, settings: Mapping[str, Any]
) -> xr.DataArray:
    """Mean RMSE of every trajectory of a tuned ETKF with a forecast model."""

    def made() -> xr.Dataset:
        run = test.dan.baseline("etkf", members=40, dynamics=model, progress=False)
        return test.dan.score(run, burn_in=BURN_IN, dim="time").compute()[["rmse"]].drop_attrs()

    return kept(options.out / f"score-{name}.zarr", made, **settings).rmse


def _history(history: xr.DataArray) -> Any:
    """The estimate along time or iteration."""
    (along,) = history.dims
    title = "pass over the record; 0 is the prior's mean" if along == "iteration" else "model time"
    line = history.hvplot.line(ylim=(6.5, 8.5), width=900, height=250, xlabel=title, ylabel="forcing", label="estimate")
    ends = history[along].values[[0, -1]]
    truth = hv.Curve((ends, [FORCING] * 2), label="truth").opts(color="black", line_dash="dashed")
    return (line * truth).opts(legend_position="bottom_right", show_grid=True)


def _finish(options: argparse.Namespace, name: str, text: str, pages: Mapping[str, Any]) -> None:
    """Print and write a table, and save its page."""
    (options.out / "table.md").write_text(text)
    save_pictures(options.out / name, pages, title=f"Parameters: {name}")
    print(text)


FIGURES: dict[str, Callable[[argparse.Namespace], None]] = {"forcing": forcing, "coefficients": coefficients}
