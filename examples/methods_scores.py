"""Whether ensembles know their errors: ranks, spread against error, probabilities against frequencies."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import pandas as pd
import xarray as xr

import xdan

from common import kept, markdown, save_pictures, slug

BURN_IN = 60
METHODS = {
    "ETKF, inflation 1.02": ("etkf", {"inflation": 1.02}),
    "ETKF, inflation 1.1": ("etkf", {"inflation": 1.1}),
    "EnKF-N": ("enkf-n", {}),
}


def verdicts(options: argparse.Namespace) -> None:
    """Three filters of 20 members with every score of docs/scores.md, a table and three pictures."""
    cycles, trajectories = options.cycles or 140, options.trajectories or 12
    seed = 1 if options.seed is None else options.seed
    sizes = {"cycles": cycles, "trajectories": trajectories, "seed": seed}
    ds = xdan.twin(xdan.Lorenz96(), cycles=BURN_IN + cycles, trajectories=trajectories, seed=seed).compute()

    def run(method: str, parameters: dict[str, float]) -> xr.Dataset:
        return ds.dan.baseline(method, members=20, **parameters, keep_members=True, progress=False)

    runs = {
        name: kept(options.out / f"{slug(name)}.zarr", partial(run, method, parameters), **sizes)
        for name, (method, parameters) in METHODS.items()
    }
    scores = ds.dan.score(runs, burn_in=BURN_IN, also=["energy"])
    histogram = ds.dan.rank_histogram(runs, burn_in=BURN_IN, dim="time")
    flat = xdan.rank_flatness(histogram)
    spread = ds.dan.spread_error(runs, burn_in=BURN_IN, bins=8)
    events = ds.dan.reliability(runs, burn_in=BURN_IN, quantile=0.9)
    columns = ["rmse", "rmse_standard_error", "spread", "crps", "energy_score", "consistency"]
    parts = ["brier_score", "reliability", "resolution", "uncertainty"]
    tables = [
        scores[columns].to_pandas()[columns],
        flat[["reliability_index", "effective_counts", "p_value"]].to_pandas(),
        events[parts].to_pandas()[parts],
    ]
    text = markdown(pd.concat(tables, axis=1).reset_index())
    (options.out / "verdicts.md").write_text(text)
    print(f"{trajectories} trajectories, {cycles} cycles after {BURN_IN}, seed {seed}\n\n{text}")
    sections = {
        "Ranks of the truth": xdan.rank_bars(histogram),
        "Spread beside error": xdan.spread_error_curves(spread),
        "Probabilities beside frequencies": xdan.reliability_curves(events),
    }
    save_pictures(options.out / "verdicts", sections, title="Do ensembles know their errors?")


FIGURES: dict[str, Callable[[argparse.Namespace], None]] = {"verdicts": verdicts}
