"""The family of networks under many observing systems: train, cycle, score; one table and one picture.

    python examples/family.py [--only NAME ...] [--scale 1.0] [--out family]

The network of each row is trained on an endless twin for its minutes (times `--scale`), on all cores. It then cycles a
test record that no network has seen. The members of a committee are trained before it. Networks, scores and checkpoints
stay in Zarr stores under `--out`: a second call computes only what is missing, and a killed training goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hvplot.pandas  # noqa: F401
import pandas as pd
import xarray as xr

import xdan

from common import markdown, slug, trained

BURN_IN, TRAJECTORIES = 200, 64
PLAIN = {"filters": 40, "blocks": 5, "kernel": 5}
MEMORY = {"filters": 40, "blocks": 5, "kernel": 3, "memory": 16}
COVARIANCE = {"form": "hypernetwork", "rank": 8, "filters": 40, "blocks": 5}
# Without memory, the network has only the forecast. Sites farther away tell of the past.
WIDE, LATENT = {**COVARIANCE, "kernel": 7}, {**COVARIANCE, "kernel": 3, "memory": 16}
# Large batches and weight decay improve long runs.
LARGE = {
    "objective": "mse",
    "window": 16,
    "batch": 64,
    "optimiser": xdan.Optimiser(learning_rate=0.012, adam_learning_rate=0.0024, weight_decay=0.1),
}
# For most of the time the covariance of a square-root EnKF is imitated, without cycles. Training through cycles comes
# last, with learning rates that keep what was learned.
IMITATE = {
    "objective": "covariance",
    "teacher": {"method": "etkf", "members": 40, "inflation": 1.01, "spin_up": 20},
    "optimiser": xdan.Optimiser(learning_rate=0.008, adam_learning_rate=0.0016, weight_decay=0.1),
    "validate_every": 1000,
}
IMITATE_WIDE = {
    **IMITATE,
    "window": 2,
    "batch": 64,
    "optimiser": xdan.Optimiser(learning_rate=0.02, adam_learning_rate=0.004, weight_decay=0.1),
    "trajectories": 1024,
}
IMITATE_LATENT = {**IMITATE, "window": 8, "batch": 16, "trajectories": 1024}
AFTER = {
    "objective": "mse",
    "window": 8,
    "batch": 64,
    "optimiser": xdan.Optimiser(learning_rate=0.0015, adam_learning_rate=0.0003, weight_decay=0.1),
}
AFTER_LATENT = {**AFTER, "window": 16, "batch": 32}  # with memory, longer windows pay
# Beside a filter that is good from the start: short windows and low learning rates.
GUIDED = {
    "objective": "mse",
    "window": 12,
    "batch": 32,
    "optimiser": xdan.Optimiser(learning_rate=0.01, adam_learning_rate=0.002, weight_decay=0.1),
}
PUT_BACK = {
    "objective": "mse",
    "window": 6,
    "batch": 24,
    "optimiser": xdan.Optimiser(learning_rate=0.008, adam_learning_rate=0.0016, weight_decay=0.1),
}
IMITATED_SHARE = 2 / 3
# Networks that make the committees.
TITLES = "residual CNN, 40 filters", "covariance imitated first"
LATENT_TITLES = "with memory", "memory, imitated first"


@dataclass(frozen=True)
class Row:
    """A network, its training, and the RMSE that is published or expected for it."""

    title: str
    network: Any
    minutes: float
    aim: float | None = None
    interval: float = 0.05
    observe: xdan.Sites = field(default_factory=xdan.Sites.all)
    settings: dict[str, Any] = field(default_factory=dict)
    imitate: dict[str, Any] | None = None
    committee: tuple[str, ...] = ()

    @property
    def experiment(self) -> xdan.TwinExperiment:
        return xdan.TwinExperiment(xdan.Lorenz96(), interval=self.interval, observe=self.observe)

    @property
    def slug(self) -> str:
        return slug(self.title)


def rows() -> list[Row]:
    every, some = xdan.Sites.every(2), xdan.Sites.random(20, 40)
    wide, latent = xdan.LinearInZeta(**WIDE), xdan.LinearInZeta(**LATENT)
    rows = [
        Row(TITLES[0], xdan.ResidualCNN(**PLAIN), 60, 0.21, settings=LARGE),
        Row(LATENT_TITLES[0], xdan.ResidualCNN(**MEMORY), 60, 0.19, settings=LARGE),
        Row("linear activations", "residual-cnn-linear", 5, 0.39),
        Row("without the forecast", "residual-cnn-blind", 5, 0.39),
        Row("linear in zeta, localised", xdan.LinearInZeta(), 40, 0.23),
        Row("linear in zeta, low rank", xdan.LinearInZeta(form="low-rank"), 40),
        Row("linear in zeta, hypernetwork", xdan.LinearInZeta(form="hypernetwork", rank=8), 40),
        Row(TITLES[1], wide, 40, 0.20, settings=AFTER, imitate=IMITATE_WIDE),
        Row("memory, cycles only", latent, 40, settings=LARGE),
        Row(LATENT_TITLES[1], latent, 40, 0.18, settings=AFTER_LATENT, imitate=IMITATE_LATENT),
        Row("committee", None, 10, 0.20, settings=AFTER, committee=TITLES),
        Row("committee, memory", None, 20, 0.18, settings=AFTER_LATENT, committee=LATENT_TITLES),
        Row("beside a Kalman filter", xdan.KalmanCNN(filters=32, c2=5.0), 30, 0.17, settings=GUIDED),
        Row("the same, no latent memory", xdan.KalmanCNN(filters=32, memory=0, c2=6.0), 30, 0.172, settings=GUIDED),
        Row("every other site", xdan.ResidualCNN(**MEMORY), 40, 1.3 * 0.306, observe=every, settings=LARGE),
        Row("20 to 40 random sites", xdan.ResidualCNN(**MEMORY), 40, 1.3 * 0.224, observe=some, settings=LARGE),
        Row("interval 0.20", xdan.ResidualCNN(**MEMORY), 30, 0.38, interval=0.20, settings=LARGE),
        Row("interval 0.20, put back", xdan.KalmanCNN(lag=2, c2=1.5), 12, 0.31, interval=0.20, settings=PUT_BACK),
        Row("interval 0.60", xdan.ResidualCNN(**MEMORY), 30, 0.62, interval=0.60, settings=LARGE),
        Row("observations only: forecast", xdan.ResidualCNN(), 20, settings={"objective": "forecast"}),
        Row("observations only: analysis", xdan.ResidualCNN(), 20, settings={"objective": "analysis"}),
        Row("supervised, as long", xdan.ResidualCNN(), 20),
    ]
    for members in (1, 2, 4, 10, 20, 40):
        rows.append(Row(f"ensemble of {members}", xdan.EnsembleCNN(members=members), 10))
    rows.append(Row("ensemble of 10, by CRPS", xdan.EnsembleCNN(members=10), 10, settings={"objective": "crps"}))
    return rows


def train(row: Row, out: Path, scale: float, seed: int) -> xdan.Network:
    """Open the network of a row, or train it after the networks that it is made of."""
    experiment, minutes = row.experiment, scale * row.minutes
    common = {"seed": seed, "progress": {"desc": f"{row.title:<28}"}}
    path, start = out / f"{row.slug}.zarr", row.network
    missing = not path.exists()
    if row.committee and missing:
        start = xdan.committee([train(one, out, scale, seed) for one in rows() if one.title in row.committee])
    if row.imitate:
        first = IMITATED_SHARE * minutes
        if missing:
            store = out / f"{row.slug}-imitation.zarr"
            start = trained(store, experiment, start, minutes=first, **common, **row.imitate)
        minutes -= first
    return trained(path, experiment, start, minutes=minutes, **common, **row.settings)


def compute(row: Row, out: Path, scale: float, seed: int) -> xr.Dataset:
    """Train the network of a row if it is missing, cycle it, and save its scores."""
    net = train(row, out, scale, seed)
    cycles = BURN_IN + (400 if row.interval < 0.1 else 100)
    test = xdan.twin(row.experiment, cycles=cycles, trajectories=TRAJECTORIES, seed=seed + 1).compute()
    score = test.dan.score(test.dan.cycle(net), burn_in=BURN_IN).compute()
    result = score[["rmse", "rmse_standard_error", "diverged"]]
    result.attrs = {"title": row.title, "cycles": int(score.attrs["cycles"]), "minutes": scale * row.minutes}
    result.to_zarr(out / "scores.zarr", group=row.slug, mode="w", consolidated=False)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="only rows whose title contains one of these words")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of every training time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("family"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in rows():
        if options.only and not any(word.lower() in row.title.lower() for word in options.only):
            continue
        try:
            result = xr.open_zarr(options.out / "scores.zarr", group=row.slug, consolidated=False).load()
        except FileNotFoundError:
            result = compute(row, options.out, options.scale, options.seed)
        lines.append(
            {
                "network": row.title,
                "interval": row.interval,
                "minutes": result.attrs["minutes"],
                "aim": row.aim,
                "rmse": float(result.rmse),
                "standard error": float(result.rmse_standard_error),
                "diverged": float(result.diverged),
                "cycles": result.attrs["cycles"],
            }
        )
        print(pd.DataFrame(lines[-1:]).to_string(index=False, header=len(lines) == 1), flush=True)
    table = pd.DataFrame(lines)
    (options.out / "family.md").write_text(markdown(table))
    shown = table[::-1]
    points = shown.hvplot.scatter("rmse", "network", label="reached", xlabel="analysis RMSE", size=45)
    aims = shown.hvplot.scatter("aim", "network", marker="dash", angle=90, size=200, color="#cc6600", label="aim")
    sizes = {"height": 24 * len(table) + 120, "width": 800, "legend_position": "bottom_right"}
    xdan.save_page(options.out / "family.html", {"Reached and aimed at": (aims * points).opts(**sizes)}, title="Family")
    print(f"\n{markdown(table)}\nin {options.out}")


if __name__ == "__main__":
    main()
