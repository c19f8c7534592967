"""Q and R from records: expectation maximisation, Desroziers' statistics, and innovations at two lags.

Each figure is a row of the table of docs/model-error.md: `python examples/imperfect.py errors em`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import holoviews as hv
import numpy as np
import pandas as pd
import xarray as xr

import xdan

from common import kept, markdown, save_pictures

MODEL = xdan.Lorenz96(sites=40)
Q, R = 0.1, 2.0  # variances of the noisy records
COLOURS = {"Q": "#D55E00", "R": "#0072B2"}


def noisy(trajectories: int, cycles: int, seed: int) -> xr.Dataset:
    """A record with model errors N(0, 0.1 I) in every interval of 0.05, and observation errors N(0, 2 I)."""
    setting = {"interval": 0.05, "model_error_std": math.sqrt(Q), "error_std": math.sqrt(R), "dtype": "float64"}
    return xdan.twin(MODEL, cycles=cycles, trajectories=trajectories, seed=seed, **setting).compute()


def timed(make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """An estimate, with the seconds that it took."""
    begin = time.perf_counter()
    estimate = make()
    return estimate.assign_attrs(seconds=time.perf_counter() - begin)


def variance(estimate: xr.Dataset, name: str) -> tuple[float, float]:
    """Mean variance over the components, trace / N, and its standard error."""
    deviation, error = estimate[name], estimate[f"{name}_standard_error"]
    count = deviation.size
    # Errors of different components are taken as independent.
    return float((deviation**2).mean()), float(np.sqrt(((2 * deviation * error) ** 2).sum())) / count


def row(label: str, estimate: xr.Dataset, true: dict[str, float]) -> dict[str, Any]:
    """A row of a table: each estimated variance, its standard error, and its relative difference from the truth."""
    values: dict[str, Any] = {"estimate": label}
    for letter, name in (("Q", "model_error"), ("R", "observation_error")):
        if name in estimate and letter in true:
            mean, error = variance(estimate, name)
            values |= {f"trace {letter} / N": mean, f"standard error of {letter}": error}
            values[f"{letter} off by"] = f"{mean / true[letter] - 1:+.1%}"
    values["passes"], values["seconds"] = int(estimate.attrs["passes"]), round(estimate.attrs["seconds"])
    return values


def curves(estimates: dict[str, xr.Dataset], true: dict[str, float], along: str) -> hv.Layout:
    """Q and R along iterations or time. True values are dashed lines."""
    panels = []
    for letter, name in (("Q", "model_error"), ("R", "observation_error")):
        lines = []
        for dash, (label, estimate) in zip(("solid", "dotted"), estimates.items(), strict=False):
            history = estimate.get(f"{name}_history")
            if history is None or letter not in true:
                continue
            values = history**2
            values = values.mean([dim for dim in values.dims if dim != along])
            curve = hv.Curve((estimate[along].values, values.values), along, f"trace {letter} / N", label=label)
            lines.append(curve.opts(line_dash=dash, line_width=2, logy=letter == "Q"))
        if lines:
            ends = [estimates[label][along].values[[0, -1]] for label in estimates]
            span = (min(first for first, _ in ends), max(last for _, last in ends))
            truth = hv.Curve((span, [true[letter]] * 2), label=f"true, {true[letter]:g}")
            truth = truth.opts(color="black", line_dash="dashed", line_width=1)
            options = {
                "width": 460,
                "height": 320,
                "show_grid": True,
                "legend_position": "bottom_right" if letter == "R" else "top_right",
                "yticks": [0.05, 0.1, 0.2, 0.5, 1.0] if letter == "Q" else 5,
            }
            panels.append(hv.Overlay([*lines, truth]).opts(**options))
    return hv.Layout(panels).opts(shared_axes=False)


def shown(rows: list[dict[str, Any]], title: str, options: argparse.Namespace, picture: hv.Layout) -> None:
    """Print and save a table, and its picture."""
    text = f"{title}\n\n{markdown(pd.DataFrame(rows))}"
    (options.out / "table.md").write_text(text)
    print(f"\n{text}")
    save_pictures(options.out / "estimates", {title: picture}, title="Errors of model and observations")


def setting(options: argparse.Namespace, trajectories: int, cycles: int, seed: int = 1) -> dict[str, int]:
    """Sizes and seed of a record: those of the options, or these defaults."""
    return {
        "trajectories": options.trajectories or trajectories,
        "cycles": options.cycles or cycles,
        "seed": seed if options.seed is None else options.seed,
    }


def em(options: argparse.Namespace) -> None:
    """Expectation maximisation from Q = I and R = I, 10,000 cycles in all: one variance, and one for each site."""
    hv.extension("bokeh", logo=False)
    sizes = setting(options, 20, 500)
    record = kept(options.out / "record.zarr", lambda: noisy(**sizes), **sizes)
    start = {"model_error": 1.0, "observation_error": 1.0, "progress": False}
    estimates, rows = {}, []
    for label in ("scalar", "diagonal"):

        def make(label: str = label) -> xr.Dataset:
            return timed(lambda: record.dan.estimate_errors("em", structure=label, **start))

        estimates[label] = kept(options.out / f"{label}.zarr", make, **sizes)
        rows.append(row(label, estimates[label], {"Q": Q, "R": R}))
        print(rows[-1], flush=True)
    title = f"EM, Lorenz-96, Q = 0.1 I and R = 2 I, from I and I; {described(sizes)}"
    shown(rows, title, options, curves(estimates, {"Q": Q, "R": R}, "iteration"))


def desroziers(options: argparse.Namespace) -> None:
    """R = 1 from residuals and innovations of an EnKF-N of 40 members, started from 2 and from 0.5."""
    hv.extension("bokeh", logo=False)
    sizes = setting(options, 16, 500)

    def make_record() -> xr.Dataset:
        return xdan.twin(MODEL, interval=0.05, error_std=1.0, dtype="float64", **sizes).compute()

    record = kept(options.out / "record.zarr", make_record, **sizes)
    estimates, rows = {}, []
    for variance_at_start in (2.0, 0.5):
        words = {"observation_error": math.sqrt(variance_at_start), "tolerance": 1e-6, "progress": False}
        label = f"from {variance_at_start:g}"

        def make(words: dict[str, Any] = words) -> xr.Dataset:
            return timed(lambda: record.dan.estimate_errors("desroziers", **words))

        estimates[label] = kept(options.out / f"{label.replace(' ', '-')}.zarr", make, **sizes)
        history = estimates[label].observation_error_history.values ** 2
        passes = {f"R of pass {k}": float(value) for k, value in enumerate(history)}
        rows.append({**row(label, estimates[label], {"R": 1.0}), **passes})
        print(rows[-1], flush=True)
    title = f"Desroziers on EnKF-N runs of 40 members, Lorenz-96, R = I; {described(sizes)}"
    shown(rows, title, options, curves(estimates, {"R": 1.0}, "iteration"))


def lag_innovations(options: argparse.Namespace) -> None:
    """Q and R in time by innovations at lags 0 and 1, from I and I."""
    hv.extension("bokeh", logo=False)
    sizes = setting(options, 20, 2000)
    record = kept(options.out / "record.zarr", lambda: noisy(**sizes), **sizes)
    estimates, rows = {}, []
    for smoothing in (50.0, 200.0):
        words = {"model_error": 1.0, "observation_error": 1.0, "smoothing": smoothing, "progress": False}
        label = f"smoothing over {smoothing:g} cycles"

        def make(words: dict[str, Any] = words) -> xr.Dataset:
            return timed(lambda: record.dan.estimate_errors("lag-innovations", **words))

        estimates[label] = kept(options.out / f"smoothing-{smoothing:g}.zarr", make, **sizes)
        rows.append(row(label, estimates[label], {"Q": Q, "R": R}))
        print(rows[-1], flush=True)
    title = f"Innovations at lags 0 and 1, Lorenz-96, Q = 0.1 I and R = 2 I, from I and I; {described(sizes)}"
    shown(rows, title, options, curves(estimates, {"Q": Q, "R": R}, "time"))


def described(sizes: dict[str, int]) -> str:
    """Sizes of a record, in words."""
    return f"{sizes['trajectories']} trajectories of {sizes['cycles']} cycles, seed {sizes['seed']}"


FIGURES: dict[str, Callable[[argparse.Namespace], None]] = {
    "em": em,
    "desroziers": desroziers,
    "lag-innovations": lag_innovations,
}
