"""Labels of dims."""

import warnings

import numpy as np
import pytest
import xarray as xr

from xdan.records.schema import as_labels


@pytest.mark.parametrize("labels", [("upper", "lower"), {"etkf": 1, "enkf-n": 2}, ("upper", 3)])
def test_labels_with_strings_are_objects(labels):
    assert as_labels(labels).dtype == object
    assert as_labels(labels).tolist() == list(labels)


@pytest.mark.parametrize(("labels", "kind"), [((0, 1, 2), "i"), ((0.5, 1.0), "f"), ((), "f")])
def test_numbers_stay_numbers(labels, kind):
    assert as_labels(labels).dtype.kind == kind


def test_string_labels_are_stored_without_a_warning(tmp_path):
    rmse = xr.DataArray(np.zeros(2), {"method": as_labels(["network", "EnKF-N"])}, ["method"], name="rmse").to_dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rmse.to_zarr(tmp_path / "scores.zarr", consolidated=False)
    there = xr.open_zarr(tmp_path / "scores.zarr", consolidated=False)
    assert there.method.values.tolist() == ["network", "EnKF-N"]
