"""The figures of the paper, and the table and curves of the slides, each by one command.

    python examples/paper.py all [--scale laptop|paper] [--out paper]
    python examples/paper.py fig3 figA1 ...

Every figure writes a Zarr cube, a page and (with Playwright and Chromium) a PNG under `--out`. It prints one line that
says which results agree with the paper and which do not. Existing results are not computed again, and a killed run goes
on. A figure that fails does not stop the others. "laptop" has the axes of the paper, with small networks that are
trained for a minute or two: "all" takes two hours on two cores, and docs/paper.md has the time of each figure. "paper"
has the settings of the paper, for a GPU.
"""

from __future__ import annotations

import argparse
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hvplot.pandas  # noqa: F401
import nonlinearity
import numpy as np
import patterns
import sweeps
import xarray as xr
from distributed import Client, LocalCluster

import xdan

from common import save_pictures

ENKF, IENKF = {"baseline": "enkf-n", "members": 40}, {"baseline": "ienkf-n", "members": 40}
LINEAR, BLIND = "residual-cnn-linear", "residual-cnn-blind"
HYPERNETWORK = {"form": "hypernetwork", "rank": 8}  # App. B describes this form but does not test it


@dataclass(frozen=True)
class Scale:
    """Sizes of networks, records and trainings.

    Attributes
    ----------
    plain, boosted, linear_in_zeta : mapping
        Schemes of a sweep, with all settings of their training.
    linear, blind : mapping
        Such schemes with linear activations, and without the forecast as an input.
    many : mapping
        Settings of the trainings of Fig. 4, A1 and A2. All have equal numbers of steps, so that a long window does not
        mean fewer steps.
    epochs : int
        Epochs of the trainings of Fig. A2, of N_r / S_b steps each.
    dissected : mapping
        Settings of the trainings of Fig. 1, 2, 6 and 7.
    minutes : float
        Minutes of the trainings of the slides' curves.
    states : int
        Number of states over which marginal gains are averaged.
    seeds : int
        Number of trainings in a cell of Fig. A1.
    """

    plain: dict[str, Any]
    boosted: dict[str, Any]
    linear_in_zeta: dict[str, Any]
    linear: dict[str, Any]
    blind: dict[str, Any]
    many: dict[str, Any]
    epochs: int
    dissected: dict[str, Any]
    minutes: float
    states: int
    seeds: int
    intervals: tuple[float, ...]
    forcings: tuple[float, ...]
    windows: tuple[int, ...]
    trajectories: tuple[int, ...]
    batches: tuple[int, ...]
    test: dict[str, int] = field(default_factory=lambda: {"cycles": 500, "burn_in": 200})


LAYERS: dict[str, Any] = {"blocks": 5, "sub_blocks": 5, "kernel": 5, "activation": "silu"}


def paper_network(filters: int, changed: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    """The paper's residual CNN: 5 blocks of 5 convolutions; 400 epochs of one window of every trajectory."""
    network = xdan.ResidualCNN(filters=filters, **{**LAYERS, **(changed or {})})
    return {"network": network, "objective": "mse", "epochs": 400, **training}


REFERENCE: dict[str, Any] = {"window": 16, "trajectories": 2**18, "batch": 2048}


SCALES = {
    "laptop": Scale(
        plain={"network": "residual-cnn", "minutes": 0.8},
        boosted={
            "network": xdan.ResidualCNN(filters=32, blocks=6),
            "minutes": 2.0,
            "window": 16,
            "batch": 32,
            "objective": "mse",
        },
        linear_in_zeta={"network": "linear-in-zeta", "minutes": 1.0},
        linear={"network": LINEAR, "minutes": 0.4},
        blind={"network": BLIND, "minutes": 0.4},
        many={"network": "residual-cnn", "steps": 800},
        epochs=16,
        dissected={"minutes": 1.0},
        minutes=1.0,
        states=2000,
        seeds=2,
        intervals=(0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 1.4),
        forcings=(4.0, 6.0, 8.0, 12.0, 16.0),
        windows=(1, 2, 3, 5, 8, 16, 32),
        trajectories=(256, 1024, 4096),
        batches=(8, 16, 32, 64),
    ),
    "paper": Scale(
        plain=paper_network(40, **REFERENCE),
        boosted=paper_network(80, window=32, trajectories=2**19, batch=512),
        linear_in_zeta={**paper_network(40, **REFERENCE), "network": xdan.LinearInZeta(filters=40, **LAYERS)},
        linear=paper_network(40, {"activation": "linear"}, **REFERENCE),
        blind=paper_network(40, {"sees_forecast": False}, **REFERENCE),
        many=paper_network(40, trajectories=2**16, batch=128),
        epochs=400,
        dissected=paper_network(40, **REFERENCE),
        minutes=60.0,
        states=100_000,
        seeds=5,
        intervals=(0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.4),
        forcings=(4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 14.0, 16.0),
        windows=(1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40),
        trajectories=tuple(2**k for k in range(10, 19, 2)),
        batches=tuple(2**k for k in range(3, 9)),
        test={"cycles": 2000, "burn_in": 500},
    ),
}


@dataclass
class Work:
    """The place of a figure's results."""

    name: str
    scale: Scale
    out: Path
    seed: int
    workers: int

    def sweep(
        self,
        schemes: dict[str, dict[str, Any]],
        axes: dict[str, Any] | None = None,
        *,
        part: str = "",
        dynamics: xdan.Dynamics | None = None,
        **settings: Any,
    ) -> xr.Dataset:
        """A sweep in this figure's store."""
        test = {**self.scale.test, "seeds": [self.seed], **settings}
        store = self.out / f"{self.name}{part}.zarr"
        with self.cluster():
            return xdan.sweep(dynamics or xdan.Lorenz96(), schemes, axes, store=store, yes=True, **test).load()

    @contextmanager
    def cluster(self) -> Iterator[None]:
        """One worker for each core, or none."""
        if not self.workers:
            yield
            return
        with (
            LocalCluster(n_workers=self.workers, threads_per_worker=1, dashboard_address=":0") as cluster,
            Client(cluster),
        ):
            yield


@dataclass
class Findings:
    """Pictures of a figure, and results: each agrees with the paper, differs from it, or has no counterpart there."""

    pictures: dict[str, Any]
    statements: list[tuple[bool | None, str]] = field(default_factory=list)

    def say(self, agrees: Any, text: str) -> None:
        self.statements.append((None if agrees is None else bool(agrees), text))

    def line(self) -> str:
        """One line."""
        parts = []
        for agrees, heading in ((True, "agrees"), (False, "differs"), (None, "found")):
            if texts := [text for ok, text in self.statements if ok is agrees]:
                parts.append(f"{heading}: {'; '.join(texts)}")
        return ". ".join(parts)


def rmse(cube: xr.Dataset, **where: Any) -> xr.DataArray:
    """Mean over seeds, at labels."""
    return cube.rmse.sel(where).mean("seed", skipna=False)


def listed(values: xr.DataArray) -> str:
    return ", ".join(f"{v:.3f}" for v in values.values.ravel())


def gains(work: Work) -> dict[str, xr.Dataset]:
    """Mean marginal gains, shared by Fig. 1 and 2."""
    out = work.out / "patterns"
    out.mkdir(exist_ok=True)
    return {
        system.title: patterns.compute(system, out, work.scale.dissected, work.scale.states, work.seed)
        for system in patterns.SYSTEMS
    }


def fig1(work: Work) -> Findings:
    """Mean marginal gain on rings of 40 and of 80 sites."""
    gain = gains(work)
    (title, picture), _ = patterns.pictures(gain).items()
    findings = Findings({title: picture})
    near = float(xdan.pattern_extent(gain["all of 40 sites"].gain).mass_within.sel(distance=6))
    findings.say(near > 0.9, f"the pattern is local, {near:.0%} of it within 6 sites")
    for other in ("all of 80 sites", "80 sites, trained on 40"):
        correlation, _ = patterns.likeness(gain["all of 40 sites"], gain[other])
        findings.say(correlation > 0.97, f"{other}: the same to a correlation of {correlation:.3f}")
    return findings


def fig2(work: Work) -> Findings:
    """Mean marginal gain in sparse observing systems."""
    gain = gains(work)
    _, (title, picture) = patterns.pictures(gain).items()
    findings = Findings({title: picture})
    largest = {name: float(abs(value.gain).max()) for name, value in gain.items()}
    whole = largest["all of 40 sites"]
    for name in ("every other site, observed r", "0 to 40 random sites", "20 to 40 random sites"):
        correlation, _ = patterns.likeness(gain["all of 40 sites"], gain[name])
        findings.say(
            correlation > 0.9 and largest[name] > whole,
            f"{name}: like the whole's ({correlation:.2f}) and {largest[name] / whole:.1f} times as large",
        )
    return findings


def fig3(work: Work) -> Findings:
    """RMSE of eight schemes against the interval between analyses."""
    scale = work.scale
    schemes = {
        "EnKF-N": ENKF,
        "network": scale.plain,
        "boosted network": scale.boosted,
        "linear in zeta": scale.linear_in_zeta,
        "linear in zeta, W^T W": {**scale.linear_in_zeta, **HYPERNETWORK},
        "linear activations": scale.linear,
        "without the forecast": scale.blind,
    }
    cube = work.sweep(schemes, {"interval": list(scale.intervals)})
    short = [interval for interval in scale.intervals if interval <= 0.6]
    iterative = work.sweep({"IEnKF-N": IENKF}, {"interval": short}, part="-ienkf")
    cube = xr.concat([cube, iterative], "scheme", join="outer", combine_attrs="drop_conflicts")
    findings = Findings({"RMSE against interval": xdan.sweep_curves(cube, "interval", logx=True, logy=True)})
    first = rmse(cube, interval=0.05)
    for name, published in (("linear activations", 0.384), ("without the forecast", 0.382)):
        value = float(first.sel(scheme=name))
        findings.say(abs(value - published) < 0.02, f"{name} at 0.05: {value:.3f}, in the paper {published}")
    ours, theirs = rmse(cube, scheme="IEnKF-N", interval=short), rmse(cube, scheme="EnKF-N", interval=short)
    findings.say(
        (ours < theirs).all(), f"IEnKF-N under EnKF-N everywhere to 0.60 ({listed(ours)} and {listed(theirs)})"
    )
    share = float(1 - ours.sel(interval=0.4) / theirs.sel(interval=0.4))
    findings.say(0.2 < share < 0.5, f"at 0.40 by {share:.0%}, in the paper by about a third")
    for name in ("network", "boosted network"):
        under = rmse(cube, scheme=name) < rmse(cube, scheme="EnKF-N")
        since = [float(i) for i in cube.interval if bool(under.sel(interval=slice(float(i), None)).all())]
        findings.say(None, f"{name} under EnKF-N {f'from {min(since):.2f} on' if since else 'nowhere'}")
        far = (rmse(cube, scheme=name, interval=short) / ours).max(skipna=False)
        findings.say(far < 1.1, f"{name} up to {float(far):.2f} times IEnKF-N; in the paper close to it everywhere")
    middle = [interval for interval in short if interval > 0.05]
    for name, theory in (("linear in zeta", True), ("linear in zeta, W^T W", False)):
        values = rmse(cube, scheme=name, interval=short)
        same, worse = abs(values[0] / theirs[0] - 1) < 0.1, (values > theirs).sel(interval=middle).all()
        text = f"{name} {listed(values)}"
        text += "; in the paper as EnKF-N at 0.05 and above it beyond" if theory else ", not in the paper"
        findings.say(same and worse if theory else None, text)
    return findings


def fig4(work: Work) -> Findings:
    """RMSE against interval and N_iter."""
    windows = {"window": [w for w in work.scale.windows if w <= 16]}
    scheme = {"network": work.scale.many}
    longer = work.sweep(scheme, {"interval": [0.05, 0.2, 0.6], **windows})
    fine = work.sweep(
        scheme, {"interval": [0.01], **windows}, part="-fine", dynamics=xdan.Lorenz96(timestep=0.01), cycles=1200,
        burn_in=800,
    )  # fmt: skip
    cube = xr.concat([fine, longer], "interval", combine_attrs="drop_conflicts")
    values = cube.assign_coords(scheme=["network"]).squeeze("scheme", drop=True)
    lines = values.rename(interval="scheme").assign_coords(scheme=[f"interval {i:.2f}" for i in values.interval.values])
    findings = Findings({"RMSE against N_iter": xdan.sweep_curves(lines, "window", logx=True, logy=True)})
    mean = rmse(cube, scheme="network")
    gain = (mean.sel(window=1) / mean.sel(window=16)).rename("gain")
    text = ", ".join(f"{float(g):.2f} at {float(g.interval):.2f}" for g in gain)
    findings.say(
        (gain.diff("interval") < 0).all(),
        f"the shorter the interval, the more N_iter = 16 gains over 1 (RMSE ratio {text})",
    )
    return findings


def fig5(work: Work) -> Findings:
    """RMSE against the forcing."""
    schemes = {"EnKF-N": ENKF, "IEnKF-N": IENKF, "network": work.scale.plain}
    forcing = {"forcing": list(work.scale.forcings)}
    cube = work.sweep(schemes, forcing, dynamics=xdan.Lorenz96(timestep=0.025))
    findings = Findings({"RMSE against forcing": xdan.sweep_curves(cube, "forcing")})
    for name in schemes:
        values = rmse(cube, scheme=name, forcing=cube.forcing >= 6)
        findings.say((values.diff("forcing") > 0).all(), f"{name} grows with F from 6 on ({listed(values)})")
    last = float(rmse(cube, forcing=max(work.scale.forcings), scheme="network"))
    theirs = float(rmse(cube, forcing=max(work.scale.forcings), scheme="EnKF-N"))
    findings.say(last < theirs, f"network {last:.3f} at the largest F, EnKF-N {theirs:.3f}; in the paper it lies below")
    return findings


def linearity(work: Work) -> tuple[dict[str, xr.Dataset], xr.Dataset]:
    """Networks at several intervals, shared by Fig. 6 and 7."""
    out = work.out / "nonlinearity"
    out.mkdir(exist_ok=True)
    by_interval = {
        nonlinearity.title(i): nonlinearity.at_interval(i, out, work.scale.dissected, work.seed)
        for i in nonlinearity.INTERVALS
    }
    return by_interval, nonlinearity.covariances(out, work.seed)


def fig6(work: Work) -> Findings:
    """Scaling of increments."""
    by_interval, compared = linearity(work)
    shown = nonlinearity.pictures(by_interval, compared)
    findings = Findings({title: shown[title] for title in list(shown)[:2]})
    for scale in (2.0, 10.0):
        steep = [float(value.ratio.sel(scale=scale, method="nearest")) for value in by_interval.values()]
        text = f"r({scale:.1f}) is {', '.join(f'{r:.1f}' for r in steep)} from short to long intervals"
        findings.say(np.all(np.diff(steep) > 0), f"{text}; in the paper it grows")
    return findings


def fig7(work: Work) -> Findings:
    """Histograms of projected innovations, and spectra."""
    by_interval, compared = linearity(work)
    shown = nonlinearity.pictures(by_interval, compared)
    findings = Findings({title: shown[title] for title in list(shown)[2:]})
    wide = [float(np.sqrt((v.density * v.zeta**2).sum() * (v.zeta[1] - v.zeta[0]))) for v in by_interval.values()]
    text = ", ".join(f"{w:.2f}" for w in wide)
    findings.say(np.all(np.diff(wide) > 0), f"projected innovations widen with the interval (deviation {text})")
    return findings


def fig_a1(work: Work) -> Findings:
    """RMSE against N_iter."""
    seeds = [work.seed + k for k in range(work.scale.seeds)]
    cube = work.sweep({"network": work.scale.many}, {"window": list(work.scale.windows)}, seeds=seeds)
    findings = Findings({"RMSE against N_iter": xdan.sweep_curves(cube, "window", logx=True)})
    values = rmse(cube, scheme="network")
    text = ", ".join(f"{float(v):.3f} at {int(v.window)}" for v in values)
    findings.say((values.diff("window") < 0).all(), f"RMSE falls with N_iter ({text})")
    half = values < (values[0] + values.min(skipna=False)) / 2
    knee = int(np.argmax(half.values))
    before = int(values.window[max(knee - 1, 0)])
    ends = f"half of the fall lies between N_iter = {before} and {int(values.window[knee])}; in the paper after 2 to 5"
    findings.say(bool(half.any()) and 2 <= before <= 5, ends)
    short, long = cube.rmse.sel(window=slice(None, 5)), cube.rmse.sel(window=slice(6, None))
    better = long.max(skipna=False) < short.min(skipna=False)
    findings.say(better, "every training with N_iter beyond 5 is better than every one up to 5")
    return findings


def fig_a2(work: Work) -> Findings:
    """RMSE against batch and number of trajectories, and the scaling law."""
    scale = work.scale
    scheme = {name: value for name, value in scale.many.items() if name != "steps"} | {"epochs": scale.epochs}
    axes = {"trajectories": list(scale.trajectories), "batch": list(scale.batches)}
    cube = work.sweep({"network": scheme}, axes).squeeze("scheme", drop=True)
    law = xdan.scaling_law(cube)
    law.to_zarr(work.out / f"{work.name}-law.zarr", mode="w", consolidated=False)
    by_batch = cube.rename(trajectories="scheme").assign_coords(scheme=[f"N_r {n}" for n in cube.trajectories.values])
    by_size = cube.rename(batch="scheme").assign_coords(scheme=[f"S_b {n}" for n in cube.batch.values])
    findings = Findings(
        {
            "RMSE against batch size": xdan.sweep_curves(by_batch, "batch", logx=True),
            "RMSE against number of trajectories": xdan.sweep_curves(by_size, "trajectories", logx=True),
            "Scaling law": law_picture(law),
        }
    )
    mean = cube.rmse.mean("seed")
    findings.say((mean.diff("trajectories") < 0).all(), "RMSE falls with N_r at every S_b")
    findings.say((mean.diff("batch") > 0).all(), "and grows with S_b at every N_r")
    low, high = float(law.ratio_low), float(law.ratio_high)
    text = f"{float(law.ratio):.2f} ({low:.2f} to {high:.2f})"
    findings.say(low <= 0.58 <= high, f"beta / alpha = {text}, in the paper 0.58")
    return findings


def law_picture(law: xr.Dataset) -> Any:
    """Cells and curve against N_r / S_b^ratio."""
    frame = law[["observed", "fitted"]].to_dataframe().reset_index()
    frame["size"] = frame.trajectories / frame.batch ** float(law.ratio)
    frame = frame.sort_values("size")
    labels = {
        "xlabel": "N_r / S_b^(beta / alpha)",
        "ylabel": "analysis RMSE",
        "logx": True,
        "width": 760,
        "padding": 0.05,
    }
    points = frame.hvplot.scatter("size", "observed", label="trained", color="#0072B2", **labels)
    return frame.hvplot.line("size", "fitted", label="law", color="#D55E00", **labels) * points


def table(work: Work) -> Findings:
    """The slides' table: classical methods and networks."""
    scale = work.scale
    schemes = {
        "EnKF-N, 20 members": {**ENKF, "members": 20},
        "EnKF-N, 40 members": ENKF,
        "3D-Var": {"baseline": "3d-var"},
        "network": scale.plain,
        "boosted network": scale.boosted,
        "linear activations": scale.linear,
        "without the forecast": scale.blind,
    }
    cube = work.sweep(schemes)
    published = dict(zip(schemes, (0.191, 0.179, 0.40, 0.191, 0.185, 0.384, 0.382), strict=True))
    values = rmse(cube)
    compared = xr.Dataset(
        {"here": values, "published": ("scheme", list(published.values()))}, {"scheme": cube.scheme.values}
    )
    frame = compared.to_dataframe().reset_index()[::-1]
    labels = {"xlabel": "analysis RMSE", "ylabel": "", "width": 760, "height": 320, "padding": 0.05}
    points = frame.hvplot.scatter("here", "scheme", label="here", color="#0072B2", size=60, **labels)
    theirs = frame.hvplot.scatter(
        "published", "scheme", label="published", color="#D55E00", marker="dash", angle=90, size=300, **labels
    )
    findings = Findings({"Analysis RMSE": (points * theirs).opts(legend_position="right")})
    for name, number in published.items():
        value = float(values.sel(scheme=name))
        findings.say(abs(value / number - 1) < 0.05, f"{name} {value:.3f}, published {number}")
    return findings


def smoothers(work: Work) -> Findings:
    """EnKF, 4D-Var and IEnKS against the length of their window."""
    lengths = [1, 2, 4, 8]
    test = {"cycles": 400, "burn_in": 200, "trajectories": 16}
    ensemble = work.sweep({"EnKF-N": ENKF, "IEnKS-N": {"baseline": "ienks-n", "members": 40}}, {"lag": lengths}, **test)
    variational = work.sweep({"4D-Var": {"baseline": "4d-var"}}, {"window": lengths}, part="-4dvar", **test)
    cube = xr.concat(
        [ensemble, variational.rename(window="lag")], "scheme", join="outer", combine_attrs="drop_conflicts"
    )
    findings = Findings({"RMSE against window (cycles)": xdan.sweep_curves(cube, "lag")})
    values = {name: rmse(cube, scheme=name) for name in cube.scheme.values}
    findings.say(values["IEnKS-N"].sel(lag=8) < values["EnKF-N"].sel(lag=8), f"IEnKS-N {listed(values['IEnKS-N'])}")
    findings.say(values["4D-Var"].sel(lag=8) < values["4D-Var"].sel(lag=1), f"4D-Var {listed(values['4D-Var'])}")
    return findings


def curve(name: str) -> Callable[[Work], Findings]:
    """One of the curves of `sweeps.py`."""
    draw, along, logx = sweeps.FIGURES[name]

    def drawn(work: Work) -> Findings:
        with work.cluster():
            cube = draw(work.scale.minutes, {"seeds": [work.seed], "store": work.out / f"{work.name}.zarr"}).load()
        findings = Findings({str(draw.__doc__): xdan.sweep_curves(cube, along, logx=logx, logy=True)})
        for scheme in cube.scheme.values:
            findings.say(None, f"{scheme} {listed(rmse(cube, scheme=scheme))}")
        return findings

    drawn.__doc__ = draw.__doc__
    return drawn


FIGURES: dict[str, Callable[[Work], Findings]] = {
    "fig1": fig1,
    "fig2": fig2,
    "fig3": fig3,
    "fig4": fig4,
    "fig5": fig5,
    "fig6": fig6,
    "fig7": fig7,
    "figA1": fig_a1,
    "figA2": fig_a2,
    "table": table,
    "windows": smoothers,
    **{name: curve(name) for name in ("members", "filters", "noise", "density", "sites")},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*FIGURES, "figA3", "all"]
    parser.add_argument("figures", nargs="+", metavar="FIGURE", choices=names, help=", ".join(names))
    parser.add_argument("--scale", choices=sorted(SCALES), default="laptop")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that sweep; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("paper"))
    options = parser.parse_args()
    out = options.out / options.scale
    out.mkdir(parents=True, exist_ok=True)
    wanted = [
        "figA2" if name == "figA3" else name for name in options.figures
    ]  # the law is fitted to the sweep of figA2
    failed = []
    for name in FIGURES if "all" in wanted else dict.fromkeys(wanted):
        draw = FIGURES[name]
        begin = time.monotonic()
        try:
            findings = draw(Work(name, SCALES[options.scale], out, options.seed, options.workers))
        except Exception:  # the other figures do not need this one
            traceback.print_exc()
            failed.append(name)
            continue
        (out / f"{name}.txt").write_text(findings.line() + "\n")
        save_pictures(out / name, findings.pictures, title=f"{name}: {draw.__doc__}", notes=findings.line())
        print(f"{name} ({(time.monotonic() - begin) / 60:.1f} min): {findings.line()}", flush=True)
    if failed:
        raise SystemExit(f"not drawn: {', '.join(failed)}; the same command tries them again")


if __name__ == "__main__":
    main()
