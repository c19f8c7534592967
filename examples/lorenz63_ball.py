"""Lorenz-63: a small ball of states spreads along a direction that depends on its place on the attractor.

    python examples/lorenz63_ball.py [--minutes 5] [--out lorenz63-ball] [--explore]

By the multiplicative ergodic theorem, the directions in which small errors have grown are a function of the state. A
network without memory sees one state, and its derivative is an analysis error covariance P_a there. The leading
eigenvector of P_a is compared with the Lyapunov vectors at this state, with the leading eigenvectors of the P_a of an
ETKF and an IEnKS, and with the direction along which a tiny ball that started earlier has spread. With `--explore`,
sliders move a ball.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import holoviews as hv
import numpy as np
import pandas as pd
import torch
import xarray as xr

import xdan

from common import kept, markdown, save_pictures, trained

hv.extension("bokeh", logo=False)
MODEL = xdan.Lorenz63()
INTERVAL, VARIANCE = 0.25, 2.0
STEPS = round(INTERVAL / MODEL.timestep)
SPIN_UP = 100  # cycles to leave out at both ends of the record, in which Lyapunov vectors and filters converge
AGES = (1, 2, 3, 4, 8, 16)  # intervals since the start of a ball
NETWORK, FORECASTS, OTHER = "network", "network, at its forecasts", "network, at another state"
ETKF, IENKS, RANDOM, LYAPUNOV = "ETKF", "IEnKS", "random", "first Lyapunov vector"
COLOURS = {LYAPUNOV: "#000000", NETWORK: "#D55E00", ETKF: "#0072B2", IENKS: "#009E73"}
METHODS = {
    ETKF: ("etkf", {"members": 10, "inflation": "tune", "rotate": True}),
    IENKS: ("ienks", {"members": 10, "lag": 1, "inflation": 1.02}),
}
PLACES, AGE, MEMBERS, DEVIATION = 16, 2, 150, 0.2  # places, age, members and deviation of the balls that are drawn
LENGTH = 6.0  # length of a direction that is drawn


def since(age: int) -> str:
    """The name of a tiny ball, by the time since its start."""
    return f"tiny ball that set out {age * INTERVAL:g} before"


def leading(covariances: xr.DataArray) -> xr.DataArray:
    """The leading eigenvector at each state, along `component`."""
    vectors = xdan.covariance_spectrum(covariances).eigenvector.sel(mode=1, drop=True)
    return vectors.rename(i="component").drop_vars("component")


def tiny_ball(states: np.ndarray, age: int) -> xr.DataArray:
    """The covariance T T^T of a ball that had the covariance I `age` intervals before, by the tangent linear T."""
    x = torch.from_numpy(states.reshape(-1, 3))
    unit = torch.eye(3, dtype=x.dtype).repeat(len(x), 1, 1)
    _, columns = MODEL.advance_along(x, unit, age * STEPS)
    covariance = (columns.mT @ columns).numpy().reshape(*states.shape, 3)
    return xr.DataArray(covariance, dims=("trajectory", "time", "i", "j"))


def compute(out: Path, minutes: float, cycles: int, trajectories: int, seed: int) -> xr.Dataset:
    """Directions from every source, at the states of a record that the network has not seen."""
    experiment = xdan.TwinExperiment(MODEL, interval=INTERVAL, error_std=math.sqrt(VARIANCE))
    network = xdan.ResidualCNN(space=MODEL.space, filters=48, blocks=4, kernel=1)
    settings = {"objective": "mse", "window": 16, "batch": 32, "seed": seed, "minutes": minutes}
    net = trained(out / "network.zarr", experiment, network, **settings)
    size = {"cycles": cycles + 2 * SPIN_UP, "trajectories": trajectories}
    record = xdan.twin(experiment, **size, seed=seed + 1, dtype="float64").compute()
    runs = {NETWORK: record.dan.cycle(net, progress=False).compute()}
    for name, (method, parameters) in METHODS.items():
        runs[name] = record.dan.baseline(method, **parameters, keep_members=True, progress=False).compute()
    covariances = {name: xdan.ensemble_covariance(runs[name]) for name in METHODS}
    covariances[NETWORK] = record.dan.gain(net, kind="covariance")
    covariances[FORECASTS] = record.dan.gain(net, kind="covariance", run=runs[NETWORK])
    middle = slice(SPIN_UP, SPIN_UP + cycles)
    results: dict[str, Any] = {name: leading(p.isel(time=middle).compute()) for name, p in covariances.items()}
    for age in AGES:
        p = tiny_ball(record.truth.values[:, SPIN_UP - age : SPIN_UP - age + cycles], age)
        results[since(age)] = leading(p)
        variance = np.trace(p.values, axis1=-2, axis2=-1) / 3
        results[f"growth {age}"] = (("trajectory", "time"), np.log(variance) / (2 * age * INTERVAL))
    results[OTHER] = results[NETWORK].roll(trajectory=1)
    noise = np.random.default_rng(seed).normal(size=(trajectories, cycles, 3))
    results[RANDOM] = results[NETWORK].copy(data=noise / np.linalg.norm(noise, axis=-1, keepdims=True))
    for kind in ("covariant", "backward"):
        vectors = record.dan.lyapunov_vectors(kind=kind, spin_up=SPIN_UP).lyapunov_vector
        results[kind] = vectors.isel(time=slice(0, cycles)).compute()
    results["truth"] = record.truth.isel(time=middle)
    for name, run in runs.items():
        score = record.dan.score(run, burn_in=SPIN_UP).compute()
        results[f"RMSE of {name}"] = ("value_and_error", [float(score.rmse), float(score.rmse_standard_error)])
    return xr.Dataset(results)


def cosine(one: xr.DataArray, other: xr.DataArray) -> xr.DataArray:
    """|cos| of the angle between two directions at each state."""
    return abs((one * other).sum("component"))


def mean(values: xr.DataArray) -> tuple[float, float]:
    """Mean over the states, and its standard error over trajectories."""
    each = values.mean("time")
    return float(each.mean()), float(each.std("trajectory", ddof=1) / math.sqrt(each.sizes["trajectory"]))


def notes_on(results: xr.Dataset) -> str:
    """A table of |cos|, and the RMSE of the network and of the methods."""
    rows, growth = [], results[f"growth {AGE}"]
    for name in (NETWORK, FORECASTS, *METHODS, *map(since, AGES), OTHER, RANDOM):
        first = cosine(results[name], results.covariant.sel(vector=1))
        against = {
            "first covariant = first backward": first,
            "the same, fast states": first.where(growth > growth.median()),
            "plane of the first two": np.sqrt(1 - cosine(results[name], results.backward.sel(vector=3)) ** 2),
            **{other: cosine(results[name], results[other]) for other in (NETWORK, *METHODS)},
        }
        rows.append({"direction": name, **{title: "{:.3f} +- {:.3f}".format(*mean(v)) for title, v in against.items()}})
    scores = ["{} {:.3f} +- {:.3f}".format(name, *results[f"RMSE of {name}"].values) for name in (NETWORK, *METHODS)]
    size = f"{results.sizes['trajectory']} trajectories of {results.sizes['time']} states"
    return (
        f"Mean |cos| of the angle between leading directions, and its standard error over {size}. In fast states a "
        f"tiny ball that set out {AGE * INTERVAL:g} before has grown more than the median.\n\n"
        f"{markdown(pd.DataFrame(rows))}\nAnalysis RMSE: {'; '.join(scores)}. Seed {results.attrs['seed']}.\n"
    )


def places(results: xr.Dataset) -> list[int]:
    """Times of the first trajectory whose states lie far apart: each is the farthest from all chosen before."""
    points, chosen = results.truth.isel(trajectory=0).values, [max(AGES)]
    nearest = np.where(np.arange(len(points)) < max(AGES), 0.0, np.inf)
    for _ in range(min(PLACES, len(points) - max(AGES)) - 1):
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
        chosen.append(int(nearest.argmax()))
    return chosen


def points(states: np.ndarray, values: Any = None, name: str = "", **options: Any) -> Any:
    """Points in the plane of x and z, coloured by their values if there are values."""
    plane = states.reshape(-1, 3)[:, [0, 2]]
    if values is None:
        return hv.Points(plane, ["x", "z"]).opts(size=1.5, **options)
    table = np.column_stack([plane, np.ravel(values)])
    return hv.Points(table, ["x", "z"], name).opts(color=name, colorbar=True, colorbar_opts={"title": name}, **options)


def balls(results: xr.Dataset, times: list[int], age: int) -> Any:
    """Balls at their start, in grey, and `age` intervals later, coloured by their growth."""
    noise = np.random.default_rng(0).normal(scale=DEVIATION, size=(len(times), MEMBERS, 3))
    begin = results.truth.values[0, np.array(times) - age][:, None] + noise
    end = MODEL.advance(torch.from_numpy(begin), age * STEPS).numpy()
    growth = results[f"growth {age}"].values
    limits = {"clim": (float(growth.min()), float(growth.max())), "cmap": "plasma"}
    later = points(end, np.repeat(growth[0, times], MEMBERS), "growth rate", size=3, **limits)
    return points(begin, color="#888888") * later


def directions(results: xr.Dataset, times: list[int]) -> Any:
    """Segments along the directions at the places, projected on the plane of x and z."""
    at = results.isel(trajectory=0, time=times)
    drawn = []
    for name, width in zip((LYAPUNOV, NETWORK, ETKF), (6, 3.5, 1.5), strict=True):
        vectors = at.covariant.sel(vector=1) if name == LYAPUNOV else at[name]
        half, middle = LENGTH / 2 * vectors.values[:, [0, 2]], at.truth.values[:, [0, 2]]
        segments = hv.Segments(np.hstack([middle - half, middle + half]), ["x", "z", "x1", "z1"], label=name)
        drawn.append(segments.opts(color=COLOURS[name], line_width=width))
    return hv.Overlay(drawn)


def with_age(results: xr.Dataset) -> Any:
    """Mean |cos| between the direction of a tiny ball and other directions, against the time since the ball's start."""
    drawn = []
    for name, colour in COLOURS.items():
        other = results.covariant.sel(vector=1) if name == LYAPUNOV else results[name]
        rows = [(age * INTERVAL, *mean(cosine(results[since(age)], other))) for age in AGES]
        curve = hv.Curve([row[:2] for row in rows], "time since the ball set out", "mean |cos|", label=name)
        drawn += [curve.opts(color=colour), hv.ErrorBars(rows)]
    return hv.Overlay(drawn)


def pictures(results: xr.Dataset) -> dict[str, Any]:
    """Balls and directions, maps of growth and |cos|, and |cos| against the age of a ball."""
    panel, grey = {"width": 520, "height": 430, "ylim": (-12, 50)}, points(results.truth.values, color="#dddddd")
    times, time = places(results), f"{AGE * INTERVAL:g}"
    drifted = (grey * balls(results, times, AGE)).opts(title=f"as they set out (grey), and {time} later", **panel)
    segments = (grey * directions(results, times)).opts(title="directions", legend_position="bottom_right", **panel)
    growth, like = results[f"growth {AGE}"], cosine(results[NETWORK], results.covariant.sel(vector=1))
    grown = points(results.truth.values, growth, f"growth rate over {time}", cmap="plasma", size=2)
    likeness = points(results.truth.values, like, "|cos|", cmap="viridis", size=2)
    return {
        "Balls that drift apart, and the directions where they arrive": (drifted + segments).opts(shared_axes=False),
        "Growth, and |cos| between network and first Lyapunov vector": grown.opts(**panel) + likeness.opts(**panel),
        "How far back the directions look": with_age(results).opts(width=1040, height=320, legend_position="right"),
    }


def explore(results: xr.Dataset) -> Any:
    """A ball that sliders move along the attractor and let spread, seen from afar and from near."""
    import panel as pn

    place = pn.widgets.IntSlider(label="place", value=max(AGES), start=max(AGES), end=results.sizes["time"] - 1)
    age = pn.widgets.DiscreteSlider(label="intervals since it set out", options=list(AGES), value=AGE)
    size, grey = {"width": 520, "height": 480}, points(results.truth.values, color="#dddddd")

    def draw(time: int, intervals: int) -> Any:
        x, _, z = results.truth.isel(trajectory=0, time=time).values
        window = {"xlim": (x - 6, x + 6), "ylim": (z - 6, z + 6), "legend_position": "top"}
        moved = balls(results, [time], intervals)
        near = (directions(results, [time]) * moved).opts(**size, **window)
        return ((grey * moved).opts(**size) + near).opts(shared_axes=False)

    return pn.Column(pn.Row(place, age), pn.bind(draw, place.param.value_throttled, age.param.value_throttled))


def figure(options: argparse.Namespace) -> None:
    """Compute what is missing, and save the table and the page."""
    settings = {"minutes": options.minutes, "cycles": options.cycles or 400, "trajectories": options.trajectories or 16}
    settings["seed"] = 2 if options.seed is None else options.seed
    results = kept(options.out / "ball.zarr", lambda: compute(options.out, **settings), **settings)
    notes = notes_on(results)
    (options.out / "table.md").write_text(notes)
    save_pictures(options.out / "ball", pictures(results), title="Lorenz-63: place and direction", notes=notes)
    print(f"\n{notes}\nin {options.out}")
    if getattr(options, "explore", False):
        explore(results).show()


FIGURES: dict[str, Callable[[argparse.Namespace], None]] = {"ball": figure}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of the network")
    parser.add_argument("--cycles", type=int, help="states of each trajectory; by default 400")
    parser.add_argument("--trajectories", type=int, help="16 by default")
    parser.add_argument("--seed", type=int, help="seed of the training, by default 2; the record has the next seed")
    parser.add_argument("--out", type=Path, default=Path("lorenz63-ball"))
    parser.add_argument("--explore", action="store_true", help="move a ball in a browser at the end")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    figure(options)


if __name__ == "__main__":
    main()
