"""How a Dataset is understood: roles, dims, times, errors and dynamics."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

import xdan
from xdan.records import record, schema
from xdan.records.record import read


@pytest.fixture
def anonymous(twin):
    """The twin without xdan's roles or attributes, under names of the user's own."""
    bare = twin.rename(truth="nature", observation="sondes", observation_error="sigma").drop_attrs(deep=True)
    return bare.assign_attrs(dynamics=twin.attrs["dynamics"])


def test_role_by_name(twin):
    labelled = record.read(twin.drop_attrs().assign_attrs(dynamics=twin.attrs["dynamics"]))
    assert labelled.observation.name == "observation"
    assert labelled.truth.name == "truth"


def test_role_by_attribute(twin):
    renamed = twin.rename(truth="nature", observation="sondes", observation_error="sigma")
    labelled = record.read(renamed)
    assert (labelled.observation.name, labelled.truth.name) == ("sondes", "nature")


def test_role_by_the_callers_word(anonymous):
    labelled = record.read(anonymous, truth="nature", observation="sondes", observation_error="sigma")
    assert (labelled.observation.name, labelled.truth.name) == ("sondes", "nature")
    assert float(labelled.setup.observing.std) == 1.0


def test_callers_word_beats_the_role(twin):
    both = twin.assign(other=twin.observation.drop_attrs())
    assert record.read(both, observation="other").observation.name == "other"


def test_two_claims_are_refused(anonymous):
    anonymous["a"] = anonymous.sondes.assign_attrs(xdan_role="observation")
    anonymous["b"] = anonymous.sondes.assign_attrs(xdan_role="observation")
    with pytest.raises(
        ValueError, match=r"\['a', 'b'\] all claim the role 'observation'; choose one with observation=: expected"
    ):
        record.read(anonymous, observation_error=1.0)


def test_a_claim_on_the_error_names_the_argument(twin):
    attributes = {"xdan_role": "observation_error_covariance"}
    matrix = xr.DataArray(np.eye(8), dims=("x", "x_dual"), attrs=attributes)
    two = twin.drop_vars("observation_error").assign(a=matrix, b=matrix)
    with pytest.raises(ValueError, match=r"role 'observation_error_covariance'; choose one with observation_error=:"):
        record.read(two)


def test_words_are_those_of_the_verbs(twin):
    assert list(record.RecordWords.__annotations__) == [
        "dynamics", "truth", "observation", "observation_error", "operator", "climatology", "positions", "model_error"
    ]  # fmt: skip
    with pytest.raises(TypeError, match=r"trut='x': expected no argument beyond .*'truth', .*'model_error'\]"):
        record.read(twin, trut="x")


@pytest.mark.parametrize("role", schema.ROLES, ids=lambda role: role.name)
def test_a_twin_writes_its_roles_as_they_are_read(role, model):
    """Dims and units of what `twin` writes are those that the role describes."""
    r = np.eye(3) if role is schema.ERROR_COVARIANCE else None
    q = {role.name: np.eye(8)} if role is schema.MODEL_ERROR_COVARIANCE else {"model_error_std": np.arange(8.0)}
    ds = xdan.twin(model, cycles=2, operator=np.ones((3, 8)), error_covariance=r, **q)
    variable = schema.find(ds, role)
    expected = role.dims_in(("x",), ("obs",))
    assert variable.dims == (() if role is schema.ERROR else expected)
    assert variable.attrs == role.attributes(variable.attrs["long_name"], model.units)
    assert role.keyword in record.RecordWords.__annotations__


def test_powers_of_units():
    assert [schema.to_power("K", power) for power in (-1, 0, 1, 2)] == ["(K)-1", "1", "K", "(K)2"]
    assert schema.to_power("1", 2) == "1"
    assert schema.ERROR_COVARIANCE.attributes("R", "m s-1")["units"] == "(m s-1)2"
    assert schema.OPERATOR.attributes("H", "m s-1")["units"] == "1"


def test_any_order_of_dims(twin):
    turned = twin.transpose("x", "time", "trajectory")
    labelled = record.read(turned)
    assert labelled.observation.dims == labelled.truth.dims == ("trajectory", "time", "x")
    np.testing.assert_array_equal(labelled.observation, twin.observation)


def test_time_by_axis(twin):
    named = twin.rename(time="cycle")
    np.testing.assert_array_equal(record.read(named).setup.steps, record.read(twin).setup.steps)
    named.cycle.attrs.clear()
    with pytest.raises(ValueError, match=r"none is time: expected 'time', or a dim whose .*axis='T'"):
        record.read(named)


def test_steps_count_the_model_steps_before_each_analysis(twin):
    times = np.concatenate([[0.0], np.cumsum([0.05, 0.1, 0.05, 0.25])])
    labelled = record.read(twin.isel(time=slice(5)).assign_coords(time=times))
    assert labelled.setup.steps.tolist() == [0, 1, 2, 1, 5]


def test_steps_survive_rounding_of_long_times(twin):
    times = np.float64(1e4) + 0.05 * np.arange(24)
    assert set(record.read(twin.assign_coords(time=times)).setup.steps[1:]) == {1}


@pytest.mark.parametrize("std", [2.0, [2.0] * 8, np.full(8, 2.0), xr.DataArray(np.full(8, 2.0), dims="x")])
def test_standard_deviation(twin, std):
    observing = record.read(twin, observation_error=std).setup.observing
    np.testing.assert_array_equal(np.broadcast_to(observing.error_variance(), 8), 4.0)
    assert observing.error_variance().dtype == torch.float64


@pytest.mark.parametrize("kind", [np.array, lambda m: xr.DataArray(m, dims=("x", "x_dual"))])
def test_covariance(twin, kind):
    matrix = np.diag(np.arange(1.0, 9)) + 0.1
    observing = record.read(twin, observation_error=kind(matrix)).setup.observing
    np.testing.assert_array_equal(observing.covariance, matrix)


def test_reading_touches_no_data(twin, untouchable):
    labelled = record.read(untouchable(twin, "truth", "observation"))
    assert labelled.observation.shape == twin.observation.shape


def test_state_dims_become_one_block(twin):
    labelled = record.read(twin.chunk(x=3, time=5))
    assert labelled.observation.chunks[2] == (8,)


@pytest.mark.parametrize(
    ("stored", "computed"), [("f2", "f4"), (">f4", "f4"), (">f8", "f8"), ("i2", "f4"), ("i8", "f8")]
)
def test_dtype_to_compute_in(twin, stored, computed):
    changed = twin.assign(observation=twin.observation.astype(stored))
    assert record.read(changed).setup.dtype == np.dtype(computed)


def test_a_store_names_a_registered_dynamics(twin):
    @xdan.register_dynamics
    class Decay(xdan.Dynamics):
        name = "decay-of-test"
        dims = ("x",)
        timestep = 0.05

        def __init__(self, rate=1.0):
            self.rate = rate
            self.coordinates = xdan.Lorenz96(sites=8).coordinates

        def config(self):
            return {"rate": self.rate}

        def step(self, x):
            return x * (1 - self.rate * self.timestep)

    described = twin.assign_attrs(schema.attributes(Decay(rate=3.0)))
    assert json.loads(described.attrs["dynamics"]) == {"name": "decay-of-test", "parameters": {"rate": 3.0}}
    assert record.read(described).setup.dynamics == Decay(rate=3.0)


def test_callers_dynamics_beats_the_stores(twin, model):
    other = xdan.Lorenz96(sites=8, forcing=6.0)
    assert record.read(twin, dynamics=other).setup.dynamics == other
    assert record.read(twin).setup.dynamics == model


def test_own_data_are_not_changed(twin):
    before = twin.copy(deep=True)
    record.read(twin.transpose("x", ...), observation_error=2.0)
    xr.testing.assert_identical(twin, before)


def test_labels_of_another_order_are_refused_whatever_their_type(twin):
    floats = twin.assign_coords(x=np.arange(8.0))
    read(floats)
    with pytest.raises(ValueError, match="labels of 'x' in another order"):
        read(floats.isel(x=slice(None, None, -1)))
    read(twin.assign_coords(x=np.linspace(0, 315, 8)).isel(x=slice(None, None, -1)))  # longitudes are the user's


def test_times_of_single_precision(model):
    ds = xdan.twin(model, cycles=3000, trajectories=1)
    labelled = read(ds.assign_coords(time=ds.time.astype("float32")))
    assert set(labelled.setup.steps[1:]) == {1}
    with pytest.raises(ValueError, match="not a positive multiple"):
        read(ds.assign_coords(time=(1.01 * ds.time).astype("float32")))
