"""What several examples do: train a network once, write a table, save pictures."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

import xdan


def trained(path: Path, dynamics: xdan.Dynamics, network: Any, **settings: Any) -> xdan.Network:
    """Open the network at a path, or train it on an endless twin and keep it there; a killed run is taken up."""
    if path.exists():
        return xdan.open_network(path)
    checkpoint = path.with_name(f"{path.stem}-checkpoint.zarr")
    net = xdan.train(dynamics, network, **settings, checkpoint=checkpoint)
    net.to_zarr(path)
    shutil.rmtree(checkpoint)
    return net


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
