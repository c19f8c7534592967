"""What several examples do: train a network once, write a table, save pictures."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

import xdan


def trained(path: Path, experiment: xdan.TwinExperiment, network: Any, **settings: Any) -> xdan.Network:
    """Open the network at a path, or train it on an endless twin and keep it there; a killed run is taken up."""
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
    """Open the Dataset at a path, or make it with these settings and keep it there."""
    if not path.exists():
        with _whole(path) as partial:
            make().assign_attrs(settings).to_zarr(partial, consolidated=False)
    result = xr.open_zarr(path, consolidated=False).load()
    _check(path, result.attrs, settings)
    return result


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Somewhere to write what is to lie at a path, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    partial.rename(path)


def _check(path: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if differs := [f"{name} {there.get(name)} there, {now[name]} now" for name in now if there.get(name) != now[name]]:
        raise SystemExit(f"{path} is of other settings ({', '.join(differs)}): choose another --out, or remove it")


def save_pictures(path: Path, sections: Mapping[str, Any], **page: Any) -> None:
    """Save a page at path.html, and where Playwright finds a Chromium, a picture of it at path.png."""
    html = path.with_suffix(".html")
    xdan.save_page(html, sections, **page)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
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
        tab.wait_for_timeout(1500)  # plots are drawn after their canvases are there
        tab.screenshot(path=path.with_suffix(".png"), full_page=True)
        browser.close()


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, four digits."""
    columns = [str(column) for column in table.columns]
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    shown = table.map(lambda v: "" if v is None or v != v else f"{v:.4g}" if isinstance(v, float) else str(v))
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in shown.to_numpy())]) + "\n"
