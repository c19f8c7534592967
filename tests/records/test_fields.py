"""States of several fields: their variables, and the packed array that they make."""

import json

import dask
import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import xdan
from xdan.core.spaces import STATE, Field, StateSpace
from xdan.records.arranging import arrange_state
from xdan.records.fields import component_text, pack, parts_of, split, split_tensor
from xdan.records.following import astray, followed
from xdan.records.record import read
from xdan.records.runs import read_run
from xdan.records.streams import Stream
from xdan.records.values import refuse_fill_values

ROWS, TIMES = 3, 6


def model_of(space: StateSpace) -> xdan.Dynamics:
    """A decay of every field."""

    def decay(fields):
        return {name: -values for name, values in fields.items()} if len(space) > 1 else -fields

    return xdan.CustomDynamics(decay, state=space, timestep=0.1, spin_up_time=0.0, name="decay")


def waves(sites: int = 6) -> xdan.Dynamics:
    """Waves of a depth h and a flow u on one ring, damped and driven."""

    def tendency(f):
        def slope(a):
            return (a.roll(-1, -1) - a.roll(1, -1)) / 2

        h, u = f["h"], f["u"]
        return {"h": 0.5 * torch.sin(u) - slope(u) - 0.1 * h, "u": 0.3 * torch.cos(h) - slope(h) - 0.1 * u}

    fields = [
        Field("h", xdan.Ring(sites), "m", "depth"),
        Field("u", xdan.Ring(sites), "m s-1", standard_name="eastward_wind"),
    ]
    return xdan.CustomDynamics(tendency, state=fields, timestep=0.05, spin_up_time=2.0, name="waves")


@st.composite
def spaces(draw):
    """Spaces of one to three fields on geometries of every kind, with dims of their own."""
    fields = []
    for k in range(draw(st.integers(1, 3))):
        size, other = draw(st.integers(2, 4)), draw(st.integers(2, 3))
        geometry = draw(
            st.sampled_from(
                [
                    xdan.Ring(size, dim=f"x{k}"),
                    xdan.Interval(size, length=2.0, dim=f"z{k}"),
                    xdan.Plane((size, other), dims=(f"y{k}", f"x{k}")),
                    xdan.Sphere(2, 4),
                    xdan.Components([f"c{i}" for i in range(size)], dim=f"c{k}"),
                ]
            )
        )
        fields.append(Field(f"f{k}", geometry, draw(st.sampled_from(["1", "K"]))))
    return StateSpace(fields)


@settings(deadline=None, max_examples=25)
@given(spaces(), st.sampled_from([None, (2, 4), (1, 1)]), st.booleans(), st.integers(0, 99))
def test_packing_and_splitting_are_inverse(space, chunks, members, seed):
    model = model_of(space)
    lead = (ROWS, TIMES, 2) if members else (ROWS, TIMES)
    values = np.random.default_rng(seed).normal(size=(*lead, space.size)).astype("f4")
    dims = ("trajectory", "time", *(["member"] if members else []))
    packed = xr.DataArray(
        values.reshape(*lead, *model.shape),
        {"trajectory": np.arange(ROWS), "time": np.arange(TIMES) / 10},
        (*dims, *model.dims),
        "truth",
    )
    if chunks is not None:
        packed = packed.chunk({"trajectory": chunks[0], "time": chunks[1]})
    variables = split(packed, model, "truth")
    expected = space.unpack(torch.from_numpy(values))  # the core's own unpacking is the reference
    for field, (name, variable) in zip(space, variables.items(), strict=True):
        assert name == ("truth" if len(space) == 1 else f"truth_{field.name}")
        assert variable.dims == (*dims, *field.geometry.dims)
        assert (variable.chunks is None) == (chunks is None)
        np.testing.assert_array_equal(variable, expected[field.name])
    if len(space) > 1:
        turned = [one.transpose(..., *dims[::-1]).transpose(*dims, ...) for one in variables.values()]
        again = pack(dict(zip(space.names, turned, strict=True)), model, "truth")
        assert again.dims == (*dims, STATE)
        assert isinstance(again.data, da.Array) == (chunks is not None)
        np.testing.assert_array_equal(again, packed)
        tensors = split_tensor(torch.from_numpy(values), parts_of(model), "truth")
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, variables[name])


def test_a_field_without_a_variable_is_nan_and_lazy_where_the_others_are():
    model = waves()
    h = xr.DataArray(
        np.ones((2, 3, 6), "f4"), {"trajectory": [0, 1], "time": [0.0, 1.0, 2.0]}, ("trajectory", "time", "x")
    )
    for one in (h, h.chunk({"time": 2})):
        packed = pack({"h": one}, model, "observation")
        assert packed.dtype == np.float32
        assert packed.chunks == (None if one.chunks is None else ((2,), (2, 1), (12,)))
        assert bool(packed[..., :6].notnull().all())
        assert bool(packed[..., 6:].isnull().all())


@pytest.fixture(scope="module")
def model():
    return waves()


@pytest.fixture(scope="module")
def ds(model):
    setting = {"observe": {"h": xdan.Sites.every(2), "u": xdan.Sites.random(1, 3)}, "error_std": {"h": 0.1, "u": 0.5}}
    return xdan.twin(model, interval=0.1, cycles=8, trajectories=3, seed=3, dtype="float64", **setting).load()


@pytest.fixture(scope="module")
def run(ds, model):
    return ds.dan.baseline("etkf", members=5, inflation=1.1, keep_members=True, dynamics=model)


def test_a_twin_has_a_variable_for_each_role_and_field(ds):
    assert set(ds.data_vars) == {
        *("truth_h", "truth_u", "observation_h", "observation_u", "observation_error_h", "observation_error_u")
    }
    said = ds.truth_u.attrs
    assert (said["xdan_role"], said["xdan_field"], said["units"]) == ("truth", "u", "m s-1")
    assert said["standard_name"] == "eastward_wind"
    assert ds.observation_error_u.attrs["standard_name"] == "eastward_wind standard_error"
    assert "depth" in ds.truth_h.attrs["long_name"]
    assert (float(ds.observation_error_h), float(ds.observation_error_u)) == (0.1, 0.5)
    assert bool((ds.observation_h.notnull() == (ds.x % 2 == 0)).all())
    per_time = ds.observation_u.notnull().sum("x")
    assert 1 <= int(per_time.min()) <= int(per_time.max()) <= 3
    described = json.loads(ds.attrs["observing"])
    assert described["parameters"]["h"] == xdan.Sites.every(2).to_json()


def test_errors_have_each_field_s_deviation(model):
    setting = {"interval": 0.05, "cycles": 300, "trajectories": 4, "error_std": {"h": 0.1, "u": 2.0}}
    many = xdan.twin(model, dtype="float64", **setting)
    for name, deviation in {"h": 0.1, "u": 2.0}.items():
        errors = (many[f"observation_{name}"] - many[f"truth_{name}"]).to_numpy()
        assert abs(errors.std() / deviation - 1) < 5 / np.sqrt(2 * errors.size)
        assert abs(errors.mean() / deviation) < 5 / np.sqrt(errors.size)


def test_a_field_more_changes_no_number_of_the_others(model):
    """Draws are keyed by the field: h is observed alike beside u and without it."""
    rules = {"h": xdan.Sites.random(2, 4)}
    alone = xdan.twin(model, cycles=5, observe=rules, error_std={"h": 0.3}, seed=5)
    both = xdan.twin(model, cycles=5, observe={**rules, "u": xdan.Sites.all()}, error_std={"h": 0.3, "u": 1.0}, seed=5)
    assert "observation_u" not in alone
    assert "observation_error_u" not in alone
    xr.testing.assert_identical(alone.observation_h.load(), both.observation_h.load())
    shifted = both.observation_u - both.truth_u
    assert abs(float(xr.corr(shifted, both.observation_h - both.truth_h))) < 0.9  # errors of the two are not one draw


def test_one_rule_is_every_field_s(model):
    each = xdan.twin(model, cycles=3, observe=xdan.Sites.every(3, 1))
    for name in ("h", "u"):
        assert bool((each[f"observation_{name}"].notnull() == (each.x % 3 == 1)).all())


def test_errors_in_time_and_arrays_are_packed(model):
    h, u = np.linspace(1.0, 2.0, 6), xr.DataArray([1.0, 2.0, 3.0], dims="time")
    ds = xdan.twin(model, cycles=3, error_std={"h": h, "u": u})
    assert ds.observation_error_h.dims == ("time", "x")
    assert ds.observation_error_u.dims == ("time",) or ds.observation_error_u.dims == ("time", "x")
    std = read(ds, dynamics=model).setup.observing.std
    np.testing.assert_allclose(std[:, :6], np.tile(h, (3, 1)))
    np.testing.assert_allclose(std[:, 6:], np.tile([[1.0], [2.0], [3.0]], 6))


def test_a_full_covariance_is_of_the_packed_state(model):
    covariance = np.eye(12) + 0.2
    ds = xdan.twin(model, cycles=3, error_covariance=covariance)
    assert ds.observation_error_covariance.dims == ("state", "state_dual")
    np.testing.assert_allclose(read(ds, dynamics=model).setup.observing.covariance, covariance)


def test_covariances_of_fields_are_blocks(model, ds):
    block = np.eye(6) + 0.5
    observing = read(ds, dynamics=model, observation_error={"h": block, "u": 0.3}).setup.observing
    np.testing.assert_allclose(observing.covariance[:6, :6], block)
    np.testing.assert_allclose(observing.covariance[6:, 6:], 0.09 * np.eye(6))
    assert float(observing.covariance[:6, 6:].abs().max()) == 0


def test_a_record_is_read_as_it_was_made(ds, model):
    labelled = read(ds, dynamics=model)
    truth = np.concatenate([ds.truth_h, ds.truth_u], -1)
    np.testing.assert_array_equal(labelled.truth, truth)
    assert labelled.truth.dims == labelled.observation.dims == ("trajectory", "time", "state")
    np.testing.assert_array_equal(labelled.setup.observing.std, np.repeat([0.1, 0.5], 6))
    assert labelled.sites.to_json() == json.loads(ds.attrs["observing"])


def test_users_name_the_fields_variables(ds, model):
    plain = {"truth_u": "U10", "truth_h": "depth", "observation_h": "gauge"}
    theirs = ds[["truth_u", "truth_h", "observation_h"]].rename(plain)
    for name in theirs.data_vars:
        theirs[name].attrs = {}
    words = {"truth": {"u": "U10", "h": "depth"}, "observation": {"h": "gauge"}, "observation_error": {"h": 0.1}}
    labelled = read(theirs, dynamics=model, **words)
    ours = read(ds, dynamics=model, observation={"h": "observation_h"})
    np.testing.assert_array_equal(labelled.truth, ours.truth)
    np.testing.assert_array_equal(labelled.observation, ours.observation)
    assert bool(labelled.observation[..., 6:].isnull().all())
    assert labelled.observed == ("gauge",)


def test_variables_are_known_by_their_attributes(ds, model):
    renamed = ds.rename({"truth_u": "wind", "observation_h": "gauge"})
    np.testing.assert_array_equal(read(renamed, dynamics=model).truth, read(ds, dynamics=model).truth)
    np.testing.assert_array_equal(read(renamed, dynamics=model).observation, read(ds, dynamics=model).observation)


def test_the_order_of_variables_is_free(ds, model):
    turned = ds[list(ds.data_vars)[::-1]].transpose("x", "time", "trajectory")
    np.testing.assert_array_equal(read(turned, dynamics=model).truth, read(ds, dynamics=model).truth)


def test_a_run_has_the_fields_labels_and_units(ds, run):
    for stem in ("forecast", "analysis", "spread", "members"):
        for name in ("h", "u"):
            variable = run[f"{stem}_{name}"]
            assert variable.attrs["xdan_role"] == stem
            assert variable.attrs["units"] == ds[f"truth_{name}"].attrs["units"]
    assert run.members_u.dims == ("trajectory", "time", "member", "x")
    assert run.spread_u.attrs["standard_name"] == "eastward_wind standard_error"


def test_a_run_is_that_of_the_packed_state(ds, model, run):
    """Fields change labels, not numbers: a model of one packed state gives the same analyses."""
    flat = xdan.CustomDynamics(
        lambda x: model.tendency(x), state={"state": 12}, timestep=0.05, spin_up_time=2.0, name="packed"
    )
    labelled = read(ds, dynamics=model)
    packed = xr.Dataset({"truth": labelled.truth, "observation": labelled.observation})
    packed = packed.assign_coords(time=ds.time, trajectory=ds.trajectory)
    packed["observation_error"] = "state", np.repeat([0.1, 0.5], 6)
    reference = packed.dan.baseline("etkf", members=5, inflation=1.1, dynamics=flat)
    np.testing.assert_allclose(run.analysis_h, reference.analysis[..., :6], rtol=1e-12)
    np.testing.assert_allclose(run.analysis_u, reference.analysis[..., 6:], rtol=1e-12)


def test_runs_are_read_and_scored(ds, model, run):
    labelled = read(ds, dynamics=model)
    states = read_run(labelled, run[list(run.data_vars)[::-1]], ["analysis"])["analysis"]
    np.testing.assert_array_equal(states, np.concatenate([run.analysis_h, run.analysis_u], -1))
    scores = ds.dan.score(run, dynamics=model)
    error = {name: run[f"analysis_{name}"] - ds[f"truth_{name}"] for name in ("h", "u")}
    for name, one in error.items():
        expected = np.sqrt((one**2).mean("x")).mean()
        assert float(scores.rmse.sel(field=name)) == pytest.approx(float(expected))
    assert str(scores.crps_of.values) == "members"
    assert {"spread", "forecast_spread"} <= set(scores)
    assert int(ds.dan.rank_histogram(run, dynamics=model).sum()) == 2 * error["h"].size


def test_runs_on_other_labels_are_refused(ds, model, run):
    with pytest.raises(ValueError, match="run and record differ in x: expected 6 labels"):
        ds.dan.score(run.assign_coords(x=run.x + 1), dynamics=model)
    with pytest.raises(ValueError, match=r"the fields \['u'\] have no variable for the role 'analysis'"):
        ds.dan.score(run.drop_vars("analysis_u"), dynamics=model)


def test_packed_variables_are_read_alike(ds, model):
    labelled = read(ds, dynamics=model)
    packed = xr.Dataset({"truth": labelled.truth, "y": labelled.observation.rename("y")})
    again = read(packed, dynamics=model, observation="y", observation_error=np.repeat([0.1, 0.5], 6))
    np.testing.assert_array_equal(again.truth, labelled.truth)
    np.testing.assert_array_equal(again.observation, labelled.observation)
    np.testing.assert_array_equal(again.setup.observing.std, labelled.setup.observing.std)


def test_a_truth_of_another_model_is_seen_field_by_field(ds, model):
    """A field in large units does not hide that another goes astray; one that stands still is no error."""
    still = [Field("p", xdan.Ring(6)), Field("u", xdan.Ring(6))]

    def at_rate(rate):
        def decay(f):
            return {"p": 0 * f["p"], "u": -rate * f["u"]}

        return xdan.CustomDynamics(decay, state=still, timestep=0.1, spin_up_time=0.0)

    record = xdan.twin(at_rate(1.0), cycles=3, interval=0.1).load()
    record["truth_p"] = record.truth_p * 0 + 1e5
    labelled = read(record, dynamics=at_rate(1.0))
    assert astray(labelled.setup, followed(labelled.setup, labelled.truth).to_numpy()) == ""
    other = read(record, dynamics=at_rate(2.0))
    assert "'truth_u' is off" in astray(other.setup, followed(other.setup, other.truth).to_numpy())


def test_records_with_dates_and_without_trajectories(model):
    flow = waves()
    flow.time_unit = np.timedelta64(1, "D")
    ds = xdan.twin(flow, interval=0.25, cycles=5, dtype="float64").load().isel(trajectory=0)
    dated = ds.assign_coords(time=np.datetime64("2020-01-01T00", "ns") + np.arange(5) * np.timedelta64(6, "h"))
    run = dated.dan.baseline("etkf", members=4, inflation=1.1, dynamics=flow)
    assert run.analysis_u.dims == ("time", "x")
    np.testing.assert_array_equal(run.time, dated.time)
    np.testing.assert_array_equal(
        run.analysis_u, ds.dan.baseline("etkf", members=4, inflation=1.1, dynamics=flow).analysis_u
    )


def test_covariances_of_members_are_of_all_fields(run):
    covariance = xdan.ensemble_covariance(run)
    members = np.concatenate([run.members_h, run.members_u], -1)
    anomalies = members - members.mean(2, keepdims=True)
    np.testing.assert_allclose(covariance, np.einsum("rtmi,rtmj->rtij", anomalies, anomalies) / 4, atol=1e-12)


def test_a_streamed_run_is_the_run_in_memory(ds, model, run, tmp_path):
    stored = ds.chunk({"trajectory": 2, "time": 3}).dan.baseline(
        "etkf", members=5, inflation=1.1, keep_members=True, dynamics=model, store=tmp_path / "run.zarr", progress=False
    )
    for name in run.data_vars:
        np.testing.assert_allclose(stored[name], run[name], rtol=1e-10)
    assert stored.members_u.chunksizes["trajectory"] == (2, 1)
    assert stored.members_u.chunksizes["x"] == (6,)
    assert "xdan_status" not in stored.attrs
    again = xr.open_zarr(tmp_path / "run.zarr", consolidated=False)
    np.testing.assert_allclose(*(ds.dan.score(one, dynamics=model).rmse for one in (again, run)))


def test_a_cut_run_is_resumed(ds, model, tmp_path, monkeypatch):
    """Cut after the second block, it cannot be scored; the same call ends it, with the numbers of an unbroken run."""
    record = ds.chunk({"trajectory": 3, "time": 2})

    def stream(name):
        words = {"members": 5, "inflation": 1.1, "dynamics": model, "progress": False}
        with dask.config.set(scheduler="synchronous"):
            return record.dan.baseline("etkf", store=tmp_path / name, **words)

    write, places = Stream.write, []

    def cut(self, i, t, *rest):
        if len(places) == 2:
            raise KeyboardInterrupt
        places.append((i, t))
        write(self, i, t, *rest)

    monkeypatch.setattr(Stream, "write", cut)
    with pytest.raises(KeyboardInterrupt):
        stream("cut.zarr")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="unfinished"):
        ds.dan.score(xr.open_zarr(tmp_path / "cut.zarr", consolidated=False), dynamics=model)
    xr.testing.assert_identical(stream("cut.zarr").load(), stream("whole.zarr").load())


def test_a_cut_store_is_seen(ds, model, tmp_path):
    ds.to_zarr(tmp_path / "ds.zarr", consolidated=False)
    for chunk in (tmp_path / "ds.zarr" / "truth_u" / "c").rglob("*"):
        if chunk.is_file():
            chunk.unlink()
    with pytest.raises(ValueError, match="'truth_u' has 0 of 1 chunks"):
        read(xr.open_zarr(tmp_path / "ds.zarr", consolidated=False), dynamics=model)


def test_a_record_is_not_overwritten_by_its_run(ds, model, tmp_path):
    ds.to_zarr(tmp_path / "ds.zarr", consolidated=False)
    with pytest.raises(ValueError, match=r"holds a record \('observation_h'\)"):
        ds.dan.baseline("etkf", members=4, dynamics=model, store=tmp_path / "ds.zarr", mode="w")


def test_a_static_covariance_says_the_field_of_each_component(ds, model):
    run = ds.dan.baseline("3d-var", scale=1.0, dynamics=model)
    assert run.background_covariance.dims == ("state", "state_dual")
    assert run.state_field.values.tolist() == ["h"] * 6 + ["u"] * 6


def test_an_operator_takes_the_fields(model):
    def speeds(f):
        return f["u"][..., ::2] * f["h"].mean(-1, keepdim=True)

    ds = xdan.twin(model, cycles=4, trajectories=2, operator=speeds, error_std=0.2, dtype="float64").load()
    assert ds.observation.dims == ("trajectory", "time", "obs")
    labelled = read(ds, dynamics=model, operator=speeds)
    states = torch.from_numpy(labelled.truth.to_numpy())
    expected = speeds({"h": states[..., :6], "u": states[..., 6:]})
    np.testing.assert_allclose(labelled.setup.observing.observe(states), expected)
    run = ds.dan.baseline("etkf", members=5, inflation=1.1, dynamics=model, operator=speeds)
    assert run.analysis_u.dims == ("trajectory", "time", "x")


@pytest.mark.parametrize("words", [{}, {"operator": {"u": np.eye(6)[:2]}}])
def test_matrices_of_fields_are_one_operator(model, words):
    """A twin writes H of each field; a caller may give H of some fields, zero for the others."""
    matrix = np.eye(6)[:2]
    ds = xdan.twin(model, cycles=3, operator={"u": matrix}, error_std=0.2)
    assert ds.observation_operator_u.dims == ("obs", "x")
    if words:
        ds = ds.drop_vars(["observation_operator_u", "observation_operator_h"])
    whole = read(ds, dynamics=model, **words).setup.observing.as_matrix()
    np.testing.assert_array_equal(whole, np.concatenate([np.zeros((2, 6)), matrix], -1))


def test_what_nothing_observes_has_the_typical_error(model):
    ds = xdan.twin(model, cycles=3, observe={"h": xdan.Sites.all()}, error_std={"h": 0.25})
    np.testing.assert_allclose(read(ds, dynamics=model).setup.observing.std, 0.25)


# Bad input.


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"observe": {"v": xdan.Sites.all()}}, r"observe= names \['v'\]: expected fields of the state, some of"),
        ({"observe": {}}, "observes nothing"),
        ({"observe": {"h": 3}}, r"observe=\{'h': 3\}: expected Sites"),
        ({"observe": {"h": xdan.Sites.every(7)}}, "every 7-th of 6 sites"),
        ({"error_std": {"v": 1.0}}, r"error_std= names \['v'\]: expected fields"),
        ({"error_std": {"h": 1.0}}, r"no entry for \['u'\], which are observed"),
        ({"error_std": {"h": 1.0, "u": -1.0}}, r"error_std\['u'\] holds the standard deviation -1"),
        ({"error_std": {"h": np.ones(5), "u": 1.0}}, r"has shape \(5,\)"),
        ({"operator": {"v": np.eye(6)}}, r"operator= names \['v'\]"),
        ({"operator": {"u": np.eye(5)}}, r"of 'u' has shape \(5, 5\): expected \(P, 6\)"),
        ({"operator": {"u": np.eye(6), "h": np.eye(6)[:2]}}, "rows: expected as many of each"),
        ({"operator": np.ones((2, 12)), "observe": {"h": xdan.Sites.all()}}, "give observations of no field"),
        (
            {"operator": np.ones((2, 12)), "error_std": {"h": 1.0}},
            r"error_std of \['h'\], and the observations lie along 'obs'",
        ),
    ],
)
def test_settings_that_do_not_fit_the_fields_are_refused(model, setting, message):
    with pytest.raises((ValueError, TypeError), match=message):
        xdan.twin(model, cycles=3, **setting)


@pytest.mark.parametrize("word", ["observe", "error_std", "operator"])
def test_mappings_are_refused_for_one_field(word):
    value = {"observe": xdan.Sites.all(), "error_std": 1.0, "operator": np.eye(8)}[word]
    with pytest.raises(ValueError, match="one field alone: expected"):
        xdan.twin(xdan.Lorenz96(sites=8), cycles=3, **{word: {"x": value}})


@pytest.mark.parametrize("word", ["truth", "observation", "observation_error"])
def test_mappings_of_names_are_refused_for_one_field(word):
    ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=3)
    with pytest.raises(ValueError, match="one field alone: expected"):
        read(ds, **{word: {"x": word}})


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (lambda ds: ds.drop_vars("truth_u"), {}, r"the fields \['u'\] have no variable for the role 'truth'"),
        (lambda ds: ds.drop_vars(["truth_u", "truth_h"]), {"needs_truth": "a score"}, "such as 'truth_h'"),
        (lambda ds: ds.drop_vars(["observation_u", "observation_h"]), {}, "such as 'observation_h'"),
        (lambda ds: ds.drop_vars("observation_error_u"), {}, r"observed fields \['u'\] have no error"),
        (
            lambda ds: ds.rename(truth_u="a").assign(b=ds.truth_u),
            {},
            r"variables \['a', 'b'\] all claim the role 'truth' of the field 'u'",
        ),
        (lambda ds: ds.assign(truth=ds.truth_u), {}, "both claim the role 'truth'"),
        (lambda ds: ds, {"truth": {"v": "truth_u"}}, r"truth= names \['v'\]: expected fields"),
        (lambda ds: ds, {"truth": {"u": "U10"}}, "no variable 'U10' for truth="),
        (lambda ds: ds, {"truth": {"u": "truth_u", "h": "truth_u"}}, "stand for several fields"),
        (lambda ds: ds, {"truth": 3}, r"truth=3: expected a mapping of the fields \['h', 'u'\] to names"),
        (
            lambda ds: ds,
            {"observation": "observation_h"},
            r"expected a mapping of .* such as observation=\{'h': \.\.\.\}",
        ),
        (lambda ds: ds.assign(truth_u=ds.truth_u[..., :3].drop_vars("x").rename(x="k")), {}, "without \\['x'\\]"),
        (lambda ds: ds.isel(x=slice(5)), {}, "the field 'h' of the dynamics 'waves' expects {'x': 6}"),
        (
            lambda ds: ds.assign(truth_u=ds.truth_u.isel(time=slice(4)).drop_vars("time").rename(time="t")),
            {},
            "none is time",
        ),
        (lambda ds: ds, {"operator": {"u": np.eye(6)}}, "are of the state's fields: expected one variable"),
    ],
)
def test_records_that_do_not_fit_the_fields_are_refused(ds, model, change, words, message):
    with pytest.raises((ValueError, TypeError), match=message):
        read(change(ds.copy()), dynamics=model, **words)


def heat(units="K", geometry=None):
    geometry = xdan.Ring(4) if geometry is None else geometry
    state = [Field("t", geometry, units), Field("q", geometry)]
    return xdan.CustomDynamics(lambda f: {k: -v for k, v in f.items()}, state=state, timestep=0.1, spin_up_time=0.0)


def test_units_are_the_space_s():
    ds = xdan.twin(heat(), cycles=3, interval=0.1)
    with pytest.raises(ValueError, match="'truth_t' is in 'K' and 'the dynamics custom' in 'degC'"):
        read(ds, dynamics=heat("degC"))
    with pytest.warns(xdan.XdanWarning, match="are taken as the same unit"):
        read(ds, dynamics=heat("warmth"))


def test_errors_have_the_units_of_their_field():
    ds = xdan.twin(heat(), cycles=3, interval=0.1)
    ds.observation_error_t.attrs["units"] = "degC"  # a difference of one is a kelvin
    read(ds, dynamics=heat())
    ds.observation_error_t.attrs["units"] = "mK"
    with pytest.warns(xdan.XdanWarning, match="'observation_error_t' is in 'mK' and 'the dynamics custom' in 'K'"):
        read(ds, dynamics=heat())
    ds.observation_error_t.attrs["units"] = "degF"
    with pytest.raises(ValueError, match="'observation_error_t' is in 'degF' and 'the dynamics custom' in 'K'"):
        read(ds, dynamics=heat())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda f: {"h": f["h"]}, r"tendency= of the dynamics 'waves' gave \['h'\]: expected a mapping of the fields"),
        (lambda f: f["h"], "gave Tensor: expected a mapping of the fields"),
        (lambda f: {**f, "u": f["u"][..., :2]}, r"of the field 'u', gave shape \(2, 2\) for .* expected \(2, 6\)"),
        (lambda f: {**f, "u": 0.0}, "of the field 'u', gave a float for states of shape"),
    ],
)
def test_what_a_function_of_fields_gives_is_checked(model, answer, message):
    mine = xdan.CustomDynamics(answer, state=model.space, timestep=0.05, spin_up_time=0.0, name="waves")
    with pytest.raises(ValueError, match=message):
        xdan.twin(mine, cycles=2, interval=0.1)


def test_latitudes_from_the_north_and_longitudes_from_the_west_are_turned():
    model = heat(geometry=xdan.Sphere(4, 8))
    ds = xdan.twin(model, cycles=4, trajectories=2, interval=0.1, observe=xdan.Sites.random(9), seed=1, dtype="float64")
    lon = (ds.lon + 180) % 360 - 180
    theirs = ds.assign_coords(lon=lon).sortby("lon").isel(lat=slice(None, None, -1)).load()
    labelled = read(theirs, dynamics=model)
    np.testing.assert_array_equal(labelled.truth, read(ds, dynamics=model).truth)
    np.testing.assert_array_equal(labelled.observation, read(ds, dynamics=model).observation)
    assert len(labelled.notes) == 2
    run = theirs.dan.baseline("optimal-interpolation", dynamics=model)
    ours = ds.load().dan.baseline("optimal-interpolation", dynamics=model)
    np.testing.assert_array_equal(run.analysis_t, ours.analysis_t)
    np.testing.assert_array_equal(run.lat, ds.lat)
    np.testing.assert_array_equal(run.lon, [0, 45, 90, 135, -180, -135, -90, -45])
    assert "'lat'" in run.attrs["xdan_notes"][0]
    rmse = [one.dan.score(made, dynamics=model).rmse for one, made in ((theirs, run), (ds, ours))]
    np.testing.assert_array_equal(*rmse)


def test_a_sphere_of_one_field_is_turned_too():
    model = xdan.CustomDynamics(lambda x: -x, state=xdan.Sphere(4, 8), timestep=0.1, spin_up_time=0.0)
    error = xr.DataArray(np.arange(1.0, 5.0), dims="lat")
    ds = xdan.twin(model, cycles=4, interval=0.1, error_std=error, dtype="float64").load()
    labelled = read(ds.isel(lat=slice(None, None, -1)), dynamics=model)
    np.testing.assert_array_equal(labelled.truth, ds.truth)
    np.testing.assert_array_equal(labelled.setup.observing.std, np.repeat([1.0, 2.0, 3.0, 4.0], 8))


def test_other_places_are_refused():
    model = heat(geometry=xdan.Sphere(4, 8))
    ds = xdan.twin(model, cycles=3, interval=0.1)
    with pytest.raises(ValueError, match=r"'truth_t' lies on other places than the field 't'.*of 'lon'"):
        read(ds.assign_coords(lon=ds.lon + 10), dynamics=model)


def test_fields_on_other_times_are_refused(model):
    one = xr.DataArray(np.zeros((1, 3, 6)), {"trajectory": [0], "time": [0.0, 0.1, 0.2]}, ("trajectory", "time", "x"))
    with pytest.raises(ValueError, match="differ along 'time'"):
        arrange_state({"h": one.rename("a"), "u": one.assign_coords(time=[0.0, 0.1, 0.3]).rename("b")}, model, "truth")


def test_fill_values_are_looked_for_in_each_field(model):
    """A field far from another is no fill value; one value far from the others of its field is."""
    values = np.random.default_rng(0).normal(size=(2, 20, 12))
    values[..., :6] = 1e5  # a pressure that is even
    refuse_fill_values(values, "observation", True, model)
    with pytest.raises(ValueError, match="240 of 480 values of 'observation' are 100000"):  # of one field they are
        refuse_fill_values(values, "observation", False, model)
    values[0, 5, 8] = -999.0
    with pytest.raises(ValueError, match="1 of 240 values of 'observation_u' are -999"):
        refuse_fill_values(values, "observation", True, model)


def test_a_field_s_units_are_those_of_its_model():
    warm = Field("t", xdan.Ring(3), "degC")
    model = xdan.CustomDynamics(lambda x: -x, state=warm, timestep=0.1, spin_up_time=0.0)
    ds = xdan.twin(model, cycles=2, interval=0.1)
    assert model.units == ds.truth.units == ds.observation_error.units == "degC"
    with pytest.raises(ValueError, match="'truth' is in 'K' and 'the dynamics custom' in 'degC'"):
        read(ds.assign(truth=ds.truth.assign_attrs(units="K")), dynamics=model)
    with pytest.raises(ValueError, match=r"units='K', and the fields say \['degC'\]: expected units= of the Fields"):
        xdan.CustomDynamics(lambda x: -x, state=warm, timestep=0.1, units="K")


def test_instruments_of_fields_have_their_errors(ds, model):
    bare = ds.drop_vars(["observation_error_h", "observation_error_u"])
    bare = bare.assign_coords(instrument=("x", ["buoy", "ship"] * 3))
    observing = read(bare, dynamics=model, observation_error={"buoy": 0.1, "ship": 0.5}).setup.observing
    np.testing.assert_allclose(observing.std, [0.1, 0.5] * 6)
    with pytest.raises(ValueError, match=r"instruments \['buoy'\]: expected one for each instrument; \['ship'\] have"):
        read(bare, dynamics=model, observation_error={"buoy": 0.1})


def test_a_component_is_told_by_its_field_and_coordinates():
    two = xdan.TwoScaleLorenz96(sites=4)
    assert component_text(two, 3) == "U, x = 3"
    assert component_text(two, 4).startswith("V, x_fast = ")
    grid = xdan.CustomDynamics(lambda x: -x, state={"lat": [-30.0, 30.0], "lon": ["a", "b", "c"]}, timestep=0.1)
    assert component_text(grid, 4) == "lat = 30, lon = b"
