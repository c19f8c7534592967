"""Write stores of this version, and the values that it reads from them, into an archive that later versions must open.

python ci/kept_stores.py tests/data/NAME.zip
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import xarray as xr
from small_stores import CHUNKS, MODEL, TRAINING, BrokenOffError, begin, make, opened, twin

import xdan
from xdan.records.streams import Stream

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_kept_stores import READS

_BLOCKS = 3  # that are done when a run is broken off


def _make_networks(whole: Path) -> None:
    ds = opened(whole / "twin")
    settings: dict[str, Any] = {"steps": 2, **TRAINING}
    sizes: dict[str, Any] = {"filters": 3, "kernel": 3}
    ds.dan.train(xdan.LinearInZeta(blocks=1, radius=2.0, **sizes), **settings).to_zarr(whole / "linear")
    ds.dan.train(xdan.EnsembleCNN(members=3, blocks=1, **sizes), **settings).to_zarr(whole / "ensemble")
    ds.dan.train(xdan.ResidualCNN(memory=2, blocks=1, **sizes), **settings).to_zarr(whole / "memory")
    two = [ds.dan.train(xdan.ResidualCNN(blocks=1, **sizes), seed=seed, **settings) for seed in (1, 2)]
    xdan.committee(two).to_zarr(whole / "committee")


def _make_dynamics(whole: Path) -> None:
    correction = xdan.LocalPolynomial()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in correction.parameters():
            weights += 0.01 * torch.randn(weights.shape, generator=generator, dtype=weights.dtype)
    xdan.save_dynamics(xdan.CorrectedDynamics(MODEL, correction), whole / "dynamics")


def _make_estimate(whole: Path) -> None:
    words: dict[str, Any] = {"model_error": 0.5, "observation_error": 1.0, "iterations": 3, "progress": False}
    opened(whole / "twin").dan.estimate_errors(**words, store=whole / "estimate")


def _break_off_a_run(whole: Path) -> None:
    write, count = Stream.write, 0

    def some(self: Stream, *arguments: Any) -> None:
        nonlocal count
        if count == _BLOCKS:
            raise BrokenOffError
        count += 1
        write(self, *arguments)

    ds = opened(whole / "twin").chunk(time=5)
    with patch.object(Stream, "write", some):
        try:
            ds.dan.baseline("etkf", members=5, store=whole / "unfinished", progress=False)
        except BrokenOffError:
            return
    raise RuntimeError("the run ended before it was broken off")


def main(path: Path) -> None:
    """Write the archive."""
    begin()
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "stores"
        make(whole)
        matrix = xr.DataArray(np.eye(8) + 0.5 * np.eye(8, k=1), dims=("obs", "x"))[:5]
        twin(operator=matrix.values).to_zarr(whole / "operator", consolidated=False)
        _make_networks(whole)
        _make_dynamics(whole)
        _make_estimate(whole)
        _break_off_a_run(whole)
        answers = {}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(whole.rglob("*")):
                archive.write(file, file.relative_to(whole))
            for name, read in READS.items():  # resuming changes stores, which are in the archive by now
                if "finite-size" in name:
                    continue  # in archives of early versions
                answers |= {f"{name}: {key}": value for key, value in read(whole).items()}
            np.savez_compressed(whole / "answers.npz", **answers)
            archive.write(whole / "answers.npz", "answers.npz")
    print(f"{path}: {path.stat().st_size / 2**10:.0f} KiB, model {MODEL}, chunks {dict(CHUNKS)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
