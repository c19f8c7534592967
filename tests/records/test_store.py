"""Stores: groups of arrays, and streams that are filled region by region."""

import json
import shutil
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import xdan
from xdan.core.learning import Optimiser
from xdan.records.blocks import Plan
from xdan.records.location import exists
from xdan.records.store import check_writable, digest, read_arrays, write_arrays
from xdan.records.streams import Stream

ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(7, dtype="i8"), "c.d": np.array([True, False])}


def files(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}


@given(
    hnp.arrays(
        st.sampled_from([np.dtype(t) for t in ("f4", "f8", "i8", "i4", "u1", "?")]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    st.dictionaries(st.text(max_size=4), st.integers() | st.floats() | st.none() | st.text(max_size=4), max_size=3),
)
def test_arrays_come_back_bit_for_bit(array, description):
    store = zarr.storage.MemoryStore()
    write_arrays(store, "group", {"value": array}, description)
    arrays, told = read_arrays(store, "group")
    assert arrays["value"].dtype == array.dtype
    assert arrays["value"].shape == array.shape
    assert arrays["value"].tobytes() == array.tobytes()
    assert repr(told) == repr(description)


def test_writing_again_leaves_nothing_behind(tmp_path):
    write_arrays(tmp_path / "s", "", ARRAYS, {})
    write_arrays(tmp_path / "s", "", {"z": np.zeros(2)}, {"k": 1})
    write_arrays(tmp_path / "t", "", {"z": np.zeros(2)}, {"k": 1})
    assert files(tmp_path / "s") == files(tmp_path / "t")


@pytest.mark.parametrize("name", ARRAYS)
def test_missing_array_is_refused(tmp_path, name):
    write_arrays(tmp_path / "s", "", ARRAYS, {})
    shutil.rmtree(tmp_path / "s" / name)
    with pytest.raises(ValueError, match=rf"cut short: arrays \['{name}'\] are missing"):
        read_arrays(tmp_path / "s", "")


def test_missing_chunk_is_refused(tmp_path):
    """Zarr itself would read it as zeros."""
    write_arrays(tmp_path / "s", "", ARRAYS, {})
    shutil.rmtree(tmp_path / "s" / "a" / "c")
    with pytest.raises(ValueError, match="cut short or changed: its digest does not match"):
        read_arrays(tmp_path / "s", "")


def test_changed_value_is_refused(tmp_path):
    write_arrays(tmp_path / "s", "", ARRAYS, {})
    zarr.open_group(tmp_path / "s", mode="r+")["a"][0, 0] = 1e-300
    with pytest.raises(ValueError, match="digest does not match"):
        read_arrays(tmp_path / "s", "")


def test_changed_description_is_refused(tmp_path):
    write_arrays(tmp_path / "s", "", ARRAYS, {"name": "good"})
    zarr.open_group(tmp_path / "s", mode="r+").attrs["description"] = json.dumps({"name": "bad"})
    with pytest.raises(ValueError, match="digest does not match"):
        read_arrays(tmp_path / "s", "")


def test_another_kind_of_group_is_refused(tmp_path, twin):
    twin.to_zarr(tmp_path / "twin.zarr", consolidated=False)
    with pytest.raises(ValueError, match="not a group of arrays that xdan wrote, or was cut short"):
        read_arrays(tmp_path / "twin.zarr", "")
    with pytest.raises(FileNotFoundError, match=r"nothing.zarr: there is no Zarr store"):
        read_arrays(tmp_path / "nothing.zarr", "")


def test_digest_sees_values_dtypes_shapes_and_order():
    a = np.arange(4.0)
    kinds = [(a,), (a.astype("f4"),), (a.reshape(2, 2),), (a, 1), (1, a), (a + 1e-15,), ({"k": 1},), ({"k": 2},)]
    assert len({digest(*values) for values in kinds}) == len(kinds)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(a[::-1][::-1]) == digest(a)


def test_exists(tmp_path):
    assert not exists(tmp_path / "s.zarr")
    assert not exists(str(tmp_path))  # an empty folder is nothing
    assert not exists(zarr.storage.MemoryStore())
    write_arrays(tmp_path / "s.zarr", "", ARRAYS, {})
    assert exists(tmp_path / "s.zarr")
    memory = zarr.storage.MemoryStore()
    write_arrays(memory, "", ARRAYS, {})
    assert exists(memory)
    with pytest.raises(FileExistsError, match="exists; pass mode='w' to overwrite it, or another path"):
        check_writable(tmp_path / "s.zarr", "w-")
    with pytest.raises(ValueError, match="mode='a': expected 'w-'"):
        check_writable(tmp_path / "t.zarr", "a")


PLAN = Plan.from_chunks((2, 1), (2, 2))


def template():
    return xr.Dataset(
        {"value": (("trajectory", "time"), da.zeros((3, 4), chunks=(2, 2))), "chosen": ((), da.zeros(()))},
        {"time": np.arange(4.0)},
        {"title": "stream"},
    )


def write(stream, i, t):
    rows, columns = stream.plan.rows(i), stream.plan.columns(t)
    value = (10.0 * np.arange(3)[:, None] + np.arange(4))[rows, columns]
    stream.write(i, t, {"value": value}, {"x": value[:, -1]})


def test_stream_in_any_order_is_one_store(tmp_path):
    for name, order in {"s": [(0, 0), (0, 1), (1, 0), (1, 1)], "t": [(1, 0), (0, 0), (1, 1), (0, 1)]}.items():
        stream = Stream(tmp_path / name, template(), PLAN, "me", "w-")
        for i, t in order:
            write(stream, i, t)
        stream.write_scalars({"chosen": np.array(0.5)})
        stream.finish()
    assert files(tmp_path / "s") == files(tmp_path / "t")
    ds = xr.open_zarr(tmp_path / "s", consolidated=False)
    np.testing.assert_array_equal(ds.value, 10.0 * np.arange(3)[:, None] + np.arange(4))
    assert float(ds.chosen) == 0.5
    assert ds.attrs == {"title": "stream"}
    assert set(zarr.open_group(tmp_path / "s").keys()) == {"value", "chosen", "time"}


def test_stream_is_taken_up_where_it_was_left(tmp_path):
    first = Stream(tmp_path / "s", template(), PLAN, "me", "w-")
    assert [first.done(i) for i in range(2)] == [0, 0]
    assert first.carry(0) is None
    write(first, 0, 0)
    write(first, 1, 0)
    write(first, 1, 1)
    again = Stream(tmp_path / "s", template(), PLAN, "me", "w-")
    assert [again.done(i) for i in range(2)] == [1, 2]
    np.testing.assert_array_equal(again.carry(0)["x"], [1, 11])
    np.testing.assert_array_equal(again.carry(1)["x"], [23])
    assert xr.open_zarr(tmp_path / "s", consolidated=False).attrs["xdan_status"] == "unfinished"


def test_stream_of_another_run_is_refused(tmp_path):
    Stream(tmp_path / "s", template(), PLAN, "me", "w-")
    before = files(tmp_path / "s")
    with pytest.raises(FileExistsError, match="unfinished run of another method, record or setting; pass mode='w'"):
        Stream(tmp_path / "s", template(), PLAN, "you", "w-")
    assert files(tmp_path / "s") == before
    assert Stream(tmp_path / "s", template(), PLAN, "you", "w").done(0) == 0


def test_stream_does_not_touch_a_finished_store(tmp_path):
    stream = Stream(tmp_path / "s", template(), PLAN, "me", "w-")
    stream.finish()
    before = files(tmp_path / "s")
    with pytest.raises(FileExistsError, match="exists; pass mode='w'"):
        Stream(tmp_path / "s", template(), PLAN, "me", "w-")
    assert files(tmp_path / "s") == before


def test_stream_in_memory():
    store = zarr.storage.MemoryStore()
    stream = Stream(store, template(), PLAN, "me", "w-")
    for i, t in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        write(stream, i, t)
    stream.finish()
    assert float(xr.open_zarr(store, consolidated=False).value.sum()) == 138.0


@pytest.mark.parametrize("kind", ["store", "url"])
def test_what_is_no_zarr_store_is_never_emptied(twin, net, tmp_path, kind):
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    store = zarr.storage.LocalStore(folder) if kind == "store" else folder.as_uri()
    with pytest.raises(FileExistsError):
        xdan.baseline(twin, "optimal-interpolation", store=store, progress=False)
    with pytest.raises(FileExistsError):
        net.to_zarr(store)
    assert (folder / "thesis.txt").read_text() == "years of work"
    if kind == "store":
        fresh = zarr.storage.LocalStore(tmp_path / "new")
        net.to_zarr(fresh)
        assert xdan.open_network(fresh) == net


def test_what_has_no_json_leaves_the_store_as_it_is(net, tmp_path):
    net.to_zarr(tmp_path / "net.zarr")
    odd = xdan.Network({**net.description, "training": {"what": object()}}, net.arrays)
    with pytest.raises(TypeError, match="has no JSON"):
        odd.to_zarr(tmp_path / "net.zarr", mode="w")
    assert xdan.open_network(tmp_path / "net.zarr") == net


def test_numpys_numbers_are_numbers(model, architecture, quick, tmp_path):
    ds = xdan.twin(xdan.Lorenz96(sites=np.int64(8), forcing=np.float32(8)), cycles=24, trajectories=4, seed=np.int64(3))
    settings = {**quick, "window": np.int64(4), "steps": np.int64(4)}
    settings["optimiser"] = Optimiser(learning_rate=np.float32(0.01))
    net = ds.dan.train("residual-cnn", memory=np.int64(1), **settings)
    net.to_zarr(tmp_path / "net.zarr")
    assert xdan.open_network(tmp_path / "net.zarr").description["training"]["window"] == 4
    assert xdan.twin(model, cycles=4, observe=xdan.Sites.every(np.int64(2))).attrs["observing"]


def test_every_chunk_has_a_checksum(twin, tmp_path):
    """A flipped bit anywhere in the values is an error, not another number."""
    twin.chunk(time=12).to_zarr(tmp_path / "twin.zarr", consolidated=False)
    chunk = tmp_path / "twin.zarr" / "truth" / "c" / "0" / "1" / "0"
    good = chunk.read_bytes()
    ds = xr.open_zarr(tmp_path / "twin.zarr", consolidated=False)
    xr.testing.assert_identical(ds.truth.load(), twin.truth)
    for place in np.random.default_rng(0).integers(0, len(good), 12):
        bad = bytearray(good)
        bad[place] ^= 4
        chunk.write_bytes(bad)
        with pytest.raises((ValueError, RuntimeError)):
            xr.open_zarr(tmp_path / "twin.zarr", consolidated=False).truth.load()


@pytest.mark.parametrize("name", ["observation/c/0/1/0", "truth/c/0/0/0", "trajectory/c/0", "x/c/0", "time/c/0"])
def test_a_missing_chunk_is_no_gap(model, tmp_path, name):
    sparse = xdan.twin(model, cycles=24, trajectories=4, observe=xdan.Sites.every(2)).chunk(time=12).compute()
    sparse.chunk(time=12).to_zarr(tmp_path / "twin.zarr", consolidated=False)
    read = lambda: xr.open_zarr(tmp_path / "twin.zarr", consolidated=False)  # noqa: E731
    run = read().dan.baseline("optimal-interpolation").load()
    (tmp_path / "twin.zarr" / name).unlink()
    for call in (
        lambda: read().dan.baseline("optimal-interpolation"),
        lambda: read().dan.score(run),
        lambda: read().dan.train(objective="forecast", steps=1, window=2, progress=False),
    ):
        with pytest.raises(ValueError, match=r"chunks: it was cut short or damaged|expected"):
            call()


def test_chunks_of_nothing_but_gaps_are_written(model, tmp_path):
    silent = xdan.twin(model, cycles=24, trajectories=4).compute()
    silent["observation"][{"time": slice(12, None)}] = np.nan
    silent.chunk(time=12).to_zarr(tmp_path / "twin.zarr", consolidated=False)
    assert (tmp_path / "twin.zarr" / "observation" / "c" / "0" / "1" / "0").exists()
    ds = xr.open_zarr(tmp_path / "twin.zarr", consolidated=False)
    assert int(ds.dan.score(ds.dan.baseline("optimal-interpolation")).diverged) == 0


def test_missing_chunks_of_another_program_warn(model, tmp_path):
    """There an empty chunk may lawfully be absent."""
    silent = xdan.twin(model, cycles=24, trajectories=4).compute().drop_encoding()
    silent["observation"][{"time": slice(12, None)}] = np.nan
    silent.attrs.pop("xdan_whole")
    silent.chunk(time=12).to_zarr(tmp_path / "record.zarr", consolidated=False)
    with pytest.warns(xdan.XdanWarning, match="1 of 2 chunks. Where chunks are missing nothing is observed"):
        xr.open_zarr(tmp_path / "record.zarr", consolidated=False).dan.baseline("optimal-interpolation")


def test_an_array_that_vanished_is_told(twin, run, tmp_path):
    twin.to_zarr(tmp_path / "twin.zarr", consolidated=False)
    shutil.rmtree(tmp_path / "twin.zarr" / "truth")
    with pytest.warns(xdan.XdanWarning, match=r"lacks the arrays \['truth'\], which its attributes list"):
        xr.open_zarr(tmp_path / "twin.zarr", consolidated=False).dan.score(run)


@pytest.mark.parametrize("name", ["dynamics", "observing"])
def test_changed_attributes_are_refused(twin, name):
    changed = twin.assign_attrs({name: twin.attrs[name].replace("8", "9").replace("all", "every")})
    with pytest.raises(ValueError, match=rf"the attributes \['{name}'\] are not what xdan wrote"):
        changed.dan.baseline("3d-var")


def test_a_network_is_replaced_as_a_whole(net, tmp_path, monkeypatch):
    """What fails while it is written leaves the old one."""
    net.to_zarr(tmp_path / "net.zarr")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(xr.Dataset, "to_zarr", full)
        with pytest.raises(OSError, match="No space"):
            net.to_zarr(tmp_path / "net.zarr", mode="w")
    assert xdan.open_network(tmp_path / "net.zarr") == net
    assert [p.name for p in tmp_path.iterdir()] == ["net.zarr"]


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, "[1, 2]", '"x"', "{", "null"])
def test_odd_descriptions_are_refused(tmp_path, text):
    write_arrays(tmp_path / "s", "", ARRAYS, {})
    zarr.open_group(tmp_path / "s", mode="r+").attrs["description"] = text
    with pytest.raises(ValueError, match=r"is damaged|expected a JSON object"):
        read_arrays(tmp_path / "s", "")


def test_a_masked_record_that_a_user_saved_is_read(tmp_path):
    ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=9, trajectories=2, seed=0, chunks={"time": 3})
    ds.to_zarr(tmp_path / "twin.zarr", consolidated=False)
    opened = xr.open_zarr(tmp_path / "twin.zarr", consolidated=False)
    gap = opened.assign(observation=opened.observation.where((opened.time < 0.12) | (opened.time > 0.28)))
    gap.to_zarr(tmp_path / "gap.zarr", consolidated=False)
    with pytest.warns(xdan.XdanWarning, match="Where chunks are missing nothing is observed"):
        xr.open_zarr(tmp_path / "gap.zarr", consolidated=False).dan.baseline("etkf", members=4, inflation=1.0)
