"""Where stores lie: spellings of one place, one writer at a time, replacement as a whole."""

import os
import shutil
import subprocess
import sys

import dask
import pytest
import zarr

import xdan
from xdan.records import location


def test_spellings_of_one_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = tmp_path / "a b.zarr"
    for spelling in ("a b.zarr", place, str(place), place.as_uri(), zarr.storage.LocalStore("a b.zarr")):
        assert location.locate(spelling) == place
    assert location.locate("~/run.zarr") == tmp_path / "home" / "run.zarr"
    assert location.locate("s3://bucket/run.zarr") == "s3://bucket/run.zarr"
    memory = zarr.storage.MemoryStore()
    assert location.locate(memory) is memory
    assert location.in_memory(memory)
    assert location.in_memory({})
    assert not location.in_memory(place)


@pytest.mark.parametrize("store", [1.5, None, True, b"run", ["run"], object()])
def test_what_is_no_place(store):
    with pytest.raises((TypeError, ValueError), match=r"store=.*: expected a path"):
        location.locate(store)


@pytest.mark.parametrize("store", ["", "a\0b"])
def test_paths_that_name_nothing(store):
    with pytest.raises(ValueError, match="expected a path"):
        location.locate(store, "checkpoint")


def test_what_is_replaced_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "store"
    path.mkdir()
    (path / "old").write_text("old")

    def fill(place):
        place.mkdir()
        (place / "half").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), location.replacing(path) as place:
        fill(place)
    assert [p.name for p in path.iterdir()] == ["old"]
    with location.replacing(path) as place:
        place.mkdir()
        (place / "new").write_text("new")
        assert (path / "old").exists()
    assert [p.name for p in path.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_folders_are_swapped_without_the_system_call(tmp_path, monkeypatch):
    monkeypatch.setattr(location.sys, "platform", "elsewhere")
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    location._exchange(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "new").exists()
    assert (tmp_path / "new" / "old").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "old"]


WRITER = """
import sys, time
from xdan.records.location import writing
from pathlib import Path
with writing(Path(sys.argv[1])):
    print("writes", flush=True)
    time.sleep(60)
"""


def test_one_writer_at_a_time(tmp_path):
    """The second is told who the first is; a killed one stands in nobody's way."""
    path = tmp_path / "run.zarr"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "writes\n"
        told = rf"another call \(process {other.pid} on .*, since"
        with pytest.raises(FileExistsError, match=told), location.writing(path):
            pytest.fail("two writers")
        other.kill()
    with location.writing(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_calls_on_one_store(twin, tmp_path):
    told = f"being written by another call .process {os.getpid()}"
    with location.writing(tmp_path / "run.zarr"), pytest.raises(FileExistsError, match=told):
        twin.dan.baseline("optimal-interpolation", store=tmp_path / "run.zarr", progress=False)
    assert not (tmp_path / "run.zarr").exists()


def test_archives_are_refused(twin, net, tmp_path):
    store = zarr.storage.ZipStore(tmp_path / "run.zip", mode="w")
    with pytest.raises(ValueError, match="store= is a ZipStore, in which nothing can be written twice: expected"):
        twin.dan.baseline("optimal-interpolation", store=store, progress=False)
    with pytest.raises(ValueError, match="store= is a ZipStore"):
        net.to_zarr(store)


def test_a_network_in_an_archive(net, tmp_path):
    net.to_zarr(tmp_path / "net.zarr")
    shutil.make_archive(str(tmp_path / "net"), "zip", tmp_path / "net.zarr")
    assert xdan.open_network(zarr.storage.ZipStore(tmp_path / "net.zip", mode="r")) == net


def test_home_and_working_directory(twin, net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    net.to_zarr("~/net.zarr")
    assert xdan.open_network("~/net.zarr") == net
    twin.dan.baseline("optimal-interpolation", store="run.zarr", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "run.zarr"]


def test_memory_of_this_process(twin):
    told = "lives in the memory of this process"
    with dask.config.set(scheduler="processes", num_workers=1), pytest.raises(ValueError, match=told):
        twin.dan.baseline("optimal-interpolation", store=zarr.storage.MemoryStore(), progress=False)
