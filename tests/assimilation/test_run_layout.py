"""What a run holds: shapes, names and units of every method's output."""

import numpy as np
import pytest

from xdan.assimilation.run_layout import choices_of, layout_of
from xdan.core.methods import method_by_name, method_of
from xdan.core.networks import KalmanCNN
from xdan.records.record import read

NAMES = [
    "3d-var",
    "enkf-n",
    "etkf",
    "enkf",
    "hybrid-envar",
    "es-mda",
    "multi-model-enkf",
    "multifidelity-enkf",
    "letkf",
    "ienks",
    "ienkf-n",
    "4d-var",
    "eda",
    "particle",
    "extended-kalman",
    "second-order-kalman",
    "iterated-kalman-smoother",
]


@pytest.fixture(scope="module")
def labelled(single):
    return read(single)


@pytest.mark.filterwarnings("ignore:tuning scale of '4d-var' chose:xdan.XdanWarning")
@pytest.mark.filterwarnings("ignore:tuning c2 of:xdan.XdanWarning")  # records of 6 cycles
@pytest.mark.parametrize("name", NAMES)
def test_a_run_holds_what_its_layout_says(single, labelled, name):
    method = method_by_name(name)
    layout = layout_of(method, labelled, False) | choices_of(method, labelled.setup)
    run = single.isel(time=slice(6)).dan.cycle(method_by_name(name))
    assert set(run.data_vars) <= set(layout) <= set(run.variables)  # the candidates of a tuning are a coordinate
    for name, variable in layout.items():
        assert run[name].dims == variable.dims, name
        assert run[name].dtype == variable.dtype, name
        assert run[name].attrs == variable.attrs, name
        assert variable.attrs["long_name"] != name, "a name says less than words"
        sizes = {"time": 6}  # the layout is that of the whole record
        assert run[name].shape == tuple(sizes.get(d, n) for d, n in zip(variable.dims, variable.shape, strict=True))
    assert run.analysis.attrs["units"] == labelled.setup.dynamics.units


def test_members_and_memory_have_dims_of_their_own(labelled, net):
    lead, sites = labelled.observation.shape[:2], labelled.setup.dynamics.shape
    layout = layout_of(method_by_name("enkf-n", members=7), labelled, True)
    for name in ("members", "forecast_members"):
        variable = layout[name]
        assert variable.dims == ("trajectory", "time", "member", *labelled.setup.dynamics.dims)
        assert variable.shape == (*lead, 7, *sites)
        assert variable.dtype == labelled.setup.dtype
    assert (layout["diverged"].shape, layout["diverged"].dtype) == (lead, np.dtype(bool))


@pytest.mark.parametrize("label", ["spread", "member", "analysis"])
def test_a_label_left_over_from_a_selection_gives_way(single, label):
    short = single.isel(time=slice(6))
    plain = short.dan.baseline("etkf", members=4, keep_members=True)
    labelled = short.assign_coords({label: 3.0}).dan.baseline("etkf", members=4, keep_members=True)
    np.testing.assert_array_equal(labelled[label], plain[label])
    assert labelled[label].dims == plain[label].dims


def test_a_covariance_has_a_second_dim_of_the_state(labelled):
    method = method_of(KalmanCNN(filters=2, blocks=1, kernel=3, memory=0, diagonals=3))
    variable = layout_of(method, labelled, True)["analysis_covariance"]
    sites = labelled.setup.dynamics.shape[0]
    assert variable.dims == ("trajectory", "time", "x_dual", "x")
    assert variable.shape == (*labelled.observation.shape[:2], sites, sites)
    assert "analysis_covariance" not in layout_of(method, labelled, False)
    lagged = method_of(KalmanCNN(filters=2, blocks=1, kernel=3, memory=2, diagonals=3, lag=1))
    assert "analysis_covariance" not in layout_of(lagged, labelled, True)
