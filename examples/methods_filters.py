"""Figures of classical filters: "table", "sparse", "adaptive", "non-gaussian" and "cost" of examples/methods.py.

Parameters are tuned on the leading part of the record, by the analysis RMSE. The scores of every run are saved in the
folder of the figure. docs/methods.md shows the results.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import pandas as pd
import xarray as xr

import xdan

from common import kept, markdown, slug

BURN_IN = 300
Rows = Mapping[
    str, tuple[str, dict[str, Any], dict[str, list[float]]]
]  # title: method, parameters, candidates of tuned parameters

MANY, FEW = {"inflation": 1.005}, {"inflation": 1.02}  # the best of the ETKF with 40 members, and of the LETKF with 10
TABLE: Rows = {
    "ETKF, 40 members": ("etkf", {"members": 40, **MANY}, {}),
    "EAKF, 40 members": ("eakf", {"members": 40, **MANY}, {}),
    "EAKF, 28 members": ("eakf", {"members": 28, **FEW}, {}),
    "EnSRF, 40 members": ("ensrf", {"members": 40, **MANY}, {}),
    "DEnKF, 40 members": ("denkf", {"members": 40, **MANY}, {}),
    "LETKF, 10 members, radius 7.5": ("letkf", {"members": 10, "radius": 7.5, **FEW}, {}),
    "EAKF, 10 members, radius 7.5": ("eakf", {"members": 10, "radius": 7.5, **FEW}, {}),
    "ES-MDA, 40 members, 2 steps, square root": (
        "es-mda",
        {"members": 40, "steps": 2, "update": "deterministic", **MANY},
        {},
    ),
    "EAKF, 20 members, radius 15": ("eakf", {"members": 20, "radius": 15.0, **FEW}, {}),
    "DEnKF, 10 members, radius 7.5": ("denkf", {"members": 10, "radius": 7.5, **FEW}, {}),
    "ES-MDA, 40 members, 2 steps, perturbed observations": (
        "es-mda",
        {"members": 40, "steps": 2},
        {"inflation": [1.04, 1.06, 1.08]},
    ),
    "rank histogram, 40 members": ("rank-histogram", {"members": 40}, {"inflation": [1.03, 1.06]}),
    "rank histogram, 20 members, radius 15": (
        "rank-histogram",
        {"members": 20, "radius": 15.0},
        {"inflation": [1.06, 1.1]},
    ),
    **{
        f"hybrid 3D-EnVar, {members} members, radius {radius:g}": (
            "hybrid-envar",
            {"members": members, "radius": radius, "inflation": inflation},
            {"static_weight": [0.0, 0.03]},
        )
        for members, radius, inflation in ((10, 7.5, 1.02), (20, 15.0, 1.02), (40, 30.0, 1.005))
    },
}


def table(options: argparse.Namespace) -> None:
    """A comparison of all filters, with every site observed."""
    _compare(options, {}, TABLE)


def sparse(options: argparse.Namespace) -> None:
    """Few members and few observations: the EAKF and the hybrid, with and without its static part."""
    for every, inflations in ((2, [1.01, 1.03]), (4, [1.0, 1.02])):
        tried = {"inflation": inflations}
        rows: Rows = {
            "3D-Var": ("3d-var", {"scale": "tune"}, {}),
            "LETKF, 10 members": ("letkf", {"members": 10, "radius": 5.5}, tried),
            "EAKF, 10 members": ("eakf", {"members": 10, "radius": 5.5}, tried),
            **{
                f"hybrid 3D-EnVar, {members} members, {words}": (
                    "hybrid-envar",
                    {"members": members, "radius": 5.5, "anomalies": "hybrid", **fixed},
                    {**weights, **tried},
                )
                for members in (5, 10)
                for words, fixed, weights in (
                    ("no static part", {"static_weight": 0.0}, {}),
                    ("static part", {}, {"static_weight": [0.03, 0.1]}),
                )
            },
            "EAKF, 20 members": ("eakf", {"members": 20, "radius": 7.5}, tried),
        }
        _compare(options, {"observe": xdan.Sites.every(every)}, rows, f"every {every} sites")


def adaptive(options: argparse.Namespace) -> None:
    """Inflation that follows the innovations, constant inflation and relaxation, for a right and a wrong model."""
    rows: Rows = {}
    for name, title, size, numbers in (
        ("etkf", "ETKF, 40 members", {"members": 40}, (1.02, 1.06, 1.1)),
        ("letkf", "LETKF, 10 members, radius 5.5", {"members": 10, "radius": 5.5}, (1.02, 1.1)),
    ):
        rows |= {f"{title}, inflation {r:g}": (name, {**size, "inflation": r}, {}) for r in numbers}
        rows[f"{title}, adaptive"] = name, {**size, "inflation": "adaptive"}, {}
    for word, share in (("rtps", 0.5), ("rtpp", 0.5)):
        relaxed = {"members": 40, "inflation": 1.0, "relaxation": word, "relaxation_factor": share}
        rows[f"ETKF, 40 members, {word.upper()} {share:g}"] = "etkf", relaxed, {}
    _compare(options, {}, rows, "perfect model")
    wrong = xdan.TwinExperiment(xdan.Lorenz96(forcing=8.5), truth_dynamics=xdan.Lorenz96())
    _compare(options, {"experiment": wrong}, rows, "truth with F = 8, model with F = 8.5")


def non_gaussian(options: argparse.Namespace) -> None:
    """Lorenz-63 at a long interval: forecasts that are far from Gaussian."""
    rows: Rows = {
        f"{title}, 20 members, inflation {inflation:g}": (name, {"members": 20, "inflation": inflation}, {})
        for name, title in (("etkf", "ETKF"), ("eakf", "EAKF"), ("rank-histogram", "rank histogram"))
        for inflation in (1.1, 1.2)
    }
    words = {"experiment": xdan.TwinExperiment(xdan.Lorenz63(), interval=0.25, error_std=2.0**0.5)}
    _compare(options, words, rows, "Lorenz-63, interval 0.25")


def _compare(options: argparse.Namespace, words: Mapping[str, Any], rows: Rows, title: str = "all sites") -> None:
    """Print and save the table of a record."""
    cycles, trajectories = BURN_IN + (options.cycles or 300), options.trajectories or 32
    seed = 1 if options.seed is None else options.seed
    words = dict(words)
    experiment = words.pop("experiment", xdan.Lorenz96())
    test = xdan.twin(experiment, cycles=cycles, trajectories=trajectories, seed=seed, **words).compute()
    known = {"cycles": cycles, "trajectories": trajectories, "seed": seed}
    lines = []
    for name, (method, parameters, candidates) in rows.items():
        path = options.out / f"{slug(title)}-{slug(name)}.zarr"
        score = kept(path, lambda m=method, p=parameters, c=candidates: _scored(test, m, p, c), **known)
        lines.append(
            {
                "filter": name,
                "RMSE": float(score.rmse),
                "standard error": float(score.rmse_standard_error),
                "spread": float(score.spread) if "spread" in score else float("nan"),
                "lost": int(score.diverged),
                "tuned to": score.attrs["tuned_to"],
            }
        )
        print(lines[-1], flush=True)
    text = markdown(pd.DataFrame(lines))
    (options.out / f"{slug(title)}.md").write_text(text)
    print(f"\n{title}: {trajectories} trajectories, {cycles - BURN_IN} cycles after {BURN_IN}, seed {seed}\n\n{text}")


def _scored(
    test: xr.Dataset, method: str, parameters: dict[str, Any], candidates: dict[str, list[float]]
) -> xr.Dataset:
    """Scores of one filter, and its tuned parameters."""
    words = {"candidates": candidates, "tune_on": "truth"} if candidates else {}
    run = test.dan.baseline(method, **parameters, **dict.fromkeys(candidates, "tune"), **words, progress=False)
    score = test.dan.score(run, burn_in=BURN_IN).compute()
    names = [name for name in ("rmse", "rmse_standard_error", "spread", "diverged") if name in score]
    chosen = ", ".join(f"{name.replace('_', ' ')} {float(run[f'tuned_{name}']):g}" for name in candidates)
    if "inflation" in run:
        chosen = f"mean inflation {float(run.inflation[:, BURN_IN:].mean()):.3f}"
    if method == "3d-var":
        chosen = f"scale {float(run.background_scale):.3f}"
    return score[names].drop_attrs().assign_attrs(tuned_to=chosen)


def cost(options: argparse.Namespace) -> None:
    """Time of a cycle relative to that of the ETKF: the shortest of five runs of 30 cycles, after a first run."""
    trajectories, seed = options.trajectories or 32, 1 if options.seed is None else options.seed
    test = xdan.twin(xdan.Lorenz96(), cycles=options.cycles or 30, trajectories=trajectories, seed=seed).compute()
    rows = {name: (method, parameters) for name, (method, parameters, _) in TABLE.items()}
    fastest = dict.fromkeys(rows, float("inf"))
    for _ in range(5):
        for name, (method, parameters) in rows.items():
            begin = time.perf_counter()
            test.dan.baseline(method, **parameters, spin_up=0, progress=False)
            fastest[name] = min(fastest[name], time.perf_counter() - begin)
    each = {name: 1e3 * seconds / test.sizes["time"] for name, seconds in fastest.items()}
    first = next(iter(each.values()))
    lines = [{"filter": name, "ms a cycle": ms, "of the ETKF": ms / first} for name, ms in each.items()]
    text = markdown(pd.DataFrame(lines))
    (options.out / "cost.md").write_text(text)
    print(f"{trajectories} trajectories side by side\n\n{text}")


FIGURES = {"table": table, "sparse": sparse, "adaptive": adaptive, "non-gaussian": non_gaussian, "cost": cost}
