"""Every baseline against published or known numbers: the table and the picture of docs/methods.md.

    python ci/bench/known_numbers.py [--only NAME ...] [--out known-numbers]

Lorenz-96, 40 sites, F = 8, R = I. After burn-in there are at least 10,000 cycles at an interval of 0.05, and 2,000 at
longer intervals. Each row is cycled once and saved in a Zarr store: a second call computes only what is missing. In
the rows with "Q = 0.1 I" the truth has such model errors in every interval. examples/imperfect.py has further figures
of wrong models.
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import xdan


@dataclass(frozen=True)
class Row:
    """A method, its parameters, and the known value of its RMSE, if there is one."""

    title: str
    method: str
    parameters: dict[str, Any]
    interval: float
    known: float | None = None
    at_most: bool = False
    every: int = 1
    burn_in: int = 300
    model_error_std: float = 0.0

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def rows() -> list[Row]:
    rows = [
        Row("EnKF-N, 20 members", "enkf-n", {"members": 20}, 0.05, 0.191),
        Row("EnKF-N, 40 members", "enkf-n", {"members": 40}, 0.05, 0.180),
        Row("ETKF, 40 members, inflation 1.005", "etkf", {"members": 40, "inflation": 1.005}, 0.05, 0.180),
        Row("ETKF, 40 members, inflation 1.02", "etkf", {"members": 40, "inflation": 1.02}, 0.05, 0.186),
        Row("ETKF, 20 members, inflation 1.03", "etkf", {"members": 20, "inflation": 1.03}, 0.05, 0.194),
        Row(
            "ETKF, 40 members, every other site, tuned",
            "etkf",
            {"members": 40, "inflation": "tune"},
            0.05,
            0.306,
            at_most=True,
            every=2,
        ),
    ]
    for interval, known in ((0.05, 0.181), (0.20, 0.320), (0.40, 0.397), (0.60, 0.459)):
        rows.append(
            Row(
                f"IEnKF-N, 40 members, interval {interval:.2f}",
                "ienkf-n",
                {"members": 40},
                interval,
                known,
                at_most=True,
            )
        )
    for interval, known in ((0.20, 0.38), (0.40, 0.60), (0.60, 0.83)):
        rows.append(Row(f"EnKF-N, 40 members, interval {interval:.2f}", "enkf-n", {"members": 40}, interval, known))
    for lag, known in ((5, 0.169), (10, 0.165)):
        rows.append(Row(f"IEnKS-N, 40 members, lag {lag}", "ienks-n", {"members": 40, "lag": lag}, 0.05, known))
    rows += [
        Row("LETKF, 7 members", "letkf", {"members": 7, "radius": 7.5, "inflation": 1.04}, 0.05, 0.219),
        Row("LETKF, 10 members", "letkf", {"members": 10, "radius": 7.5, "inflation": 1.02}, 0.05, 0.207),
        Row("EAKF, 40 members, inflation 1.005", "eakf", {"members": 40, "inflation": 1.005}, 0.05, 0.180),
        Row("DEnKF, 40 members, inflation 1.005", "denkf", {"members": 40, "inflation": 1.005}, 0.05, 0.180),
        Row("Extended KF, inflation tuned", "extended-kalman", {"inflation": "tune"}, 0.05, 0.24, at_most=True),
        Row("Second-order KF, c2 = 8", "second-order-kalman", {"c2": 8.0}, 0.05, 0.182, at_most=True),
        *(
            Row(
                f"Iterated Kalman smoother, lag {lag}, c2 = 8",
                "iterated-kalman-smoother",
                {"lag": lag, "c2": 8.0},
                0.05,
                known,
                at_most=True,
            )
            for lag, known in ((1, None), (5, 0.160), (10, 0.155))
        ),
        Row("3D-Var, trained B", "3d-var", {"background": "trained"}, 0.05, 0.39),
        Row("4D-Var, window 4 x 0.20, tuned", "4d-var", {"window": 4, "scale": "tune"}, 0.20, 0.37),
        Row("Optimal interpolation", "optimal-interpolation", {}, 0.05, 0.95),
        Row("Climatology", "climatology", {}, 0.05, 3.63),
        Row("Stochastic EnKF, 40 members, tuned", "enkf", {"members": 40, "inflation": "tune"}, 0.05),
        Row("IEnKF, 40 members, tuned", "ienkf", {"members": 40, "inflation": "tune"}, 0.20),
        Row("IEnKF-N, bundle, 40 members", "ienkf-n", {"members": 40, "variant": "bundle"}, 0.20),
        Row("Covariance from the state, A1, tuned", "state-covariance", {"algorithm": "A1"}, 0.05),
        Row("Covariance from the state, A2, tuned", "state-covariance", {"algorithm": "A2"}, 0.05),
        Row("EDA, 10 members, window 4 x 0.20", "eda", {"members": 10, "window": 4, "scale": 0.0018}, 0.20),
        Row("Bootstrap particle filter, 2000 particles", "particle", {"members": 2000}, 0.05),
        Row("Optimal-proposal particle filter, 2000 particles", "optimal-particle", {"members": 2000}, 0.05),
    ]
    for title, method, parameters in (
        ("Extended KF", "extended-kalman", {"inflation": 1.0}),
        ("ETKF, 40 members, sqrt-core", "etkf", {"members": 40, "inflation": 1.0, "model_noise": "sqrt-core"}),
        ("ETKF, 40 members, draws", "etkf", {"members": 40, "inflation": 1.0}),
        ("EnKF-N, 40 members, draws", "enkf-n", {"members": 40}),
        ("Weak-constraint 4D-Var, window 4, tuned", "weak-4d-var", {"window": 4, "scale": "tune"}),
    ):
        rows.append(Row(f"{title}, Q = 0.1 I", method, parameters, 0.05, model_error_std=0.1**0.5))
    return rows


def compute(row: Row, out: Path, trajectories: int) -> xr.Dataset:
    """Run one row and save its scores."""
    cycles = row.burn_in + -(-(10_000 if row.interval == 0.05 else 2_000) // trajectories)
    twin = xdan.twin(
        xdan.Lorenz96(),
        interval=row.interval,
        cycles=cycles,
        trajectories=trajectories,
        observe=xdan.Sites.every(row.every),
        model_error_std=row.model_error_std,
        seed=11,
    ).compute()
    begin = time.perf_counter()
    run = twin.dan.baseline(row.method, **row.parameters)
    seconds = time.perf_counter() - begin
    score = twin.dan.score(run, burn_in=row.burn_in).compute()
    names = ("rmse", "rmse_standard_error", "diverged")
    result = xr.Dataset({name: score[name] for name in names})
    result["seconds"] = seconds
    result["iterations"] = float(run.iterations[:, row.burn_in :].mean()) if "iterations" in run else np.nan
    for name in run.data_vars:
        if str(name).startswith(("tuned_", "background_scale")):
            result["tuned"] = run[name].astype(float).drop_vars(run[name].coords)
    result.attrs = {"title": row.title, "cycles": int(score.attrs["cycles"])}
    result.to_zarr(out, group=row.slug, mode="w", consolidated=False)
    return result


def verdict(row: Row, result: xr.Dataset) -> str:
    """Whether the score equals the known number within 3 standard errors + 0.003."""
    if row.known is None:
        return ""
    margin = 3 * float(result.rmse_standard_error) + 0.003
    off = float(result.rmse) - row.known
    if (off if row.at_most else abs(off)) <= margin:
        return "yes"
    return "better" if off < 0 else "no"


def table(done: list[tuple[Row, xr.Dataset]]) -> str:
    """Markdown."""
    lines = ["| method | interval | known | RMSE | cycles | tuned to | within |", "|---|---|---|---|---|---|---|"]
    for row, result in done:
        tuned = f"{float(result.tuned):.3g}" if "tuned" in result else ""
        known = "" if row.known is None else f"{'at most ' if row.at_most else ''}{row.known:g}"
        score = f"{float(result.rmse):.4f} +- {float(result.rmse_standard_error):.4f}"
        lines.append(
            f"| {row.title} | {row.interval:.2f} | {known} | {score} | {result.attrs['cycles']:,} | {tuned} "
            f"| {verdict(row, result)} |"
        )
    return "\n".join(lines)


def picture(done: list[tuple[Row, xr.Dataset]], path: Path) -> None:
    """RMSE with bars of three standard errors, and known numbers; a line for each method."""
    import holoviews as hv
    import hvplot.pandas  # noqa: F401
    import pandas as pd

    frame = pd.DataFrame(
        {
            "method": [
                row.title + ("" if "interval" in row.title or " x " in row.title else f", {row.interval:.2f}")
                for row, _ in done
            ],
            "RMSE": [float(result.rmse) for _, result in done],
            "margin": [3 * float(result.rmse_standard_error) for _, result in done],
            "known": [np.nan if row.known is None else row.known for row, _ in done],
        }
    )[::-1]
    sizes = {"height": 22 * len(frame) + 80, "width": 850}
    known = frame.hvplot.scatter(
        "known", "method", marker="dash", angle=90, size=200, color="#cc6600", label="known", xlabel="analysis RMSE"
    )
    reached = frame.hvplot.scatter("RMSE", "method", size=45, color="#1f5a99", label="reached, 3 standard errors")
    bars = hv.Segments(
        [(r.RMSE - r.margin, r.method, r.RMSE + r.margin, r.method) for r in frame.itertuples() if r.RMSE == r.RMSE]
    ).opts(color="#1f5a99")
    figure = (known * bars * reached).opts(logx=True, legend_position="top_right", **sizes)
    xdan.save_page(path, {"Reached and known": figure}, title="Known numbers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None, help="rows whose title contains one of these")
    parser.add_argument("--out", type=Path, default=Path("known-numbers"))
    parser.add_argument("--trajectories", type=int, default=32)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    store, done = options.out / "known-numbers.zarr", []
    for row in rows():
        if options.only is not None and not any(word.lower() in row.title.lower() for word in options.only):
            continue
        try:
            result = xr.open_zarr(store, group=row.slug, consolidated=False).load()
        except FileNotFoundError:
            result = compute(row, store, options.trajectories)
        done.append((row, result))
        print(
            f"{row.title:48s} {row.known or '':>6}  "
            f"{float(result.rmse):.4f} +- {float(result.rmse_standard_error):.4f}  "
            f"{float(result.diverged):.3f} lost  {float(result.seconds):6.1f} s  {verdict(row, result)}",
            flush=True,
        )
    (options.out / "known-numbers.md").write_text(table(done) + "\n")
    picture(done, options.out / "known-numbers.html")
    print(f"\n{table(done)}\n\nin {options.out}")


if __name__ == "__main__":
    main()
