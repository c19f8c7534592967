"""Several models at once: control variates, the multifidelity and the multi-model ensemble Kalman filter.

control-variates: the variance of the multifidelity mean over 100,000 repetitions, and the variance by its formula, for
functions of normal numbers whose correlations are known in closed form.

multifidelity: Lorenz-96 with F = 8 is the costly model. The model with F = 7 is the cheap one, and counts as a tenth of
the cost. A few costly and many cheap members are compared with ensembles of one model.

multi-model: four wrong models of Lorenz-96 with 20 members each are compared with each model with 80 members, at
intervals of 0.2 with R = 0.25 I. Each model has a wrong forcing on one quarter of the ring: 10, 6, 11 and 5.
multi-model-one-side: F = 8.5, 9, 9.5 and 10 everywhere, so that all models err in one direction.

Inflations are tuned by the RMSE on the leading part of the record, for every row among five or six candidates.
docs/fidelities.md shows the results.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

import xdan
from xdan.core.methods.control_variates import control_variate_mean, regression_weights

from common import kept, markdown, save_pictures, slug

SITES, FORCING, BURN_IN = 40, 8.0, 200
REPETITIONS, TOGETHER = 100_000, 5_000  # number of estimates of the mean, and of estimates that are computed at a time
RHO = (1 / math.sqrt(1.18), 0.5 / math.sqrt(0.5 * 1.18))  # of `fidelities`, in closed form
WEIGHTS, VARIANCE = (1.0, 1.0), 1.18  # Cov(f_0, f_k) / Var(f_k), and Var(f_0)
COUNTS: dict[str, tuple[int, ...]] = {"10": (10,), "10, 40": (10, 40), "10, 40, 200": (10, 40, 200)}
COSTS = (1.0, 0.1, 0.01)
CANDIDATES = {  # inflations to try, for ensembles of the true model, of a wrong one, with estimated errors, and of both
    "true": [1.0, 1.03, 1.06, 1.1, 1.2],
    "wrong": [1.2, 1.4, 1.6, 2.0, 2.5],
    "estimated": [0.97, 1.0, 1.05, 1.1, 1.2],
    "fidelities": [1.0, 1.03, 1.06, 1.12, 1.25, 1.5],
}
ONE_MODEL = "one model, Q estimated, 80"


def quarters() -> dict[str, xdan.Dynamics]:
    """Models with a wrong forcing on one quarter of the ring each."""
    models = {}
    for quarter, wrong in enumerate((10.0, 6.0, 11.0, 5.0)):
        forcing = np.full(SITES, FORCING)
        forcing[quarter * SITES // 4 : (quarter + 1) * SITES // 4] = wrong
        models[f"F = {wrong:g} on quarter {quarter + 1}"] = xdan.Lorenz96(SITES, forcing)
    return models


def uniform(*forcings: float) -> dict[str, xdan.Dynamics]:
    """Models with one wrong forcing each."""
    return {f"F = {forcing:g}": xdan.Lorenz96(SITES, forcing) for forcing in forcings}


WRONG: dict[str, Callable[[], dict[str, xdan.Dynamics]]] = {
    "multi-model": quarters,
    "multi-model-one-side": partial(uniform, 8.5, 9.0, 9.5, 10.0),
}


def fidelities(v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """f_0 = u + 0.3 (u^2 - 1), f_1 = u, f_2 = (u + w) / 2 + 2 of normal numbers v = (u, w), shapes (..., n, 1)."""
    u, w = v[..., :1], v[..., 1:]
    return u + 0.3 * (u.square() - 1), u, 0.5 * (u + w) + 2.0


def estimates(counts: tuple[int, ...], seed: int, estimated: bool) -> xr.Dataset:
    """Multifidelity means of f_0, whose mean is 0, over independent repetitions."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for _ in range(REPETITIONS // TOGETHER):
        values = fidelities(torch.randn(TOGETHER, counts[-1], 2, generator=generator, dtype=torch.float64))
        nested = [value[:, :count] for value, count in zip(values, counts, strict=False)]
        weights: list[Any] = list(WEIGHTS[: len(counts) - 1])
        if estimated:
            weights = [regression_weights(nested[0], low[:, : counts[0]], scalar=False) for low in nested[1:]]
        rows.append(control_variate_mean(nested, weights)[:, 0])
    return xr.Dataset({"mean": ("repetition", torch.cat(rows).numpy())})


def control_variates(options: argparse.Namespace) -> None:
    """Measured and expected variance of the multifidelity mean."""
    seed = 0 if options.seed is None else options.seed
    best = xdan.member_counts(COSTS, RHO, budget=20.0)
    choices = {**COUNTS, f"{', '.join(map(str, best.counts))}, best for a cost of 20": best.counts}
    rows = []
    for label, counts in choices.items():
        for estimated in (False, True) if len(counts) > 1 else (False,):
            path = options.out / f"{slug(label)}{'-estimated' if estimated else ''}.zarr"
            made = kept(path, partial(estimates, counts, seed, estimated), seed=seed, repetitions=REPETITIONS)
            mean = made["mean"].values
            formula = xdan.control_variate_variance(counts, RHO[: len(counts) - 1], VARIANCE)
            rows.append(
                {
                    "draws of each model": label,
                    "weights": "of the draws" if estimated else "best",
                    "formula": formula,
                    "variance": mean.var(ddof=1),
                    "ratio": mean.var(ddof=1) / formula,
                    "its standard error": math.sqrt(np.mean((mean - mean.mean()) ** 4) / mean.var() ** 2 - 1)
                    / math.sqrt(mean.size),
                    "bias": f"{mean.mean():.5f} +- {mean.std() / math.sqrt(mean.size):.5f}",
                }
            )
    heading = (
        f"{REPETITIONS:,} repetitions, seed {seed}; {best.high_only * VARIANCE:.4g} is the variance of 20 draws of f_0"
    )
    table = _told(options.out, "control-variates", heading, rows)
    shown = table.melt(["draws of each model", "weights"], ["formula", "variance"], "of", "variance of the mean")
    shown["case"] = shown["draws of each model"] + " (" + shown["weights"] + ")"
    _drawn(options.out / "control-variates", shown, "case", "variance of the mean", by="of")


def multifidelity(options: argparse.Namespace) -> None:
    """RMSE of ensembles of the costly model, the cheap one, and both."""
    costly, cheap = xdan.Lorenz96(SITES, FORCING), xdan.Lorenz96(SITES, 7.0)
    tuned = {"candidates": {"inflation": CANDIDATES["fidelities"]}}
    works: dict[str, tuple[xdan.Dynamics, str, dict[str, Any], float]] = {
        f"ETKF, {count} costly": (costly, "etkf", {"members": count, **tuned}, count) for count in (20, 30, 80)
    }
    works["ETKF, 80 cheap"] = (cheap, "etkf", {"members": 80, **tuned}, 8.0)
    for count in (5, 10):
        words = {"principal": count, "models": [(cheap, 80)], **tuned}
        works[f"multifidelity, {count} costly and 80 cheap"] = (costly, "multifidelity-enkf", words, count + 8.0)
    rows = []
    for label, (model, method, parameters, cost) in works.items():
        record = _record(options, 1.0, model)
        rows.append({"scheme": label, "cost": cost, **_scored(options, record, label, method, parameters)})
    heading = f"Lorenz-96, every 0.2, R = I; {_size(record)}; a cheap member costs 0.1"
    table = _told(options.out, "multifidelity", heading, rows)
    _drawn(options.out / "multifidelity", table, "scheme", "RMSE")


def multi_model(name: str, options: argparse.Namespace) -> None:
    """RMSE of four wrong models together, and of each by itself."""
    models, rows = WRONG[name](), []
    tuned = {kind: {"candidates": {"inflation": values}} for kind, values in CANDIDATES.items()}
    true, first = xdan.Lorenz96(SITES, FORCING), next(iter(models.values()))
    works: dict[str, tuple[xdan.Dynamics, str, dict[str, Any]]] = {
        f"ETKF, 80, {label}": (model, "etkf", {"members": 80, **tuned["wrong"]}) for label, model in models.items()
    }
    for label, model in models.items():
        works[f"{ONE_MODEL}, {label}"] = (model, "multi-model-enkf", {"models": [(None, 80)], **tuned["estimated"]})
    together = [(model, 20) for model in models.values()]
    works["multi-model, 4 x 20"] = (first, "multi-model-enkf", {"models": together, **tuned["estimated"]})
    works["ETKF, 80, the true model"] = (true, "etkf", {"members": 80, **tuned["true"]})
    for label, (model, method, parameters) in works.items():
        record = _record(options, 0.5, model)
        rows.append({"scheme": label, **_scored(options, record, label, method, parameters)})
    table = _told(options.out, name, f"Lorenz-96, F = 8, every 0.2, R = 0.25 I; {_size(record)}", rows)
    singles = table[table.scheme.str.contains("80, F")]
    best, whole = singles.loc[singles.RMSE.idxmin()], table[table.scheme.str.startswith("multi-model")].iloc[0]
    apart = math.hypot(best["standard error"], whole["standard error"])
    print(
        f"multi-model {whole.RMSE:.4f} against {best.RMSE:.4f} of the best single model ({best.scheme}): "
        f"{(best.RMSE - whole.RMSE) / apart:.1f} standard errors below"
    )
    _drawn(options.out / name, table, "scheme", "RMSE")


def _record(options: argparse.Namespace, error_std: float, model: xdan.Dynamics) -> xr.Dataset:
    """A record with a truth of F = 8, for any forecast model: all have one truth and one set of observations."""
    cycles, trajectories = BURN_IN + (options.cycles or 400), options.trajectories or 8
    seed = 1 if options.seed is None else options.seed
    size = {"cycles": cycles, "trajectories": trajectories, "seed": seed}
    truth = xdan.Lorenz96(SITES, FORCING)
    return xdan.twin(model, interval=0.2, error_std=error_std, truth_dynamics=truth, **size).compute()


def _size(record: xr.Dataset) -> str:
    """The size of a record, in words."""
    return (
        f"{record.sizes['trajectory']} trajectories, {record.sizes['time'] - BURN_IN} cycles after {BURN_IN}, seed "
        f"{record.attrs['seed']}"
    )


def _scored(
    options: argparse.Namespace, record: xr.Dataset, label: str, method: str, parameters: Mapping[str, Any]
) -> dict[str, float]:
    """RMSE of a method on a record; the result is saved."""

    def score() -> xr.Dataset:
        words = {"inflation": "tune", "tune_on": "truth", **parameters, "progress": False}
        run = record.dan.baseline(method, **words)
        scores: xr.Dataset = record.dan.score(run, burn_in=BURN_IN).compute()
        return scores[["rmse", "rmse_standard_error", "spread", "diverged"]].assign(inflation=run["tuned_inflation"])

    settings = {name: size for name, size in record.sizes.items() if name != "x"} | {"seed": record.attrs["seed"]}
    made = kept(options.out / f"{slug(label)}.zarr", score, **settings)
    row = {
        "RMSE": float(made.rmse),
        "standard error": float(made.rmse_standard_error),
        "spread": float(made.spread),
        "inflation": float(made.inflation),
        "lost": int(made.diverged),
    }
    print(label, row, flush=True)
    return row


def _told(out: Path, name: str, heading: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Print and save a table."""
    table = pd.DataFrame(rows)
    text = f"{heading}\n\n{markdown(table)}"
    (out / f"{name}.md").write_text(text)
    print(f"\n{text}")
    return table


def _drawn(path: Path, table: pd.DataFrame, label: str, value: str, **more: Any) -> None:
    """Save bars of a column."""
    import hvplot.pandas  # noqa: F401

    bars = table[::-1].hvplot.barh(label, value, width=1000, height=120 + 34 * len(table), xlabel="", grid=True, **more)
    save_pictures(path, {value: bars}, title=path.name.replace("-", " "))


FIGURES: dict[str, Callable[[argparse.Namespace], None]] = {
    "control-variates": control_variates,
    "multifidelity": multifidelity,
    **{name: partial(multi_model, name) for name in WRONG},
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=FIGURES)
    for name in ("cycles", "trajectories", "seed"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--out", type=Path, default=Path("imperfect") / "fidelities")
    options = parser.parse_args()
    options.out = options.out / options.figure
    options.out.mkdir(parents=True, exist_ok=True)
    FIGURES[options.figure](options)
