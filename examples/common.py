"""What several examples do: train a network once, and write a table."""

from __future__ import annotations

import shutil
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


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, four digits."""
    columns = [str(column) for column in table.columns]
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    shown = table.map(lambda v: "" if v is None or v != v else f"{v:.4g}" if isinstance(v, float) else str(v))
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in shown.to_numpy())]) + "\n"
