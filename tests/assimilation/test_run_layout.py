"""What a run holds: shapes, names and units of every method's output."""

import numpy as np
import pytest

from xdan.assimilation.run_layout import shapes_of, tuned_shapes_of
from xdan.core.methods import method_by_name
from xdan.records.record import read

NAMES = [
    "3d-var",
    "enkf-n",
    "etkf",
    "enkf",
    "letkf",
    "ienks",
    "ienkf-n",
    "4d-var",
    "eda",
    "particle",
    "extended-kalman",
]


@pytest.fixture(scope="module")
def labelled(single):
    return read(single)


@pytest.mark.filterwarnings("ignore:tuning scale of '4d-var' chose:xdan.XdanWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_run_holds_what_its_layout_says(single, labelled, name):
    method = method_by_name(name)
    shapes = shapes_of(method, labelled, False) | tuned_shapes_of(method, labelled.setup)
    run = single.isel(time=slice(6)).dan.cycle(method_by_name(name))
    assert set(run.data_vars) <= set(shapes) <= set(run.variables)  # the candidates of a tuning are a coordinate
    for variable, (dims, _, dtype) in shapes.items():
        assert tuple(d for d in dims if d in run[variable].dims) == run[variable].dims, variable
        assert run[variable].dtype == dtype, variable
        assert run[variable].attrs["long_name"] != variable, "a name says less than words"
    assert run.analysis.attrs["units"] == labelled.setup.dynamics.units


def test_members_and_memory_have_dims_of_their_own(labelled, net):
    lead, sites = labelled.observation.shape[:2], labelled.setup.dynamics.shape
    shapes = shapes_of(method_by_name("enkf-n", members=7), labelled, True)
    for name in ("members", "forecast_members"):
        dims, shape, dtype = shapes[name]
        assert dims == ("trajectory", "time", "member", *labelled.setup.dynamics.dims)
        assert shape == (*lead, 7, *sites)
        assert dtype == labelled.setup.dtype
    assert shapes["diverged"][1:] == (lead, np.dtype(bool))
