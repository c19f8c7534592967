"""Works with the package alone: the verbs of the first pages run, and what needs an extra says which.

python ci/core_verbs.py [--block]

With --block the packages of the extras cannot be imported, as if they were not installed; without it they must not be
there. Warnings are errors. The last line says what was done.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

EXTRAS = {
    "plots": ("bokeh", "holoviews", "hvplot", "matplotlib", "panel"),
    "files": ("cftime", "h5netcdf", "h5py"),
    "statistics": ("scipy",),
}
"""Packages that the extras bring; a test compares them with pyproject.toml."""


class WithoutExtras(PathFinder):
    """Finds what lies on the path, but nothing of the extras."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module; None for those of the extras, as where they are not installed."""
        if fullname.partition(".")[0] in {package for packages in EXTRAS.values() for package in packages}:
            return None
        return super().find_spec(fullname, path, target)


def _check_verbs() -> None:
    import numpy as np
    import xarray as xr

    import xdan

    model = xdan.Lorenz96(sites=8)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        settings = {"cycles": 40, "trajectories": 4, "seed": 0}
        xdan.twin(model, observe=xdan.Sites.all(), **settings).to_zarr(place / "twin.zarr", consolidated=False)
        ds = xr.open_zarr(place / "twin.zarr", consolidated=False)
        net = ds.dan.train(xdan.ResidualCNN(filters=3, blocks=1), steps=2, batch=2, window=2, progress=False)
        net.to_zarr(place / "net.zarr")
        assert xdan.open_network(place / "net.zarr") == net
        ds.dan.cycle(net, store=place / "run.zarr", progress=False)
        runs = {
            "network": xr.open_zarr(place / "run.zarr", consolidated=False),
            "EnKF-N": ds.dan.baseline("enkf-n", members=10, keep_members=True),
        }
        scores = ds.dan.score(runs, burn_in=10).compute()
        assert np.isfinite(scores.rmse).all()
        assert scores.rmse[-1] < 1.0  # the filter beats the observations, whose errors have the deviation 1
        assert dict(ds.dan.gain(net).sizes) == {"i": 8, "j": 8}
        forecasts = ds.dan.forecast(runs["EnKF-N"], lead=0.5, every=10, burn_in=10)
        assert np.isfinite(ds.dan.score_forecasts(forecasts).compute().rmse).all()
        assert int(ds.dan.rank_histogram(runs["EnKF-N"], burn_in=10).sum()) > 0
        dates = xdan.twin(
            xdan.Lorenz96(sites=8, time_unit=np.timedelta64(5, "D")), start=np.datetime64("2000-01-01"), **settings
        )
        assert np.isfinite(dates.dan.score(dates.dan.baseline("3d-var", scale=0.1)).rmse)
        cube = xdan.sweep(model, {"3D-Var": {"baseline": "3d-var", "scale": 0.1}}, cycles=9, trajectories=2, burn_in=5)
        assert np.isfinite(cube.rmse).all()


def _check_errors() -> None:
    import numpy as np
    import xarray as xr

    import xdan

    ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=12, trajectories=2, seed=0).compute()
    run = ds.dan.baseline("etkf", members=5, inflation=1.1, keep_members=True)
    rows, batches = 2.0 ** np.arange(4), 2.0 ** np.arange(3)
    table = xr.DataArray(
        1.0 + 1.0 / rows[:, None] + 0.0 * batches,
        dims=("trajectories", "batch"),
        coords={"trajectories": rows, "batch": batches},
    )
    asked: dict[str, list[Callable[[], object]]] = {
        "plots": [
            lambda: ds.dan.hovmoller(run),
            lambda: ds.dan.rmse_in_time({"ETKF": run}),
            lambda: ds.dan.explore({"ETKF": run}),
        ],
        "statistics": [
            lambda: xdan.scaling_law(table),
            lambda: xdan.rank_flatness(ds.dan.rank_histogram(run)).compute(),
        ],
    }
    for extra, calls in asked.items():
        for call in calls:
            try:
                call()
            except ImportError as reason:
                if f"expected pip install 'xdan[{extra}]'" not in str(reason):
                    raise
            else:
                raise AssertionError(f"something of the extra {extra!r} worked without it")


def main() -> None:
    """Run the checks."""
    if "--block" in sys.argv:
        sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutExtras
    for package in (package for packages in EXTRAS.values() for package in packages):
        if importlib.util.find_spec(package) is not None:
            raise SystemExit(f"{package} is there: expected an environment without extras, or --block")
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=DeprecationWarning)
    _check_verbs()
    _check_errors()
    print("the package alone runs the verbs, and names the extras of the rest")


if __name__ == "__main__":
    main()
