"""What a user meets first gives no warning: stores that are written and opened without any options."""

import subprocess
import sys
import warnings

import pytest
import xarray as xr
import zarr

import xdan

HIDDEN = ["-W", "ignore::DeprecationWarning", "-W", "ignore::PendingDeprecationWarning"]  # Python does not show them

PROGRAM = """
import xarray as xr, xdan
xdan.twin(xdan.Lorenz96(sites=8), cycles=6, trajectories=2).to_zarr("record.zarr")
ds = xr.open_zarr("record.zarr")
run = ds.dan.baseline("etkf", members=4, inflation=1.1, store="run.zarr", progress=False)
assert xr.open_zarr("run.zarr").identical(run)
"""


def test_a_program_that_writes_and_opens_stores_is_silent(tmp_path):
    command = [sys.executable, "-W", "error", *HIDDEN, "-c", PROGRAM]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert not ran.returncode, ran.stderr
    assert "Warning" not in ran.stderr


def test_other_warnings_of_zarr_are_shown():
    """Only the one message is hidden, and only where Zarr says it."""
    code = (
        "import xdan, warnings\n"
        "warnings.warn_explicit('Consolidated metadata is currently not part of', UserWarning, 'a.py', 1, 'mine')\n"
        "warnings.warn_explicit('Something else', UserWarning, 'b.py', 1, 'zarr.api.asynchronous')\n"
        "warnings.warn_explicit('Consolidated metadata is currently not part of', UserWarning, 'c.py', 1, 'zarr.api')\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert [name for name in ("a.py", "b.py", "c.py") if f"{name}:1" in told] == ["a.py", "b.py"]


@pytest.mark.parametrize("kind", ["run", "smoothed run", "forecasts", "errors", "parameters"])
def test_finished_stores_open_as_they_are(kind, twin, tmp_path):
    store = tmp_path / "result.zarr"
    words = {"store": store, "progress": False}
    if kind == "run":
        made = xdan.baseline(twin, "etkf", members=4, inflation=1.1, **words)
    elif kind == "smoothed run":
        made = xdan.reanalysis(twin, "etkf", members=4, inflation=1.1, **words)
    elif kind == "forecasts":
        run = xdan.baseline(twin, "etkf", members=4, inflation=1.1)
        made = xdan.forecast(twin, run, lead=0.2, every=8, **words)
    elif kind == "errors":
        made = xdan.estimate_errors(twin, "desroziers", **words)
    else:
        priors = {"forcing": (7.5, 0.5)}
        made = xdan.estimate_parameters(twin, xdan.Lorenz96(sites=8), priors, "augmented", members=6, **words)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = xr.open_zarr(store)
    xr.testing.assert_identical(opened.load(), made.load())
    assert set(opened.variables) == {name for name, _ in zarr.open_group(store, use_consolidated=False).arrays()}
