"""Checkpoints in two slots: the last save that is whole is the one that is read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import xdan
from xdan.records.checkpoint import Checkpoint


def files(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}


def test_checkpoint_gives_the_last_save(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c.zarr", {"steps": 3})
    assert checkpoint.load() is None
    for count in range(4):
        saved = {
            "net/w": np.full((3, 2), count, "float32"),
            "net/b": np.arange(4, dtype="float32") + count,
            "lost": np.array([[True], [False]]),
            "step": np.array(count),
            "none": np.zeros((0, 3)),
        }
        checkpoint.save(saved, {"count": count})
        arrays, scalars = Checkpoint(tmp_path / "c.zarr", {"steps": 3}).load()
        assert scalars == {"count": count}
        assert arrays.keys() == saved.keys()
        for name, value in saved.items():
            assert arrays[name].dtype == value.dtype
            np.testing.assert_array_equal(arrays[name], value)


@pytest.mark.parametrize("saves", [2, 3])
def test_checkpoint_half_written_gives_the_one_before(tmp_path, saves, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "c.zarr", {})
    for count in range(saves):
        checkpoint.save({"w": np.full(3, count)}, {"count": count})
    # Killed after the arrays, before their digest.
    monkeypatch.setattr("xdan.records.store._digest", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpoint.save({"w": np.full(3, 99)}, {"count": 99})
    monkeypatch.undo()
    arrays, scalars = Checkpoint(tmp_path / "c.zarr", {}).load()
    assert scalars["count"] == saves - 1
    np.testing.assert_array_equal(arrays["w"], saves - 1)


def test_checkpoint_of_another_run_says_what_differs(tmp_path):
    Checkpoint(tmp_path / "c.zarr", {"steps": 3, "seed": 0}).save({}, {})
    with pytest.raises(ValueError, match=r"of another run \(steps: 3 there, 4 now\); use the same settings"):
        Checkpoint(tmp_path / "c.zarr", {"steps": 4, "seed": 0}).load()


def test_checkpoint_leaves_other_stores_alone(tmp_path, twin):
    twin.to_zarr(tmp_path / "twin.zarr", consolidated=False)
    before = files(tmp_path / "twin.zarr")
    with pytest.raises(FileExistsError, match="is no checkpoint; choose another path for checkpoint="):
        Checkpoint(tmp_path / "twin.zarr", {}).load()
    assert files(tmp_path / "twin.zarr") == before


def test_a_torn_slot_gives_the_save_before(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c", {"run": 1})
    for step in (1.0, 2.0):
        checkpoint.save({"w": np.full(3, step)}, {"step": step})
    latest = json.loads((tmp_path / "c" / "zarr.json").read_text())["attributes"]["latest"]
    chunks = [p for p in (tmp_path / "c" / f"slot{latest}").rglob("*") if p.is_file() and p.name != "zarr.json"]
    chunks[0].write_bytes(b"")
    with pytest.warns(xdan.XdanWarning, match="last save is damaged, the save before it is taken"):
        arrays, scalars = Checkpoint(tmp_path / "c", {"run": 1}).load()
    np.testing.assert_array_equal(arrays["w"], 1.0)
    assert scalars["step"] == 1.0
    shutil.rmtree(tmp_path / "c" / f"slot{1 - latest}")
    with pytest.raises(ValueError, match="both saves in the checkpoint"):
        Checkpoint(tmp_path / "c", {"run": 1}).load()
