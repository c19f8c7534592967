"""Figures of corrected and learned models: "correction", "two-scale" and "surrogate" of examples/imperfect.py.

The results of each are saved in Zarr stores in its folder: a second call computes only what is missing.
docs/corrections.md shows the results.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

import xdan

from common import kept, markdown, save_pictures, slug

BURN_IN = 100
ENSEMBLE: dict[str, Any] = {"members": 40, "progress": False}
INFLATED = {**ENSEMBLE, "inflation": 1.2, "rotate": True}


def correction(options: argparse.Namespace) -> None:
    """Truth F = 8, model F = 8.5: a constant correction from increments, and EnKF-N with the corrected model."""
    cycles, trajectories, seed = _sizes(options, 600, 16, 1)
    right, wrong = xdan.Lorenz96(forcing=8.0), xdan.Lorenz96(forcing=8.5)
    setting = {"cycles": BURN_IN + cycles, "trajectories": trajectories}
    known = {**setting, "seed": seed}
    learn = kept(options.out / "learn.zarr", lambda: xdan.twin(right, seed=seed, **setting).compute(), **known)
    test = kept(options.out / "test.zarr", lambda: xdan.twin(right, seed=seed + 1, **setting).compute(), **known)
    path = options.out / "corrected.zarr"
    if not path.exists():
        run = learn.dan.baseline("etkf", dynamics=wrong, **INFLATED)
        words = {"passes": 5, "burn_in": BURN_IN, "store": options.out / "passes", "progress": False}
        xdan.save_dynamics(learn.dan.learn_correction(run, "constant", dynamics=wrong, **words), path)
    corrected = xdan.open_dynamics(path)
    _print_passes(corrected)
    print(f"learned: {float(corrected.correction(torch.zeros(40, dtype=torch.float64))[0]):.3f}, missing: -0.5")
    rows = {"F = 8, known": right, "F = 8.5": wrong, "F = 8.5, corrected": corrected}
    _table(options, test, {name: (test, model) for name, model in rows.items()}, "enkf-n", ENSEMBLE, known)


def two_scale(options: argparse.Namespace) -> None:
    """Two-scale truth with observed U: the truncated model, with and without a correction, with and without Q."""
    cycles, trajectories, seed = _sizes(options, 400, 16, 1)
    full = xdan.TwoScaleLorenz96()
    setting = {"interval": 0.05, "observe": {"U": xdan.Sites.all()}, "error_std": math.sqrt(0.1)}
    setting |= {"cycles": BURN_IN + cycles, "trajectories": trajectories}
    known = {"cycles": BURN_IN + cycles, "trajectories": trajectories, "seed": seed}
    learn, test = (
        kept(options.out / f"{name}.zarr", lambda s=s: xdan.twin(full, seed=s, **setting).compute(), **known)
        for name, s in (("learn", seed), ("test", seed + 1))
    )
    truncated = xdan.Lorenz96(sites=8, forcing=20.0, timestep=0.005)
    climate = {"climatology": "record"}
    path = options.out / "corrected.zarr"
    if not path.exists():
        noisy = truncated.with_model_error(0.3)
        run = _slow(learn).dan.baseline("enkf-n", dynamics=noisy, **ENSEMBLE, **climate)
        words = {"passes": 2, "burn_in": BURN_IN, "store": options.out / "passes", "progress": False, **climate}
        form = xdan.LocalPolynomial(kernel=1, degree=1)
        made = _slow(learn).dan.learn_correction(run, form, dynamics=noisy, **words)
        xdan.save_dynamics(made, path)
    corrected = xdan.open_dynamics(path).with_model_error(0.0).with_climatology(None)
    _print_passes(corrected)
    slow = _slow(test)
    rows = {"full model": (test, full), "truncated": (slow, truncated), "corrected": (slow, corrected)}
    for name, model, errors in (
        ("truncated", truncated, (0.1, 0.2, 0.3, 0.4, 0.6)),
        ("corrected", corrected, (0.1, 0.2, 0.3)),
    ):
        rows |= {f"{name}, Q = {std:g}^2 I": (slow, model.with_model_error(std)) for std in errors}
    _table(options, slow, rows, "enkf-n", {**ENSEMBLE, **climate}, known)


def surrogate(options: argparse.Namespace) -> None:
    """A surrogate of Lorenz-96, trained on a truth: errors by lead time, climate, exponents, EnKF-N with it."""
    cycles, trajectories, seed = _sizes(options, 400, 16, 1)
    model = xdan.Lorenz96()
    known = {"cycles": cycles, "trajectories": trajectories, "seed": seed}
    path, words = options.out / "surrogate.zarr", {"checkpoint": options.out / "checkpoint.zarr", "progress": False}
    if not path.exists():
        archive = xdan.twin(model, cycles=300, trajectories=64, seed=seed + 2).compute()
        network = xdan.QuadraticCNN(filters=8, blocks=1)
        fit = {"steps": 800, "batch": 64, "rollouts": (1, 2, 4), "seed": seed}
        xdan.save_dynamics(archive.dan.train_surrogate(network=network, **fit, **words), path)
    learned = xdan.open_dynamics(path)
    weights = sum(one.numel() for one in learned.network.parameters())
    print(f"{weights} weights, {learned.provenance['history']['seconds']:.0f} seconds of training")
    models = {"true": model, "surrogate": learned}
    setting = {"cycles": BURN_IN + cycles, "trajectories": trajectories}
    test = kept(options.out / "test.zarr", lambda: xdan.twin(model, seed=seed + 1, **setting).compute(), **known)
    skill = kept(options.out / "skill.zarr", lambda: test.dan.forecast_skill(models, leads=100, every=50), **known)
    climate = kept(options.out / "climate.zarr", lambda: xdan.model_climate(models, time=50.0), **known)
    growth = {
        name: kept(
            options.out / f"exponents-{name}.zarr",
            lambda one=one: xdan.lyapunov_spectrum(one, vectors=1, time=100.0, trajectories=32, seed=seed),
            **known,
        )
        for name, one in models.items()
    }
    rows = []
    for name in models:
        one, states = skill.sel(model=name), climate.sel(model=name)
        first, error = growth[name].exponent[0], growth[name].exponent_standard_error[0]
        rows.append(
            {
                "model": name,
                "error of one step, deviations": float(one.rmse[0] / skill.deviation),
                "error after 1 unit": float(one.rmse[19] / skill.deviation),
                "after 5 units": float(one.rmse[99] / skill.deviation),
                "mean": float(states["mean"]),
                "its standard error": float(states.mean_standard_error),
                "deviation": float(states.deviation),
                "first exponent": float(first),
                "its standard error ": float(error),
            }
        )
    print(markdown(pd.DataFrame(rows)))
    (options.out / "models.md").write_text(markdown(pd.DataFrame(rows)))
    _table(options, test, {name: (test, one) for name, one in models.items()}, "enkf-n", ENSEMBLE, known)
    relative = (skill.rmse / skill.deviation).rename("error, deviations of the climate")
    curve = relative.sel(model="surrogate", drop=True)  # the true model has no error
    sections = {
        "Errors of the surrogate's forecasts": curve.hvplot.line(x="lead", logy=True, width=700),
        "Spectrum": climate.power.hvplot.line(x="wavenumber", by="model", logy=True, width=700),
        "Density": climate.density.hvplot.line(x="value", by="model", width=700),
    }
    save_pictures(options.out / "surrogate", sections, title="A surrogate of Lorenz-96")


def _sizes(options: argparse.Namespace, *defaults: int) -> list[int]:
    """Cycles, trajectories and the seed of an example, or their defaults."""
    chosen = options.cycles, options.trajectories, options.seed
    return [default if one is None else one for one, default in zip(chosen, defaults, strict=True)]


def _slow(ds: xr.Dataset) -> xr.Dataset:
    """The slow field of a two-scale record, as a record of a model of one field."""
    names = {f"{role}_U": role for role in ("truth", "observation", "observation_error")}
    one = ds[list(names)].rename(names).drop_attrs()
    return one.assign_coords(time=ds.time)


def _print_passes(corrected: Any) -> None:
    """Print the numbers of each pass of a correction."""
    columns = ("increment", "learned", "learned_standard_error", "factor")
    rows = [{name: row[name] for name in columns} for row in corrected.provenance["passes"]]
    print(markdown(pd.DataFrame(rows)))


def _table(
    options: argparse.Namespace,
    test: xr.Dataset,
    rows: Mapping[str, tuple[xr.Dataset, xdan.Dynamics]],
    method: str,
    words: Mapping[str, Any],
    known: Mapping[str, Any],
) -> None:
    """Run a method with several models, and save the scores of each run; print them, and draw errors in time."""
    printed, errors = [], []
    for name, (record, model) in rows.items():
        score = kept(
            options.out / f"{slug(name)}-score.zarr",
            lambda record=record, model=model: _scored(record, model, method, words),
            **known,
        )
        printed.append(
            {
                "model": name,
                "RMSE": float(score.rmse),
                "standard error": float(score.rmse_standard_error),
                "mean innovation": float(score.innovation_mean),
                "its standard error": float(score.innovation_standard_error),
                "spread": float(score.spread),
            }
        )
        print(printed[-1], flush=True)
        errors.append(score.in_time.expand_dims(model=[name]))
    heading = f"{method}; {known['trajectories']} trajectories, {known['cycles']} cycles, seed {known['seed']}"
    text = f"{heading}\n\n{markdown(pd.DataFrame(printed))}"
    (options.out / "table.md").write_text(text)
    print(f"\n{text}")
    import hvplot.xarray  # noqa: F401 - registers hvplot

    drawn = xr.concat(errors, "model").rename("RMSE").hvplot.line(x="time", by="model", logy=True, width=900)
    save_pictures(options.out / "errors", {"Analysis RMSE in time": drawn}, title="Models that are wrong")


def _scored(record: xr.Dataset, model: xdan.Dynamics, method: str, words: Mapping[str, Any]) -> xr.Dataset:
    """Scores of a run of one field, or of U; the standard error of the mean innovation is over trajectories."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xdan.XdanWarning)  # the models are wrong on purpose
        run = record.dan.baseline(method, dynamics=model, **words)
    several = "truth" not in record
    truth, observation = (record[f"{role}_U" if several else role] for role in ("truth", "observation"))
    forecast, analysis = (run[f"{role}_U" if several else role] for role in ("forecast", "analysis"))
    spread = run["spread_U" if several else "spread"]
    after = {"time": slice(BURN_IN, None)}
    error = np.sqrt(((analysis - truth) ** 2).mean("x"))
    innovation = (observation - forecast).isel(after)
    of_trajectory, mean = error.isel(after).mean("time"), innovation.mean(["time", "x"])
    count = math.sqrt(record.sizes["trajectory"])
    return xr.Dataset(
        {
            "rmse": of_trajectory.mean(),
            "rmse_standard_error": of_trajectory.std(ddof=1) / count,
            "innovation_mean": mean.mean(),
            "innovation_standard_error": mean.std(ddof=1) / count,
            "spread": np.sqrt((spread.isel(after) ** 2).mean("x")).mean(),
            "in_time": error.mean("trajectory"),
        }
    ).drop_encoding()


FIGURES: dict[str, Callable[[argparse.Namespace], None]] = {
    "correction": correction,
    "two-scale": two_scale,
    "surrogate": surrogate,
}
DEFAULT_OUT = Path("imperfect")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("--cycles", type=int, help="after the burn-in")
    parser.add_argument("--trajectories", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args()
    options.out = options.out / "models" / options.figure
    options.out.mkdir(parents=True, exist_ok=True)
    FIGURES[options.figure](options)


if __name__ == "__main__":
    main()
