"""Parts that examples share: train a network once, compare it with classical methods, write a table, save pictures."""

from __future__ import annotations

import argparse
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import xarray as xr

import xdan

Methods = Mapping[str, tuple[str, Mapping[str, Any]]]


def trained(path: Path, experiment: xdan.TwinExperiment, network: Any, **settings: Any) -> xdan.Network:
    """Open the network at a path, or train it on an endless twin and save it there. A killed training goes on."""
    if path.exists():
        net = xdan.open_network(path)
        _check(
            path, net.description["training"], {n: settings[n] for n in ("minutes", "steps", "seed") if n in settings}
        )
        return net
    checkpoint = path.with_name(f"{path.stem}-checkpoint.zarr")
    net = xdan.train(experiment, network, **settings, checkpoint=checkpoint)
    with _whole(path) as partial:
        net.to_zarr(partial)
    shutil.rmtree(checkpoint)
    return net


def kept(path: Path, make: Callable[[], xr.Dataset], **settings: Any) -> xr.Dataset:
    """Open the Dataset at a path, or make it with these settings and save it there."""
    if not path.exists():
        with _whole(path) as partial:
            make().assign_attrs(settings).to_zarr(partial, consolidated=False)
    result = xr.open_zarr(path, consolidated=False).load()
    _check(path, result.attrs, settings)
    return result


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary path for results, which are moved to `path` only if they are whole."""
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    partial.rename(path)


def _check(path: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if differs := [f"{name} {there.get(name)} there, {now[name]} now" for name in now if there.get(name) != now[name]]:
        raise SystemExit(f"{path} is of other settings ({', '.join(differs)}): choose another --out, or remove it")


def arguments(doc: str | None, name: str, **defaults: Any) -> argparse.Namespace:
    """Options that the examples of systems share, with the defaults of one system."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="training time of the network; 0 leaves it out")
    parser.add_argument("--steps", type=int, help="training steps, instead of --minutes")
    parser.add_argument("--cycles", type=int, help="cycles of the test record after the burn-in")
    parser.add_argument("--burn-in", type=int, help="first cycles, in which an ensemble forgets its start")
    parser.add_argument("--trajectories", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32, help="windows in a training step")
    parser.add_argument("--window", type=int, default=16, help="cycles of a window")
    parser.add_argument("--points", type=int, help="grid points along each axis, if the example defines the model")
    parser.add_argument("--archive", type=int, help="number of states for the climatology; by default the model's")
    parser.add_argument("--seed", type=int, default=1, help="seed of the test record; the network has another")
    parser.add_argument("--out", type=Path, default=Path(name))
    parser.set_defaults(**defaults)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def compare(
    experiment: xdan.TwinExperiment, methods: Methods, options: argparse.Namespace, network: Any, **training: Any
) -> dict[str, xr.Dataset]:
    """Cycle a test record by classical methods and by a network, which is trained first; print and save a table.

    `training` holds further settings of `xdan.train`. The result holds the test record as "truth", and the runs.
    """
    cycles = options.burn_in + options.cycles
    climatology = archive(experiment, options.archive, options.seed + 2) if options.archive else None
    test = xdan.twin(experiment, cycles=cycles, trajectories=options.trajectories, seed=options.seed).compute()
    runs, seconds = {}, {}
    net = None
    if options.steps or options.minutes > 0:
        settings = {"objective": "mse", "window": options.window, "batch": options.batch, "seed": options.seed + 1}
        settings |= {"climatology": climatology, **training}
        settings |= {"steps": options.steps} if options.steps else {"minutes": options.minutes}
        net = trained(options.out / "network.zarr", experiment, network, **settings)
    for name, (method, parameters) in {**methods, "network": ("", {})}.items():
        begin = time.perf_counter()
        if method:
            runs[name] = test.dan.baseline(method, **parameters, climatology=climatology, progress=False)
        elif net is not None:
            runs[name] = test.dan.cycle(net, progress=False)
        else:
            continue
        seconds[name] = round(time.perf_counter() - begin)
        print(f"{name}: {seconds[name]} s", flush=True)
    scores = test.dan.score(runs, burn_in=options.burn_in).compute()
    rows = []
    for name, run in runs.items():
        score, row = scores.sel({"method": name}), {"method": name}
        for field in experiment.dynamics.space.names:
            one = score.sel(field=field) if "field" in score.dims else score
            words = {"rmse": "RMSE", "rmse_standard_error": "standard error", "spread": "spread"}
            of = f" of {field}" if "field" in score.dims else ""
            row |= {f"{word}{of}": float(one[label]) if label in one else float("nan") for label, word in words.items()}
        row["lost"] = int(score.diverged)
        # 3D-Var has its tuned scale under the name of the scale in use.
        labels = [str(label) for label in run.data_vars if str(label).startswith(("tuned_", "background_scale"))]
        row["tuned to"] = ", ".join(f"{label.removeprefix('tuned_')} {float(run[label]):.3g}" for label in labels)
        rows.append({**row, "seconds": seconds[name]})
    table = markdown(pd.DataFrame(rows))
    (options.out / "table.md").write_text(table)
    print(f"\n{options.trajectories} trajectories, {options.cycles} cycles after {options.burn_in}\n\n{table}")
    return {"truth": test, **runs}


def archive(experiment: xdan.TwinExperiment, states: int, seed: int) -> Any:
    """States (sample, *state) of a free run of the model, for a model whose 4,096 spin-ups take long."""
    rows = -(-states // 16)
    labels = range(rows)
    model, steps = experiment.dynamics, experiment.dynamics.spin_up_steps() // 10
    states_then = [model.climatology(labels, seed)[:, 0]]
    for _ in range(15):
        states_then.append(model.advance(states_then[-1], steps))
    return torch.cat(states_then)[:states].numpy()


def save_pictures(path: Path, sections: Mapping[str, Any], **page: Any) -> None:
    """Save a page at path.html. If Playwright finds a Chromium, save a picture of the page at path.png, too."""
    html = path.with_suffix(".html")
    xdan.save_page(html, sections, **page)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from PIL import Image
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print(f"{html}: no PNG, which wants Chromium and `pip install playwright`")
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1100, "height": 700})
        tab.goto(html.resolve().as_uri())
        tab.wait_for_selector("canvas")
        tab.wait_for_timeout(1500)  # plots are drawn some time after their canvases exist
        png = path.with_suffix(".png")
        tab.screenshot(path=png, full_page=True)
        browser.close()
    with Image.open(png) as picture:  # 256 colours: a quarter of the bytes
        method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
        few = picture.convert("RGB").quantize(256, method, kmeans=3, dither=dither)
    few.save(png, optimize=True)


def slug(title: str) -> str:
    """A title as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, with four digits."""
    columns = [str(column) for column in table.columns]
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    shown = table.map(lambda v: "" if v is None or v != v else f"{v:.4g}" if isinstance(v, float) else str(v))
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in shown.to_numpy())]) + "\n"
